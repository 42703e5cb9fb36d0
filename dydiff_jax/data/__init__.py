"""Data sets: trajectories, windows of frames, and batches as a pure function of (seed, step).

Importing the package enters every data set in `source.SOURCES`.
"""

from dydiff_jax.data import dydiff_release as dydiff_release
from dydiff_jax.data import folder as folder
from dydiff_jax.data import kolmogorov as kolmogorov
from dydiff_jax.data import rayleigh_benard as rayleigh_benard
from dydiff_jax.data import rbc_file as rbc_file
from dydiff_jax.data import shards as shards
