"""Dynamical diffusion (DyDiff, arXiv 2503.00951): frames and noise are mixed along time."""

import dataclasses

from dydiff_jax.diffusion.process import SAFE_START, GaussianProcess
from dydiff_jax.diffusion.schedules import gamma_bar
from dydiff_jax.types import PerFrame

#: Largest eta at which D can be inverted from t = 1 in float32: over 15 frames its condition number is 53.
MAX_ETA = 0.98


@dataclasses.dataclass(frozen=True)
class Dynamical(GaussianProcess):
    """z = alpha D_gamma(x0) + sigma D_gamma(eps) (DyDiff eq. 4), with gamma = eta alpha_bar(tau) + 1 - eta.

    With one time for all frames this is standard diffusion seen through D: what differs is what the network
    sees and the metric of its loss. D amplifies a constant series, by sqrt(gamma) / (1 - sqrt(1 - gamma)) in
    the limit: 2.41 for eta = 0.5 at tau = 1.

    Attributes:
      eta: mixing strength in [0, 1]; 0 is standard diffusion.
      mix_data: False replaces D on the data by the identity ("no mixed latents").
      mix_noise: False replaces D on the noise by the identity ("independent noise").
      allow_large_eta: accept eta above 0.98; sampling then starts at tau <= 0.982.

    Raises:
      ValueError: eta outside [0, 1], or above 0.98 without ``allow_large_eta``; clean context of no frames.
    """

    eta: float = 0.5
    mix_data: bool = True
    mix_noise: bool = True
    allow_large_eta: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta: expected a mixing strength in [0, 1], found {self.eta}")
        if self.eta > MAX_ETA and not self.allow_large_eta:
            raise ValueError(
                f"eta: expected at most {MAX_ETA}, found {self.eta}: D is nearly singular at tau = 1 (its "
                "condition number over 15 frames is 76 at eta = 0.99, infinite at 1). Take a smaller eta, or "
                f"set allow_large_eta=True, with which sampling starts at tau = {SAFE_START} at most "
                "(condition number 272 at eta = 1)"
            )
        if self.context == "clean" and self.num_context < 1:
            raise ValueError(
                "num_context: mixing with clean context continues from the last context frame; expected at "
                f'least 1 frame, found {self.num_context}; add context, or set context="noised"'
            )

    @property
    def mixes_data(self) -> bool:
        return self.mix_data and self.eta > 0

    @property
    def mixes_noise(self) -> bool:
        return self.mix_noise and self.eta > 0

    @property
    def max_start(self) -> float:
        """That of the prediction, and 0.982 at most where eta > 0.98."""
        return min(super().max_start, SAFE_START) if self.eta > MAX_ETA else super().max_start

    def mixing(self, t: PerFrame) -> PerFrame:
        return gamma_bar(self.schedule.alpha_bar(t), self.eta)
