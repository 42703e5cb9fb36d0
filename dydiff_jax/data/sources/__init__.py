"""Data sources: each makes or opens trajectories. Importing the package fills `SOURCES`."""

from dydiff_jax.data.sources import dydiff_release as dydiff_release
from dydiff_jax.data.sources import folder as folder
from dydiff_jax.data.sources import hasselmann as hasselmann
from dydiff_jax.data.sources import kolmogorov as kolmogorov
from dydiff_jax.data.sources import lorenz96 as lorenz96
from dydiff_jax.data.sources import rayleigh_benard as rayleigh_benard
from dydiff_jax.data.sources import rbc_file as rbc_file
from dydiff_jax.data.sources import shards as shards
from dydiff_jax.data.sources import spring_mesh as spring_mesh
from dydiff_jax.data.sources import spring_mesh_file as spring_mesh_file
from dydiff_jax.data.sources.source import SOURCES, Source, register

__all__ = ["SOURCES", "Source", "register"]
