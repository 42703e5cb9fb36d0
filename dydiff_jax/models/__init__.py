"""Networks: functions of parameters, frames, levels and conditions. Importing the package fills `MODELS`."""

from dydiff_jax.models import cnn as cnn
from dydiff_jax.models import uvit as uvit
from dydiff_jax.models.network import MODELS, Inputs, Network

__all__ = ["MODELS", "Inputs", "Network"]
