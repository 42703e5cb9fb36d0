"""Score options: which scores are made; pooling windows, thresholds, seeds."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal


@dataclasses.dataclass(frozen=True)
class ScoreOptions:
    """Which scores are made; pooling windows, thresholds, seeds.

    Defaults are "CRPS w8" and "CSI w5" of DyDiff, Table 1.

    Attributes:
      names: scores to make, as the tables name them; None: those of the kind of the data, and those that
        `fsd_samples`, `mse_scale`, `flow` and `biased` ask for.
      pool_window: side of the pooling window of the pooled CRPS, grid points.
      pool_stride: distance of pooling windows, grid points.
      csi_threshold: an event is a value at or above it, in the units of the data.
      csi_window: side of the window over which masks of events are max-pooled, grid points; padded by half.
      csi_stride: distance of those windows, grid points.
      rank_seed: seed of the random ranks that ties get in the rank histogram.
      leads: leads of the tables and of the Frechet spectral distance, increasing, from 1 on; None: all. Those
        beyond the end of the forecast are left out.
      fsd_samples: frames N in each sample of the Frechet spectral distance (FSD); None: it is left out.
      fsd_field: channel of the FSD, 0 for the horizontal velocity.
      fsd_transform: transform of the FSD, the whole plane or half of it.
      fsd_norm: its norm, as numpy.fft has them.
      mse_scale: what errors are divided by in the summed squared error; None: mse and mse_sum are left out.
      flow: the channels are u and v of a doubly periodic flow on a staggered grid, sides of 2 pi: energy and
        enstrophy spectra are added.
      biased: the scores of DYffusion (Ruehling Cachay et al. 2023), which do not correct for the number of members,
        are added: `mse_mean`, `ssr_biased` and `ssr_biased_window`, beside `crps_biased`.
    """

    names: tuple[str, ...] | None = None
    pool_window: int = 8
    pool_stride: int = 2
    csi_threshold: float = 0.0
    csi_window: int = 5
    csi_stride: int = 2
    rank_seed: int = 0
    leads: tuple[int, ...] | None = None
    fsd_samples: int | None = None
    fsd_field: int = 0
    fsd_transform: Literal["fft2", "rfft2"] = "fft2"
    fsd_norm: Literal["backward", "ortho", "forward"] = "backward"
    mse_scale: float | None = None
    flow: bool = False
    biased: bool = False

    def __post_init__(self) -> None:
        if self.names is not None and (not self.names or len(set(self.names)) < len(self.names)):
            raise ValueError(f"names: expected None or one score or more, each once, found {self.names}")
        for name in ("pool_window", "pool_stride", "csi_window", "csi_stride"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1 grid point, found {getattr(self, name)}")
        if not math.isfinite(self.csi_threshold):
            raise ValueError(f"csi_threshold: expected a finite value, found {self.csi_threshold}")
        for name in ("rank_seed", "fsd_field"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: expected 0 or more, found {getattr(self, name)}")
        leads = self.leads
        if leads is not None and (not leads or leads[0] < 1 or sorted(set(leads)) != list(leads)):
            raise ValueError(f"leads: expected increasing numbers of frames from 1, found {leads}")
        if self.fsd_samples is not None and self.fsd_samples < 2:
            raise ValueError(f"fsd_samples: expected at least 2, found {self.fsd_samples}")
        if self.mse_scale is not None and not 0 < self.mse_scale < math.inf:
            raise ValueError(f"mse_scale: expected a finite value above 0, found {self.mse_scale}")

    @property
    def spectral_distance(self) -> bool:
        """Whether a Frechet spectral distance is made."""
        listed = self.names is None or not {"fsd", "fsd_floor"}.isdisjoint(self.names)
        return listed and self.fsd_samples is not None


def check_samples(options: ScoreOptions, windows: int, split: str = "test") -> None:
    """Refuse a Frechet spectral distance that asks for more samples than there are; one window gives one.

    Args:
      options: of the scores.
      windows: how many there are.
      split: "test" or "training", for the message; both must have enough.

    Raises:
      ValueError: there are too few.
    """
    if options.spectral_distance and windows < (options.fsd_samples or 0):
        raise ValueError(
            f"fsd_samples: too few samples for the distance asked: expected at least {options.fsd_samples} "
            f"{split} windows, found {windows}; ask for fewer samples or give more windows"
        )


def shown_leads(leads: Sequence[int] | None, horizon: int) -> list[int]:
    """The leads asked for (None: all) among 1 ... horizon."""
    return [lead for lead in range(1, horizon + 1) if leads is None or lead in leads]
