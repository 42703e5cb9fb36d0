"""What DYffusion costs, counted in its programs: arithmetic, instructions and memory; nothing is timed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ar1 import H, built, config

from dydiff_jax.cost_model import plan, work
from dydiff_jax.evaluation.forecast import Ensemble
from dydiff_jax.types import Batch

ROLES = ("interpolator", "forecaster")


def networks(**options):
    """The same options for both networks, as changes of a config."""
    return {f"networks__{role}__{name}": value for role in ROLES for name, value in options.items()}


#: The smallest networks, which draw nothing: what these tests wait for is compilation.
SMALL = networks(features=8, kernels=(3,), dropout=0.0) | dict(system__interpolator__name="none")
#: Those of the released spring mesh.
RELEASED = networks(size="S", features=64, kernels=(9, 7, 5, 3), groups=8, dropout=0.05)


def shapes(run):
    """Of the weights of every stage."""
    return {stage.name: jax.eval_shape(stage.objective.init, jax.random.key(0)) for stage in run.stages}


def held(program):
    """Bytes of the arguments and within the program."""
    memory = program.compile().memory_analysis()
    return memory.argument_size_in_bytes + memory.temp_size_in_bytes


# Training


@pytest.mark.parametrize(
    "weights, most", [((0.5, 0.5), 3.2), ((1.0, 0.0), 1.4)], ids=["look-ahead", "without"]
)
def test_a_step_of_the_second_stage_costs_a_few_steps_of_a_regression(weights, most, data):
    """F twice with its gradient, I once, and once more with the gradient that passes through it: 9 / 3, or 4 / 3.

    What is above is the gradient by its input that the first layer of a regression does not need.
    """
    forecaster = dict(system__forecaster__weights=weights, system__forecaster__conditioning="data")
    run = built(config(data, "dyffusion", **RELEASED | forecaster))
    stage, network, key = run.stages[1], run.system.functions.forecaster, jax.random.key(0)
    params, batch = jax.eval_shape(stage.objective.init, key), plan.abstract_batch(run, stage)

    def regression(params, x0, xh):
        return jnp.mean((network(params, [x0, x0], 0.0, None)[:, -1] - xh) ** 2)

    step = jax.value_and_grad(stage.objective.loss, has_aux=True)
    found = work.model_flops(step, params, plan.frozen_shapes(run, stage), batch, key)
    frame = jax.ShapeDtypeStruct(batch.frames.shape[:1] + batch.frames.shape[2:], jnp.float32)
    ratio = found / work.model_flops(jax.value_and_grad(regression), params, frame, frame)
    least = 3.0 if weights[1] else 4 / 3
    assert least <= ratio <= most, ratio


@pytest.mark.slow
def test_training_needs_the_memory_of_a_short_window(data):
    """The second stage reads x_0 and x_h, whatever lies between."""

    def step(horizon):
        run = built(config(data, "dyffusion", **SMALL | dict(window__num_forecast=horizon)))
        stage, weights = run.stages[1], shapes(run)
        batch, key = plan.abstract_batch(run, stage), jax.random.key(0)
        loss = jax.jit(jax.value_and_grad(stage.objective.loss, has_aux=True))
        return loss.lower(weights[stage.name], weights, batch, key)

    assert held(step(64)) <= 1.1 * held(step(8))


# Sampling


def block(data, horizon=8, **changes):
    """The program of a block of a forecast, not compiled yet."""
    changes |= dict(window__num_forecast=horizon)
    run = built(config(data, "dyffusion", **SMALL | changes))
    forecaster, keys = run.system.forecaster(), jax.random.split(jax.random.key(0), 4)
    weights, batch = shapes(run), Batch(np.zeros((4, 1, 6, 6, 1), np.float32))
    carry = jax.eval_shape(forecaster.begin, weights, keys, batch)
    return jax.jit(forecaster.advance).lower(weights, keys, batch, carry)


def test_the_program_of_a_walk_does_not_grow_with_its_steps(data):
    """N = 64 beside N = 8, with as many frames and with eight times as many, which are drawn anew too."""
    refined = dict(system__sampler__refine=True)
    few, extra, long = (
        block(data, **options, **refined).as_text().count(" = ")
        for options in ({}, dict(system__leads__extra=56), dict(horizon=64))
    )
    assert max(extra, long) <= 1.05 * few


@pytest.mark.slow
def test_states_between_frames_take_no_memory(data):
    assert held(block(data, system__leads__extra=56)) <= 1.05 * held(block(data))


@pytest.mark.slow
def test_a_rollout_of_640_frames_uses_the_memory_of_64(data):
    run = built(config(data, "dyffusion", **SMALL))
    weights = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), shapes(run)) | {"calibration": ()}
    frames = np.zeros((2, 1, 6, 6, 1), np.float32)

    def most(horizon):
        driver, used = Ensemble(run.system.forecaster(), horizon, 4), []
        for piece in driver.pieces(weights, jax.random.key(0), Batch(frames), 2):
            used.append(sum(x.nbytes for x in jax.live_arrays()))
            assert piece.frames.shape[1] == H
        assert len(used) == horizon / H
        return max(used)

    assert most(640) <= 1.05 * most(64)


#: Options, and how many calls of I at the lead of the state the first step has in the program and does not make.
SAMPLERS = {
    "cold": (dict(), 1),
    "cold to the end": (dict(last="cold"), 1),
    "refined": (dict(refine=True), 1),
    "naive": (dict(name="naive"), 0),
    "heun": (dict(name="heun", draws="block", last="cold"), 2),
    "ancestral": (dict(name="ancestral"), 0),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_walk_costs_the_sum_of_its_calls(name, data):
    """To the last product, and with what the first step does not call within 5 %."""
    options, not_made = SAMPLERS[name]
    changes = {f"system__sampler__{key}": value for key, value in options.items()}
    changes |= dict(window__num_forecast=16, system__interpolator__name="gaussian")
    run = built(config(data, "dyffusion", **SMALL | changes))
    forecaster, functions = run.system.forecaster(), run.system.functions
    keys, batch = jax.random.split(jax.random.key(0), 1), Batch(np.zeros((1, 1, 6, 6, 1), np.float32))
    weights = shapes(run)
    carry = jax.eval_shape(forecaster.begin, weights, keys, batch)
    found = work.model_flops(forecaster.advance, weights, keys, batch, carry)
    frame = jax.ShapeDtypeStruct((1, 6, 6, 1), jnp.float32)

    def call(network, role):
        return work.model_flops(
            lambda params, x: network(params, network.count * [x], 1.0, None), weights[role], frame
        )

    of_f, of_i = call(functions.forecaster, "forecaster"), call(functions.interpolator, "interpolator")
    forecasts, draws = forecaster.sampler.calls(functions.process.leads)
    assert found == forecasts * of_f + (draws + not_made) * of_i
    assert found <= 1.05 * (forecasts * of_f + draws * of_i)
