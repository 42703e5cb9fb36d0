"""Is the ensemble calibrated? Spread, spread over skill, rank histogram."""

from typing import Literal

import numpy as np
from jaxtyping import Int

from dydiff_jax.metrics.deterministic import rmse
from dydiff_jax.metrics.leads import Ensemble, Observed, PerLead, Truth, average, per_lead


def spread(ensemble: Ensemble, truth: Truth, observed: Observed | None = None) -> PerLead:
    """Root of the mean variance between members, sqrt(mean of sum_i (x_i - mean)^2 / (e - 1)), one value a
    lead.

    Variances are averaged over the observed windows, grid points and channels before the root, as the
    squared errors are in `rmse`.

    Raises:
      ValueError: fewer than two members.
    """
    _check_members(ensemble)

    def variance(members: np.ndarray, _: np.ndarray, known: np.ndarray | None) -> np.ndarray | float:
        return average(members.var(axis=0, ddof=1), known)

    return np.sqrt(per_lead(variance, ensemble, truth, observed))


def spread_skill_ratio(ensemble: Ensemble, truth: Truth, observed: Observed | None = None) -> PerLead:
    """sqrt((e + 1) / e) spread / rmse, one value a lead: 1 for a calibrated ensemble, below 1 if over-confident.

    For a truth exchangeable with the members, E (mean - y)^2 = (1 + 1/e) E variance: the factor corrects the
    error of a mean over finitely many members (Fortin et al. 2014). Infinite where the mean is without error.

    Raises:
      ValueError: fewer than two members.
    """
    _check_members(ensemble)
    factor = np.sqrt((len(ensemble) + 1) / len(ensemble))
    with np.errstate(divide="ignore", invalid="ignore"):
        return factor * spread(ensemble, truth, observed) / rmse(ensemble, truth, observed)


def ssr_biased(
    ensemble: Ensemble,
    truth: Truth,
    per: Literal["lead", "window"] = "lead",
    observed: Observed | None = None,
) -> PerLead:
    """Root of the members' variance (divisor e) over the root of the squared error of their mean, one value a lead.

        sqrt(<sum_i (x_i - mean)^2 / e>) / sqrt(<(mean - y)^2>)

    The "SSR" of DYffusion (Ruehling Cachay et al. 2023), without a correction for the number of members: it is
    `spread_skill_ratio` times sqrt((e - 1) / (e + 1)), which is what a calibrated ensemble scores, .980 for e = 50 and
    .951 for 20. With ``per`` "lead", < > is the mean over the observed windows, grid points and channels (its scores on
    sea surface temperature); with "window" the ratio is that of a window and a lead, and is averaged over the windows
    with an observed point (its scores on single trajectories). Infinite where the mean is without error.

    Raises:
      ValueError: fewer than two members, or another ``per``.
    """
    _check_members(ensemble)
    if per not in ("lead", "window"):
        raise ValueError(f"per: expected 'lead' or 'window', found {per!r}")

    def ratio(members: np.ndarray, actual: np.ndarray, known: np.ndarray | None) -> np.ndarray | float:
        variance, error = members.var(axis=0), (members.mean(axis=0) - actual) ** 2
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.sqrt(average(variance, known) / average(error, known))

    def of_windows(members: np.ndarray, actual: np.ndarray, known: np.ndarray | None) -> np.ndarray | float:
        chosen = range(len(actual)) if known is None else np.flatnonzero(known.any(axis=(1, 2, 3)))
        ratios = [ratio(members[:, b], actual[b], None if known is None else known[b]) for b in chosen]
        return np.mean(ratios) if ratios else np.nan

    return per_lead(ratio if per == "lead" else of_windows, ensemble, truth, observed)


def rank_histogram(
    ensemble: Ensemble, truth: Truth, seed: int = 0, observed: Observed | None = None
) -> Int[np.ndarray, "k ranks"]:
    """How often the truth lies above exactly r of the e members, r = 0 ... e: counts [k, e + 1].

    Flat for a truth exchangeable with the members, U-shaped when the spread is too small, sloped under bias
    (Hamill 2001). A truth equal to m members takes one of its m + 1 ranks at random, drawn with `seed`. Only observed
    points are counted and draw a rank.
    """
    rng = np.random.default_rng(seed)
    members = len(ensemble)

    def counts(values: np.ndarray, actual: np.ndarray, known: np.ndarray | None) -> np.ndarray:
        if known is not None:
            values, actual = values[:, known], actual[known]
        below, ties = (values < actual).sum(axis=0), (values == actual).sum(axis=0)
        rank = below + rng.integers(0, ties, endpoint=True)
        return np.bincount(rank.ravel(), minlength=members + 1)

    return per_lead(counts, ensemble, truth, observed)


def _check_members(ensemble: Ensemble) -> None:
    if len(ensemble) < 2:
        raise ValueError(
            f"expected an ensemble of at least 2 members, found {len(ensemble)}: one has no spread"
        )
