"""Two systems that only the tests know, with a network of their own; and the config file that chooses them.

    --config=tests/dummy.py:dummy --config.data.path=DIR

Importing the module registers them, as a user's own config file would.
"""

import dataclasses

import jax
import jax.numpy as jnp
import ml_collections

from configs import base
from dydiff_jax.config import check_sections
from dydiff_jax.models.network import MODELS, Inputs, Model, NetworkOptions
from dydiff_jax.system import SYSTEMS, Entry, Parts, Stage


@dataclasses.dataclass(frozen=True)
class Dummy:
    """Every frame is a network of the one before; members differ by noise. Options, system, objective, forecaster."""

    parts: Parts | None = None
    roles, free, rules, needs = ("step",), (), (), ()
    block, delay, reach, max_members, nfe_per_frame, network_frames_per_frame = 1, 0, 1, None, 1.0, 1.0
    between = None
    defaults = classmethod(lambda cls: {})
    read = classmethod(lambda cls, section, path, window: check_sections(section, (), path) or cls())
    build = classmethod(lambda cls, parts: cls(parts))

    def stages(self):
        return [Stage("step", self, self.parts.recipes["step"])]

    def calibrate(self, weights, batch, key):
        return ()

    def forecaster(self):
        return self

    def apply(self, params, x, role="step"):
        return self.parts.networks[role].apply(params, Inputs(x, jnp.zeros(x.shape[:2])))

    def init(self, key):
        return self.parts.networks["step"].init(key, None)

    def loss(self, params, frozen, batch, key):
        x = self.parts.codec.encode(frozen, batch.frames, ())
        return jnp.mean((self.apply(params, x[:, :-1]) - x[:, 1:]) ** 2), {}

    def begin(self, weights, keys, batch):
        return self.parts.codec.encode(weights, batch.frames[:, -1:], ())

    def advance(self, weights, keys, batch, carry):
        noise = jax.vmap(lambda key: jax.random.normal(key, carry.shape[1:]))(keys)
        x = self.apply(weights["step"], carry) + 0.3 * noise
        return x, self.parts.codec.decode(weights, x, ())


class Corrected(Dummy):
    """A dummy of two stages: a second network corrects the first, which is frozen."""

    roles = ("step", "correction")

    def stages(self):
        needs, recipe = ("step",), self.parts.recipes["correction"]
        reads = ("system", "networks.correction")
        first = Stage("step", Dummy(self.parts), self.parts.recipes["step"], reads=("networks.step",))
        return [first, Stage("correction", self, recipe, needs, reads)]

    def both(self, params, frozen, x):
        return self.apply(frozen["step"], x) + 0.1 * self.apply(params, x, "correction")

    def init(self, key):
        return self.parts.networks["correction"].init(key, None)

    def loss(self, params, frozen, batch, key):
        x = self.parts.codec.encode(frozen, batch.frames, ())
        return jnp.mean((self.both(params, frozen, x[:, :-1]) - x[:, 1:]) ** 2), {}

    def advance(self, weights, keys, batch, carry):
        x = self.both(weights["correction"], weights, carry)
        return x, self.parts.codec.decode(weights, x, ())


@dataclasses.dataclass(frozen=True)
class Pointwise(NetworkOptions):
    """x W + b on the channels of every point."""

    channels: int = 1
    rules, joins_frames = (), False

    def build(self, channels):
        return Pointwise(channels)

    def init(self, key, inputs):
        kernel = jax.random.normal(key, (self.channels, self.channels))
        return {"dense": {"kernel": kernel, "bias": jnp.zeros(self.channels)}}

    def apply(self, params, inputs, key=None):
        return inputs.x @ params["dense"]["kernel"] + params["dense"]["bias"]


MODELS["pointwise"] = Model(Pointwise, {"only": {}})
SYSTEMS["dummy"] = Entry(Dummy, "each frame is a linear map of the one before.", "x' = W x + b", "#332288")
SYSTEMS["corrected"] = Entry(Corrected, "the same, corrected by a second map.", "x' = (W + C) x", "#117733")


def get_config(argument: str = "") -> ml_collections.ConfigDict:
    """The config of ``dummy.py:method`` for 8 x 8 frames in a folder."""
    method, _ = base.parse_argument(argument or "dummy")
    config = base.get_config(method, "tiny", "cosine")
    base.miniature(config)
    del config.networks
    config.networks = {role: dict(name="pointwise", size="only") for role in SYSTEMS[method].options.roles}
    config.data = dict(name="folder", path="")
    config.window.update(num_context=2, num_forecast=3)
    config.dataset.update(crop=None, random_crop=False, split="trajectory")
    config.conditions.copy_path = False
    config.mesh.data = 1
    config.optimizer.update(learning_rate=1e-2, warmup_steps=10)
    config.train.update(steps=200, batch_size=4, log_every=50, checkpoint_every=50)
    config.evaluation.update(members=3, windows=4, horizon=5, saved=2)
    config.scores.update(pool_window=4, csi_window=3)
    return config
