"""Frames between the whole leads: they change no whole one, have draws of their own, and are refused where none are."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dydiff_jax.codecs.pointwise import Affine
from dydiff_jax.diffusion.dyffusion import DYffusion, Leads
from dydiff_jax.diffusion.interpolation import Gaussian
from dydiff_jax.diffusion.walk import WalkSampler
from dydiff_jax.evaluation.forecast import Ensemble, gather
from dydiff_jax.runs import commands, scoring
from dydiff_jax.system import Window
from dydiff_jax.systems.dyffusion import Functions, Walk
from dydiff_jax.systems.windows import FrameNetwork
from dydiff_jax.types import Batch, DataSpec

A, H, S, SIDE = 0.8, 4, 4, 24
WEIGHTS = {"interpolator": (), "forecaster": ()}
CODEC = Affine((3.0,), (2.0,))


@dataclasses.dataclass(frozen=True)
class Function:
    """A network without parameters: frames [b, f, *s] and time [b] to frames [b, f, *s]."""

    function: object
    span, rules, joins_frames = None, (), True

    def apply(self, params, inputs, keys=None):
        return self.function(inputs.x, inputs.level[:, 0].reshape(-1, 1, 1, 1))


def forward(x, lead):
    """The conditional mean of x_h of an AR(1) process at every point."""
    return x * A ** (H - lead)[:, None]


def bridge(x, lead):
    """Its law between x_0 and x_h: log deviation, then mean."""
    own, left, whole = (1 - A ** (2 * lead) for lead in (lead, H - lead, H))
    mean = A**lead * left / whole * x[:, 0] + A ** (H - lead) * own / whole * x[:, 1]
    return jnp.stack([jnp.broadcast_to(jnp.log(own * left / whole) / 2, mean.shape), mean], axis=1)


def noise(x, lead):
    """Mean 0 and deviation 1, whatever the frames are."""
    return 0 * x


def walk(between=bridge, leads=None, **sampler):
    leads = leads or Leads(H)
    shared = CODEC, Window(1, H), DataSpec((SIDE, SIDE, 1), ("u",), "", 1.0, "")
    networks = (FrameNetwork(Function(f), *shared, n, float(H)) for f, n in ((forward, 1), (between, 2)))
    return Walk(Functions(DYffusion(leads), Gaussian(), 0.0, *networks), WalkSampler(**sampler))


def drawn(forecaster, horizon, members=2):
    """[e, horizon, side, side] of one window."""
    frames = np.random.default_rng(0).normal(3, 2, size=(1, 1, SIDE, SIDE, 1)).astype(np.float32)
    driver = Ensemble(forecaster, horizon, members)
    pieces = driver.pieces(WEIGHTS, jax.random.key(0), Batch(frames), members)
    return gather(pieces, members, 1, horizon)[:, 0, ..., 0], frames[0, 0, ..., 0]


@pytest.mark.parametrize(
    "options",
    [dict(), dict(refine=True), dict(draws="step", last="cold"),
     dict(name="ancestral")],
    ids=lambda options: ", ".join(map(str, options.values())) or "released",
)  # fmt: skip
def test_whole_leads_keep_their_bits_block_after_block(options):
    whole, _ = drawn(walk(**options), 2 * H + 1)
    fine, _ = drawn(walk(**options).between(S), (2 * H + 1) * S)
    rounding = 1e-5 if "last" in options else 0  # of a sum that the compiler fuses with what follows
    np.testing.assert_allclose(fine[:, S - 1 :: S], whole, rtol=0, atol=rounding)
    assert len(np.unique(fine[0].reshape(len(fine[0]), -1)[:, 0])) == len(fine[0])


def test_no_two_frames_share_a_draw_and_those_of_a_block_may():
    """An interpolator of noise alone: whatever is not its own draw is correlated with another frame."""
    refined, _ = drawn(walk(noise, refine=True).between(S), 2 * H * S)
    own = [frame for lead, frame in enumerate(refined[0], 1) if lead % (H * S)] + [*refined[1, :3]]
    correlation = np.corrcoef(np.reshape(own, (len(own), -1))) - np.eye(len(own))
    assert np.abs(correlation).max() < 5 / SIDE
    shared, _ = drawn(walk(noise, refine=True, draws="block").between(S), 2 * H * S)
    first, second = (
        np.delete(shared[0], [15, 31], axis=0)[part].reshape(15, -1) for part in (slice(15), slice(15, 30))
    )
    assert np.ptp(first, axis=0).max() == np.ptp(second, axis=0).max() == 0
    assert np.abs(np.corrcoef(first[0], second[0])[0, 1]) < 5 / SIDE


def test_frames_between_have_the_mean_of_the_process():
    """a^i x_0 at every lead, in the units of the data, within 4.5 standard errors over 60 members."""
    found, first = drawn(walk(refine=True).between(S), H * S, members=60)
    leads = np.arange(1, H * S + 1) / S
    expected = 3 + A ** leads[:, None, None] * (first - 3)
    error = (found.mean(axis=0) - expected).mean(axis=(1, 2)) / found.std(axis=0).mean(axis=(1, 2))
    assert np.abs(error[:-1]).max() < 4.5 / np.sqrt(60 * SIDE**2)


def test_steps_at_the_wanted_leads_are_the_frames():
    """Two steps between leads 0 and 1: with three substeps these frames are states, and cost nothing more."""
    leads = Leads(H, extra=2)
    plain, fine = walk(leads=leads), walk(leads=leads).between(3)
    drawn_more = 2 * (H - 1)
    assert fine.nfe_per_frame * fine.block == plain.nfe_per_frame * plain.block + drawn_more
    assert fine.block == 3 * H and fine.network_frames_per_frame == fine.nfe_per_frame
    assert walk(refine=True).between(3).nfe_per_frame == (3 * H - 3 + 3 * H - 1) / (3 * H)


def test_what_cannot_be_is_refused_before_anything_is_read(tmp_path, monkeypatch):
    run = SimpleNamespace(
        config=SimpleNamespace(method="standard"),
        system=SimpleNamespace(forecaster=lambda: SimpleNamespace(between=None)),
    )
    assert scoring.forecaster_of(run).between is None
    message = "^--substeps: expected 1 with the system 'standard', whose frames are at whole leads, found 8; leave it"
    with pytest.raises(ValueError, match=message):
        scoring.forecaster_of(run, 8)
    with pytest.raises(ValueError, match="^--substeps: expected 1 frame for each lead or more, found 0"):
        scoring.forecaster_of(run, 0)
    config = SimpleNamespace(window=SimpleNamespace(num_context=1), plain={})
    monkeypatch.setattr(commands.build, "load", lambda raw: config)
    monkeypatch.setattr(commands.run_directory, "check_trained", lambda *_: None)
    monkeypatch.setattr(commands.DataCard, "read", lambda path: None)
    monkeypatch.setattr(commands.build, "build", lambda *_: run)
    with pytest.raises(ValueError, match=message):
        commands.forecast(None, tmp_path, tmp_path / "is not there.npy", None, 8)
    assert not list(tmp_path.iterdir())
