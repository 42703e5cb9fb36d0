"""Tests run on the CPU with 8 virtual devices, and check the shapes in the signatures of the pure code."""

import importlib.metadata
import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
# Tests compile much and compute little: with less optimisation they take a third of the time. The second flag halves
# that for jaxlib 0.10; later ones do not know it.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=1"
    + (" --xla_cpu_use_fusion_emitters=false" if importlib.metadata.version("jaxlib") < "0.11" else ""),
)

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
