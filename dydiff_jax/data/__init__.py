"""Data sets: trajectories, windows of frames, and batches as a pure function of (seed, step).

Importing the package enters every data set in `source.SOURCES`.
"""

from dydiff_jax.data.sources import dydiff_release as dydiff_release
from dydiff_jax.data.sources import folder as folder
from dydiff_jax.data.sources import kolmogorov as kolmogorov
from dydiff_jax.data.sources import rayleigh_benard as rayleigh_benard
from dydiff_jax.data.sources import rbc_file as rbc_file
from dydiff_jax.data.sources import shards as shards
