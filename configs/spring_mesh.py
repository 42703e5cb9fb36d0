"""Spring mesh: DYffusion (Ruehling Cachay et al. 2023, arXiv 2306.01984), 10 x 10, 1 -> 134 frames, scored over 804.

    python -m dydiff_jax.main --config=configs/spring_mesh.py:dyffusion --workdir=runs/spring_mesh
    python -m dydiff_jax.main --config=configs/spring_mesh.py:dyffusion,size=tiny --workdir=runs/tiny

The argument is ``method[,size=...][,schedule=...][,data=...][,setting=...]``: any system (dynamical is the default);
size tiny or S, the paper's CNN. The mesh is simulated on first use. With ``data=ring`` the 15 test trajectories start
out of distribution, displaced by .35 to .45 of a spacing, and those of training stay as they are. ``data=published``
reads the sets of nn-benchmark from the folders --config.data.path, valid_path and test_path.
``standard,setting=ddpm`` and ``setting=mcvd`` are the paper's rivals (`base.SETTINGS`); there neither converged.

The numbers of `get_config` for dyffusion are the release's. Different are the weights of a forecast, an EMA after the
last step where the release has none and takes those of the best validation CRPS (--config.ema.decay=0.0 is without);
group norm for batch norm; and fixed points, which are forecast and not set. ``size=tiny`` is the experiment in
miniature for a CPU: every tenth frame, 1 -> 14 frames, scored over 42.
"""

import ml_collections

from configs import base

#: The network.
NETWORK = "cnn"
#: Dropout of the paper's networks, by method and role.
RATES = {"dyffusion": dict(interpolator=0.05, forecaster=0.0), "dropout": dict(forecaster=0.05)}


def get_config(argument: str = "") -> ml_collections.ConfigDict:
    """The config for ``--config=configs/spring_mesh.py:argument``."""
    method, keys = base.parse_argument(argument, NETWORK, data=tuple(DATA), setting=tuple(base.SETTINGS))
    config = base.get_config(method, keys["size"], keys["schedule"], NETWORK)
    config.data = dict(DATA[keys["data"]])
    config.dataset.update(split="given", crop=None, random_crop=False)
    config.codec.name = "identity"
    config.window.update(num_context=1, num_forecast=134)
    config.optimizer.update(learning_rate=4e-4, warmup_steps=0, weight_decay=1e-4, b2=0.99)
    config.train.update(steps=314_500, batch_size=64)  # 300 epochs of 67,100 windows
    config.evaluation.update(members=50, windows=15, horizon=804, saved=2)
    config.scores.leads = (1, 34, 67, 134, 268, 402, 536, 670, 804)
    if method == "dyffusion":
        config.system.forecaster.conditioning = "data"
        config.system.sampler.refine = True
    for role, rate in RATES.get(method, {}).items():
        config.networks[role].dropout = rate
    if "nfe" in config.system.get("sampler", {}):
        config.system.sampler.nfe = 134  # the steps of dyffusion; a multiple of the frames, for rolling
    if keys["size"] == "tiny":
        base.miniature(config)
        config.window.num_forecast = 14
        if config.data.name == "spring_mesh":
            config.data.update(interval=0.0781, substeps=10)
        config.optimizer.learning_rate = 2e-3
        config.train.update(steps=3500, batch_size=16)
        if method == "dyffusion":
            config.networks.interpolator.dropout = 0.02  # for half of the features
        config.evaluation.update(members=8, windows=30, horizon=42, chunk=120)
        config.scores.leads = (1, 7, 14, 28, 42)
        if "nfe" in config.system.get("sampler", {}):
            config.system.sampler.nfe = 28
    base.change_setting(config, keys["setting"])
    return config


SIMULATED = dict(
    name="spring_mesh",
    interval=0.00781,  # model time between frames; that of one step of the solver
    duration=6.28705,  # model time, 805 frames with the start
    trajectories=118,  # 100 of training
    valid=3,
    test=15,
    out_of_distribution=False,
    substeps=1,  # of the solver in an interval
    seed=0,
)

#: Options of a data source: data.spring_mesh and data.spring_mesh_file.
DATA = {
    "simulated": SIMULATED,
    "ring": SIMULATED | dict(out_of_distribution=True),
    "published": dict(name="spring_mesh_file", path="", valid_path="", test_path=""),
}
