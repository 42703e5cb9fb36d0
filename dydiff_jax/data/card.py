"""What a run knows of its data: statistics.json of a work directory."""

import json
import pathlib
from dataclasses import dataclass

from dydiff_jax.types import DataSpec


@dataclass(frozen=True)
class DataCard:
    """The frames of a training window, and the statistics that the codec needs.

    Attributes:
      spec: of a training window: ``frame_shape`` is that of its crop.
      mean: of each channel over the training frames; () where the codec needs none.
      std: of each channel over the training frames, likewise.
    """

    spec: DataSpec
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def to_json(self) -> dict:
        """The card as JSON values."""
        return {**self.spec._asdict(), "mean": self.mean, "std": self.std}

    @classmethod
    def read(cls, path: pathlib.Path) -> "DataCard":
        """The card of a trained run.

        Raises:
          FileNotFoundError: there is none.
        """
        if not path.exists():
            raise FileNotFoundError(f"{path}: expected the statistics that training writes; train first")
        values = json.loads(path.read_text(encoding="utf-8"))
        values = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
        mean, std = values.pop("mean"), values.pop("std")
        return cls(DataSpec(**values), mean, std)
