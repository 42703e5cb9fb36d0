"""Corruption processes, their loss and their samplers: pure functions of arrays and keys."""

from dydiff_jax.diffusion.dynamical import Dynamical
from dydiff_jax.diffusion.losses import diffusion_loss, fill
from dydiff_jax.diffusion.process import GaussianProcess
from dydiff_jax.diffusion.sampler import Sampler, sample
from dydiff_jax.diffusion.schedules import Cosine, LinearBeta, Schedule, gamma_bar
from dydiff_jax.diffusion.standard import Standard

__all__ = [
    "Cosine",
    "Dynamical",
    "GaussianProcess",
    "LinearBeta",
    "Sampler",
    "Schedule",
    "Standard",
    "diffusion_loss",
    "fill",
    "gamma_bar",
    "sample",
]
