"""What these tests wait for is compilation, which takes XLA half the time without its optimisations."""

import jax
import pytest


@pytest.fixture(autouse=True, scope="module")
def quick_compilation():
    """Compiles without most optimisations, in this folder only: the option is put back after each file."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
