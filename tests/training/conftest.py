"""Processes that train the toy, and the cache of what they compile."""

import jax
import pytest
import toy
from running import LEAST, Server, set_cache


@pytest.fixture(scope="session")
def cache_directory(tmp_path_factory):
    """Where all runs of the toy, here and in processes that are killed, keep the few programs that they compile."""
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def compilation_cache(cache_directory):
    """The programs of the toy are compiled once in a session."""
    before = jax.config.jax_compilation_cache_dir, jax.config.jax_persistent_cache_min_compile_time_secs
    set_cache(cache_directory, float(LEAST))
    yield
    set_cache(*before)


@pytest.fixture(scope="session")
def server(tmp_path_factory, cache_directory):
    """A `Server` for all files."""
    made = Server(tmp_path_factory.mktemp("server"), cache_directory)
    yield made
    made.close()


@pytest.fixture(scope="session")
def reference(tmp_path_factory, cache_directory):
    """The work directory and the last state of a run of 40 steps that nobody disturbed, validated every 8."""
    workdir = tmp_path_factory.mktemp("reference")
    return workdir, toy.train(workdir, **toy.RUN)
