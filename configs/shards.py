"""Shards of trajectories that ``dydiff_jax.export`` wrote, as zarr or ArrayRecord, local or in object storage.

    python -m dydiff_jax.export --config=configs/turbulence.py --out=DIR --format=zarr
    python -m dydiff_jax.main --config=configs/shards.py:dynamical --workdir=runs/mine --config.data.path=DIR

The argument is ``method[,size=...][,schedule=...]``. ``DIR`` may be gs://, s3:// or http://. What else differs from
base.py for your data goes on the command line or here; windows are whole frames unless --config.dataset.crop is set.
"""

import ml_collections

from configs import folder


def get_config(argument: str = "") -> ml_collections.ConfigDict:
    """The config for ``--config=configs/shards.py:argument``: that of a folder but for the source."""
    config = folder.get_config(argument)
    del config.data
    config.data = dict(name="shards", path="")
    return config
