"""Finished runs made up on disk: what training and evaluation leave, without either."""

import functools
import json

import numpy as np

from dydiff_jax.comparison import results
from dydiff_jax.evaluation import scores as scoring

K, SIDE, WINDOWS, SAVED, MEMBERS = 5, 16, 6, 2, 3
OPTIONS = scoring.ScoreOptions(leads=(1, 2, 5), fsd_samples=4, fsd_field=0, mse_scale=7.0, flow=True)


#: Options of their own that methods have, and methods without noise.
PROCESS = {"dynamical": {"eta": 0.5}, "rolling": {"clock": "init", "p_lin": 0.1}}
SINGLE = ("regression",)


def truth(seed=0, frames=K):
    """Travelling waves [windows, 1 + frames, h, w, 2], the last known frame first."""
    rng = np.random.default_rng(seed)
    x, t = 2 * np.pi * np.arange(SIDE) / SIDE, np.arange(1 + frames)[:, None, None] / 5
    phase = rng.uniform(0, 2 * np.pi, (WINDOWS, 2, 1, 1, 1))
    u = np.sin(x[:, None] + t + phase[:, 0]) + 0 * x
    v = np.cos(2 * x - t + phase[:, 1]) + 0 * x[:, None]
    return np.stack([u, v], axis=-1).astype(np.float32)


def config(method, seed, **changes):
    """The sections of a config that a comparison reads, as config.json holds them."""
    diffusion = {
        "process": {"prediction": "v", **PROCESS.get(method, {})},
        "schedule": {"name": "cosine"},
        "sampler": {"name": "ddim", "nfe": 20},
    }
    made = {
        "seed": seed,
        "system": {"name": method, **({} if method in SINGLE else diffusion)},
        "networks": {"denoiser": {"name": "uvit", "size": "tiny", "channels": [48, 96]}},
        "stages": {},
        "data": {"name": "waves", "seed": 0},
        "window": {"num_context": 1, "num_forecast": K},
        "train": {"steps": 100, "batch_size": 4, "log_every": 10},
        "evaluation": {"members": MEMBERS, "windows": WINDOWS, "seed": 0},
        "scores": {},
    }
    for key, value in changes.items():
        *sections, name = key.split("__")
        section = made
        for part in sections:
            section = section[part]
        section[name] = value
    return made


def run(directory, method, seed, error=0.2, step=None, frames=K, split="test", options=OPTIONS, **changes):
    """The directory of a run with one evaluation, whose members lie ``error`` beside the truth; its results folder."""
    values = config(method, seed, **changes)
    step = values["train"]["steps"] if step is None else step
    folder = directory / "eval" / f"{'' if split == 'test' else 'valid_'}step_{step}"
    folder.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(values))
    (directory / "statistics.json").write_text(json.dumps({"mean": [0.0, 0.0], "std": [1.0, 1.0]}))
    rng = np.random.default_rng(100 * seed + len(method))
    known = truth(frames=frames)
    context, future = known[:, :1], known[:, 1:]
    members = 1 if method in SINGLE else values["evaluation"]["members"]
    sampler = {name: values["system"][name] for name in ("sampler",) if name in values["system"]}
    noise = rng.normal(size=(members, *future.shape)) * np.arange(1, frames + 1)[:, None, None, None]
    ensemble = (future + error * noise).astype(np.float32)
    reference = truth(seed=1)[:, 0]
    header = {
        "method": method,
        "size": "tiny",
        "split": split,
        "step": step,
        "seed": seed,
        "members": values["evaluation"]["members"],
        "windows": WINDOWS,
        "leads": list(range(1, frames + 1)),
        "interval": 1.5,
        "time_unit": "s",
        "unit": "m/s",
        "fields": ["u", "v"],
        "kind": "field",
        "system": sampler,
        "evaluation": values["evaluation"],
        "score_options": {"leads": list(OPTIONS.leads)},
        "cost": {
            "networks": 1,
            "parameters": 632744,
            "training_steps": values["train"]["steps"],
            "training_gflop": 250.0,
            "training_seconds": 60.0 + seed,
            "steps_per_second": 1.7,
            "nfe_per_frame": sampler["sampler"]["nfe"] if sampler else 1,
            "network_frames_per_frame": 24.0 if sampler else 1.2,
            "gflop_per_frame": 1.5,
            "sampling_seconds": 9.0,
            "frames": 90,
            "device": "1 x cpu",
        },
        "command": f"python -m dydiff_jax.main --config=waves.py:{method} --workdir={directory}",
    }
    scores = {
        method: scoring.score(ensemble, future, options, "m/s", reference),
        "persistence": persistence(frames, options),
    }
    scoring.write_metrics(folder / "metrics.json", header, scores)
    kept = {"context": context[:SAVED], "truth": future[:SAVED], "ensemble": ensemble[:, :SAVED]}
    np.savez(folder / "forecasts.npz", **kept, leads=header["leads"])
    (folder / "table.md").write_text("")
    return folder


@functools.cache
def persistence(frames, options):
    """The scores of the last known frame, which are the same for all runs."""
    known = truth(frames=frames)
    still = np.repeat(known[None, :, :1], frames, axis=2)
    return scoring.score(still, known[:, 1:], options, "m/s", truth(seed=1)[:, 0])


def entry(home, method, seed, swept=None, **options):
    """A run below ``home`` as it takes part in a comparison."""
    swept = swept or {}
    label = ", ".join([method, *(f"{key.rpartition('.')[2]} {value}" for key, value in swept.items())])
    directory = home / method / ",".join(f"{key}={value}" for key, value in swept.items()) / f"seed_{seed}"
    changes = {key.replace(".", "__"): value for key, value in swept.items()}
    folder = run(directory, method, seed, **changes, **options)
    command = json.loads((folder / "metrics.json").read_text())["command"]
    return results.Entry(label, method, swept, directory, folder, command)
