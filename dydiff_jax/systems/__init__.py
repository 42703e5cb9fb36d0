"""Systems: a method each, complete. Importing the package fills `SYSTEMS`."""

from dydiff_jax.system import SYSTEMS
from dydiff_jax.systems import diffusion as diffusion
from dydiff_jax.systems import direct as direct
from dydiff_jax.systems import dyffusion as dyffusion
from dydiff_jax.systems import regression as regression

__all__ = ["SYSTEMS"]
