"""Tests run on the CPU with 8 virtual devices, and check the shapes in the signatures of the pure code."""

import importlib.metadata
import os
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
# Tests compile much and compute little: without LLVM's optimisations, and with each program in one piece, they compile
# in a fifth of the time. The last flag halves that for jaxlib 0.10; later ones do not know it.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
    + (" --xla_cpu_use_fusion_emitters=false" if importlib.metadata.version("jaxlib") < "0.11" else ""),
)
# Programs compiled once serve the whole suite and the processes that it starts; so do simulated data. Programs that
# compile in less than a fifth of a second are not worth the storing.
if "DYDIFF_JAX_CACHE" not in os.environ:
    _cache = tempfile.TemporaryDirectory(prefix="dydiff_jax_tests_", ignore_cleanup_errors=True)
    os.environ["DYDIFF_JAX_CACHE"] = _cache.name
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.join(os.environ["DYDIFF_JAX_CACHE"], "compiled"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")

import jax
import pytest
from jaxtyping import install_import_hook

install_import_hook(["dydiff_jax.diffusion", "dydiff_jax.metrics", "dydiff_jax.models"], "beartype.beartype")


@pytest.fixture(scope="module", autouse=True)
def forget_compiled():
    """What a file compiled is dropped after it: jax keeps 4096 programs, and gigabytes, and then forgets the oldest."""
    yield
    jax.clear_caches()


@pytest.fixture
def x64():
    """Double precision for the length of one test."""
    with jax.enable_x64(True):
        yield
