"""What stands at missing points is nobody's business: losses and gradients have the same bits whatever it is."""

import jax
import numpy as np
import pytest

from dydiff_jax import build
from dydiff_jax.types import Batch
from tests import small

SHAPE = (4, 4, 16, 16, 2)
NETWORK = {
    f"networks__denoiser__{key}": value
    for key, value in dict(channels=(16, 16), blocks=(1, 1), head_dim=8, embed_dim=16).items()
}


@pytest.fixture(scope="module", params=["standard", "dynamical", "rolling_dynamical", "regression"])
def objective(request):
    """(frames, observed) -> the loss of a system, and another with its gradient, for parameters that are nowhere 0."""
    changes = dict(window__num_context=2, window__num_forecast=2, mesh__data=1) | NETWORK
    config = build.load(small.config(f"{request.param},size=tiny", **changes))
    (stage,) = build.build(config, build.spec_card(config)).stages
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: 0.1 * rng.standard_normal(leaf.shape, np.float32),
        jax.eval_shape(stage.objective.init, jax.random.key(0)),
    )

    def loss(params, frames, observed):
        return stage.objective.loss(params, {}, Batch(frames, observed), jax.random.key(1))[0]

    def of_params(function):
        compiled = jax.jit(function)
        return lambda frames, observed: jax.device_get(compiled(params, frames, observed))

    return of_params(loss), of_params(jax.value_and_grad(loss))


@pytest.fixture
def gradient(objective):
    """(frames, observed) -> loss and gradient."""
    return objective[1]


def masks(name):
    rng = np.random.default_rng(1)
    if name == "points":
        return rng.random(SHAPE) < 0.6
    if name == "frames":  # one of the context of one example, one to be forecast of another
        observed = np.ones((4, 4, 1, 1, 1), bool)
        observed[0, 1] = observed[2, 3] = False
        return observed
    observed = rng.random(SHAPE) < 0.6
    observed[3] = False
    return observed


def bits(tree):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["points", "frames", "an example without any"])
def test_missing_points_change_no_bit(name, gradient):
    frames = np.random.default_rng(2).standard_normal(SHAPE, np.float32)
    observed = masks(name)
    first = gradient(frames, observed)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(first)) and first[0] > 0
    for value in (0.0, 1e30, np.nan, -np.inf):
        assert bits(gradient(np.where(observed, frames, np.float32(value)), observed)) == bits(first), value


@pytest.mark.slow
def test_observed_points_count(gradient):
    """Moving one that is known, and hiding one, does change the loss."""
    frames = np.random.default_rng(2).standard_normal(SHAPE, np.float32)
    observed = masks("points")
    first, _ = gradient(frames, observed)
    point = tuple(np.argwhere(observed[:, 2:])[0] + np.array([0, 2, 0, 0, 0]))
    moved, hidden = frames.copy(), observed.copy()
    moved[point] += 3.0
    hidden[point] = False
    assert gradient(moved, observed)[0] != first
    assert gradient(frames, hidden)[0] != first


def test_without_a_mask_everything_is_observed(objective):
    """The losses agree; they are compiled apart."""
    frames = np.random.default_rng(2).standard_normal(SHAPE, np.float32)
    loss, gradient = objective
    np.testing.assert_allclose(loss(frames, None), gradient(frames, np.ones(SHAPE, bool))[0], rtol=1e-5)
