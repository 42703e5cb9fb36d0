"""Is the ensemble's spread honest? Spread, spread over skill, rank histogram."""

import numpy as np
from jaxtyping import Int

from dydiff_jax.metrics.deterministic import rmse
from dydiff_jax.metrics.leads import Ensemble, PerLead, Truth, per_lead


def spread(ensemble: Ensemble, truth: Truth) -> PerLead:
    """Root of the mean variance between members, sqrt(mean of sum_i (x_i - mean)^2 / (e - 1)), one value a
    lead.

    Variances are averaged over windows, grid and channels before the root, as the squared errors are in
    `rmse`.

    Raises:
      ValueError: fewer than two members.
    """
    _check_members(ensemble)
    return np.sqrt(per_lead(lambda members, observed: members.var(axis=0, ddof=1).mean(), ensemble, truth))


def spread_skill_ratio(ensemble: Ensemble, truth: Truth) -> PerLead:
    """sqrt((e + 1) / e) spread / rmse, one value a lead: 1 when honest, below 1 when over-confident.

    For a truth exchangeable with the members, E (mean - y)^2 = (1 + 1/e) E variance: the factor corrects the
    error of a mean over finitely many members (Fortin et al. 2014). Infinite where the mean is without error.

    Raises:
      ValueError: fewer than two members.
    """
    _check_members(ensemble)
    members = len(ensemble)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.sqrt((members + 1) / members) * spread(ensemble, truth) / rmse(ensemble, truth)


def rank_histogram(ensemble: Ensemble, truth: Truth, seed: int = 0) -> Int[np.ndarray, "k ranks"]:
    """How often the truth lies above exactly r of the e members, r = 0 ... e: counts [k, e + 1].

    Flat for a truth exchangeable with the members, U-shaped when the spread is too small, sloped under bias
    (Hamill 2001). A truth equal to m members takes one of its m + 1 ranks at random, drawn with `seed`.
    """
    rng = np.random.default_rng(seed)
    members = len(ensemble)

    def counts(values: np.ndarray, observed: np.ndarray) -> np.ndarray:
        below, ties = (values < observed).sum(axis=0), (values == observed).sum(axis=0)
        rank = below + rng.integers(0, ties, endpoint=True)
        return np.bincount(rank.ravel(), minlength=members + 1)

    return per_lead(counts, ensemble, truth)


def _check_members(ensemble: Ensemble) -> None:
    if len(ensemble) < 2:
        raise ValueError(
            f"expected an ensemble of at least 2 members, found {len(ensemble)}: one has no spread"
        )
