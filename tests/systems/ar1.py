"""Runs of DYffusion and its rivals on an AR(1) process at each of 6 x 6 points."""

import jax
import numpy as np

from configs import base
from dydiff_jax import build

#: Correlation of a frame with the one before, and frames of a window.
A, H = 0.9, 4
NETWORK = dict(name="cnn", size="tiny", features=16, kernels=(3, 1), groups=4, dropout=0.1)


def record(folder):
    """Recordings of an independent AR(1) process of unit variance at each point."""
    rng = np.random.default_rng(0)
    for number in range(8):
        frames = [rng.normal(size=(6, 6, 1))]
        for _ in range(99):
            frames.append(A * frames[-1] + np.sqrt(1 - A**2) * rng.normal(size=(6, 6, 1)))
        np.save(folder / f"{number}.npy", np.asarray(frames, np.float32))


def config(data, method, **changes):
    raw = base.get_config(method, "tiny", "cosine")
    base.miniature(raw)
    raw.networks = {role: dict(NETWORK) for role in raw.networks}
    raw.data = dict(name="folder", path=str(data))
    raw.codec.name = "identity"
    raw.window.update(num_context=1, num_forecast=H)
    raw.dataset.update(crop=None, random_crop=False, split="trajectory")
    raw.conditions.copy_path = False
    raw.mesh.data = 1
    raw.train.update(steps=4, batch_size=16, log_every=2, checkpoint_every=1000)
    raw.optimizer.update(learning_rate=5e-3, warmup_steps=2)
    raw.evaluation.update(members=4, windows=8, horizon=2 * H, saved=2, figures=())
    raw.scores.update(names=("crps", "spread_skill"))
    raw.update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
    return raw


def built(raw):
    loaded = build.load(raw)
    return build.build(loaded, build.spec_card(loaded))


def trained_weights(run, seed=0):
    """Fresh weights of every stage, moved away from zero, as a system of no use but of every part."""
    weights = {}
    for number, stage in enumerate(run.stages):
        params = stage.objective.init(jax.random.key(seed + number))
        weights[stage.name] = jax.tree.map(lambda leaf: leaf + 0.01, params)
    return weights | {"calibration": ()}
