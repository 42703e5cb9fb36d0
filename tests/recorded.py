"""Short runs of every method on two flows, and the figures that they are known to give.

    python -m tests.recorded            says for each run whether it still has the recorded bits on this machine
    python -m tests.recorded --write    records them anew

Other processors and compilers, and other options of one, round differently: this command sets those of the record, the
tests compare losses, norms and moments with a tolerance.
"""

import hashlib
import json
import os
import pathlib
import sys
import tempfile

if __name__ == "__main__":
    os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=1 --xla_cpu_use_fusion_emitters=false"
    import tests.conftest  # noqa: F401, the environment of the tests, before jax looks at it

import jax
import numpy as np

from configs import kolmogorov
from dydiff_jax import build
from dydiff_jax.data.card import DataCard
from dydiff_jax.distributed.mesh import abstract_params, make_mesh
from dydiff_jax.runs import commands
from dydiff_jax.training.checkpoints import loading
from tests import small

FILE = pathlib.Path(__file__).parent / "files" / "recorded.json"
METHODS = ("standard", "dynamical", "rolling", "rolling_dynamical", "regression")
FLOWS = ("turbulence", "kolmogorov")

SHORT = {
    "mesh.data": 1,
    "train.steps": 20,
    "train.batch_size": 4,
    "train.log_every": 1,
    "train.checkpoint_every": 20,
    "optimizer.warmup_steps": 5,
    "evaluation.members": 2,
    "evaluation.windows": 4,
    "evaluation.saved": 4,
    "evaluation.figures": (),
} | {name.replace("__", "."): value for name, value in small.NETWORK.items()}
#: So soon after its start the flow has not yet made rounding visible.
KOLMOGOROV = {
    "data.trajectories": 6,
    "data.spin_up": 0.0,
    "data.duration": 22.5,
    "evaluation.horizon": 6,
    "scores.fsd_samples": 4,
    "scores.leads": (1, 6),
}


def config(flow, method):
    """The config of one run."""
    if flow == "turbulence":
        made = small.config(f"{method},size=tiny", evaluation__horizon=8)
    else:
        made = kolmogorov.get_config(f"{method},size=tiny")
        made.update_from_flattened_dict(KOLMOGOROV)
        if "sampler" in made.system:
            made.system.sampler.nfe = 4
    made.update_from_flattened_dict(SHORT)
    return made


def digest(tree):
    """A hash of all bits."""
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        found.update(np.asarray(leaf).tobytes())
    return found.hexdigest()


def norm(tree):
    """The root of the sum of squares, in double precision."""
    return float(
        np.sqrt(sum(np.sum(np.square(np.asarray(leaf, np.float64))) for leaf in jax.tree.leaves(tree)))
    )


def measure(raw, directory, folder):
    """The figures of a finished run: its work directory and the folder of its evaluation."""
    loaded = build.load(raw)
    (stage,) = build.build(loaded, DataCard.read(directory / "statistics.json")).stages
    mesh, checkpoints = make_mesh(loaded.mesh), directory / "checkpoints" / stage.name
    abstract = abstract_params(stage.objective.init, mesh, stage.objective.rules)
    parts = loading.load_parts(checkpoints / str(loaded.train.steps), {"params": abstract, "ema": abstract})
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    header = json.loads((folder / "metrics.json").read_text())
    with np.load(folder / "forecasts.npz") as arrays:
        ensemble = arrays["ensemble"]
    return {
        "losses": [json.loads(line)["loss"] for line in lines],
        "params": digest(parts["params"]),
        "ema": digest(parts["ema"]),
        "forecast": digest(ensemble),
        "params_norm": norm(parts["params"]),
        "ema_norm": norm(parts["ema"]),
        "forecast_shape": list(ensemble.shape),
        "forecast_mean": float(ensemble.astype(np.float64).mean()),
        "forecast_std": float(ensemble.astype(np.float64).std()),
        "crps": header["scores"][loaded.method]["crps"]["mean"],
    }


def main():
    """Compare every run with its record, bit for bit, or record it."""
    known, found = json.loads(FILE.read_text()), {}
    with tempfile.TemporaryDirectory() as home:
        for flow in FLOWS:
            for method in METHODS:
                raw, directory = config(flow, method), pathlib.Path(home) / flow / method
                name = f"{flow}/{method}"
                found[name] = measure(raw, directory, commands.train(raw, directory))
                same = [key for key, value in found[name].items() if value == known.get(name, {}).get(key)]
                other = sorted(found[name].keys() - set(same))
                print(f"{name}: {'the same bits' if not other else f'differs in {other}'}", flush=True)
    if sys.argv[1:] == ["--write"]:
        FILE.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
