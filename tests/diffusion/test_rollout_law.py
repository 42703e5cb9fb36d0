"""With the exact denoiser of an AR(1) process, rollouts of 30 frames draw frames of that very process.

Errors are the largest deviation of the covariance of context and forecast: of variances, which are 1, and of
correlations at every lag. T is the number of evaluations a shift, N of a block.
"""

import numpy as np
import pytest
import rollout_law

from dydiff_jax.diffusion import Cosine, Dynamical, Sampler, Standard
from dydiff_jax.diffusion.process import GaussianProcess
from dydiff_jax.diffusion.rolling import Rolling
from dydiff_jax.diffusion.rolling_dynamical import RollingDynamical
from dydiff_jax.diffusion.rollout import Rollout

pytestmark = pytest.mark.slow

P, K, ETA, FRAMES = 2, 4, 0.5, 30


def rollout_of(process, method, steps):
    """``steps`` evaluations a pass: T of a rolling clock, N of a block."""
    return Rollout(process, Sampler(method, nfe=steps * process.num_forecast // process.stride))


def eta_of(process):
    return getattr(process, "eta", 0)


def error(process, method, steps, frames=FRAMES, **options):
    return rollout_law.error(rollout_of(process, method, steps), eta_of(process), frames, **options)


def order(coarse, fine):
    """Observed order of convergence over a factor of four in the steps."""
    return np.log2(coarse / fine) / 2


def stationary(rollout, frames):
    """(innovation variance, variance, correlation at lag one) of the last frames of a rollout."""
    law = np.asarray(rollout_law.rolled_covariance(rollout, 0, frames))
    return law[-1, -1] - law[-1, -2] ** 2 / law[-2, -2], law[-1, -1], law[-1, -2] / law[-2, -2]


ROLLING, BOTH = Rolling(Cosine(), P, K), RollingDynamical(Cosine(), P, K, eta=ETA)


@pytest.mark.parametrize(
    ("process", "method", "steps", "bound", "lowest", "highest"),
    [
        (ROLLING, "ddim", 16, 0.0100, 0.8, 1.2),
        (ROLLING, "ancestral", 8, 0.044, 0.8, 1.2),
        (ROLLING, "dpmpp_2m", 16, 3e-5, 1.8, np.inf),
        (BOTH, "ddim", 16, 0.0140, 0.8, 1.2),
        (BOTH, "ancestral", 8, 0.047, 0.8, 1.2),
        (BOTH, "dpmpp_2m", 16, 0.0030, 0.8, 1.2),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, GaussianProcess) else str(value),
)
def test_rolling_forecasts_converge_to_the_process(process, method, steps, bound, lowest, highest, x64):
    """2M is of second order with independent noise. With mixed noise a frame enters on an estimate that is a
    step old, which is of first order."""
    coarse, fine = (error(process, method, number) for number in (steps, 4 * steps))
    assert fine < bound
    assert lowest < order(coarse, fine) < highest


@pytest.mark.parametrize("process", [ROLLING, BOTH], ids=["rolling", "rolling_dynamical"])
def test_innovations_variances_and_correlations_are_those_of_the_process(process, x64):
    """The 30th frame given the 29th, and given all: nothing builds up along the forecast."""
    law = np.asarray(
        rollout_law.rolled_covariance(rollout_of(process, "dpmpp_2m", 64), eta_of(process), FRAMES)
    )
    innovations = 1 / np.diag(np.linalg.inv(law))[-1:]
    np.testing.assert_allclose(innovations, rollout_law.INNOVATION, rtol=0.003)
    np.testing.assert_allclose(np.diag(law), 1, atol=0.003)
    for lag in (1, 2, 5, 10):
        np.testing.assert_allclose(np.diag(law, lag), rollout_law.A**lag, atol=0.003)


@pytest.mark.parametrize(
    ("window", "clean", "clock", "method", "steps", "innovation"),
    [
        (8, 2, "init", "ancestral", 4, 0.1426),
        (8, 2, "init", "ancestral", 16, 0.1744),
        (8, 2, "init_rescaled", "ancestral", 16, 0.1745),
        (8, 2, "init", "ddim", 16, 0.1829),
        (4, 2, "init", "ancestral", 16, 0.1527),
    ],
)
def test_innovation_variance_agrees_with_an_independent_simulation(
    window, clean, clock, method, steps, innovation, x64
):
    """Of samples drawn by another program, to its sampling error of about 0.5 %; the process has 0.19."""
    process = Rolling(Cosine(), clean, window - clean, clock=clock)
    found = stationary(rollout_of(process, method, steps), 10)[0]
    np.testing.assert_allclose(found, innovation, rtol=0.006)


@pytest.mark.parametrize("cls", [Rolling, RollingDynamical])
def test_the_law_depends_neither_on_the_prediction_nor_after_a_while_on_the_start(cls, x64):
    laws = [
        np.asarray(rollout_law.rolled_covariance(rollout_of(process, "dpmpp_2m", 4), eta_of(process), FRAMES))
        for process in (
            cls(Cosine(), P, K),
            cls(Cosine(), P, K, "x0"),
            cls(Cosine(), P, K, clock="init_rescaled"),
        )
    ]
    np.testing.assert_allclose(laws[1], laws[0], rtol=0, atol=1e-7)
    assert np.abs(laws[2] - laws[0])[P : P + K].max() > 1e-4  # more evaluations for the first k frames
    np.testing.assert_allclose(laws[2][-4:, -4:], laws[0][-4:, -4:], rtol=0, atol=5e-3)


@pytest.mark.parametrize("process", [ROLLING, BOTH], ids=["rolling", "rolling_dynamical"])
def test_the_rescaled_clock_converges_too(process, x64):
    rescaled = type(process)(Cosine(), P, K, clock="init_rescaled")
    coarse, fine = (error(rescaled, "ddim", steps, 12) for steps in (16, 64))
    assert fine < 0.014
    assert 0.8 < order(coarse, fine) < 1.2


@pytest.mark.parametrize("options", [{"mix_noise": False}, {"mix_data": False}], ids=["latents", "noise"])
def test_ablations_of_both_converge_too(options, x64):
    process = RollingDynamical(Cosine(), P, K, eta=ETA, **options)
    coarse, fine = (error(process, "ddim", steps, 12) for steps in (16, 64))
    assert fine < 0.014
    assert 0.8 < order(coarse, fine) < 1.2


@pytest.mark.parametrize(
    "process", [Standard(Cosine(), P, K), Dynamical(Cosine(), P, K, eta=ETA)], ids=["standard", "dynamical"]
)
@pytest.mark.parametrize(
    ("method", "bound", "lowest", "highest"), [("ddim", 0.03, 0.8, 1.2), ("dpmpp_2m", 6e-4, 1.8, np.inf)]
)
def test_block_forecasts_converge_to_the_process(process, method, bound, lowest, highest, x64):
    coarse, fine = (error(process, method, steps) for steps in (32, 128))
    assert fine < bound
    assert lowest < order(coarse, fine) < highest


def test_frames_whose_wait_ends_by_a_rounding_are_not_extrapolated(x64):
    """For k = 5, u + tau misses 1 by a rounding where a frame begins to move."""
    assert error(Rolling(Cosine(), P, 5), "dpmpp_2m", 8, 12) < 0.002


# Shortcuts that do not converge.


class IndependentEntry(RollingDynamical):
    """A frame enters as white noise, uncorrelated with the noise before it."""

    def _entering(self, noise, fresh, levels, residual_variance):
        return fresh


class Uncapped(RollingDynamical):
    """The DDPM posterior's share of fresh noise."""

    refresh_fraction = GaussianProcess.refresh_fraction


class Forgetful(Rollout):
    """Estimates of x0 are lost when the window moves on."""

    def _move(self, *arguments):
        carry = super()._move(*arguments)
        levels = carry.state.levels
        return carry._replace(state=carry.state._replace(levels=levels._replace(t=0 * levels.t)))


def test_independent_noise_on_entering_frames_is_wrong_however_many_steps(x64):
    wrong = IndependentEntry(Cosine(), P, K, eta=ETA)
    errors = [error(wrong, "ddim", steps) for steps in (16, 64)]
    assert min(errors) > 0.5
    assert error(BOTH, "ddim", 64) < 0.014


def test_without_the_residual_variance_a_rollout_stays_wrong(x64):
    wrong = [error(BOTH, "dpmpp_2m", steps, exact_residual=False) for steps in (16, 64)]
    assert min(wrong) > 0.06
    assert error(BOTH, "dpmpp_2m", 64) < 0.003


def test_uncapped_churn_converges_slowly_if_at_all(x64):
    right, wrong = (
        [error(cls(Cosine(), P, 2, eta=ETA), "ancestral", steps, 6) for steps in (16, 64)]
        for cls in (RollingDynamical, Uncapped)
    )
    assert order(*right) > 0.8 and right[1] < 0.035
    assert order(*wrong) < 0.7 and wrong[1] > 0.065


def test_estimates_carried_with_the_window_pay(x64):
    forgetful, kept = (cls(ROLLING, Sampler("dpmpp_2m", nfe=4 * K)) for cls in (Forgetful, Rollout))
    lost, found = (rollout_law.error(rollout, 0, FRAMES) for rollout in (forgetful, kept))
    assert found < 0.016
    assert lost > 0.04
    assert error(ROLLING, "ddim", 4) > 0.1
