"""Your own trajectories: a folder of .npy, .npz or zarr files, each [frames, h, w, c] in physical units.

    python -m dydiff_jax.main --config=configs/folder.py:dynamical,size=tiny --workdir=runs/mine \\
        --config.data.path=DIR --config.window.num_context=4 --config.window.num_forecast=6

The argument is ``method[,size=...][,schedule=...]``. What else differs from base.py for your data goes on the
command line or here.
"""

import ml_collections

from configs import base


def get_config(argument: str = "") -> ml_collections.ConfigDict:
    """The config for ``--config=configs/folder.py:argument``."""
    method, keys = base.parse_argument(argument)
    config = base.get_config(method, keys["size"], keys["schedule"])
    config.data = dict(name="folder", path="")
    del config.dataset.crop
    config.dataset.crop = ml_collections.config_dict.placeholder(int)  # None, that a command line can set
    config.dataset.random_crop = False
    if keys["size"] == "tiny":
        base.miniature(config)
    return config
