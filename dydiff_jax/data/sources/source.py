"""What a data source is, and the registry of data sources."""

import pathlib
from typing import Protocol

from dydiff_jax.data.trajectories import Trajectories
from dydiff_jax.types import DataSpec


class Source(Protocol):
    """A data source: a frozen dataclass whose fields are its options."""

    def spec(self) -> DataSpec:
        """What its frames are, without opening the data: from the options, a header or a sidecar.

        Raises:
          FileNotFoundError: the files are not there.
          ValueError: a header is broken.
        """
        ...

    def load(self) -> Trajectories:
        """Open the trajectories, after making those that can be made and are not there."""
        ...


#: Name -> the frozen dataclass of the data source; `SOURCES[name](**options).load()` opens it.
SOURCES: dict[str, type[Source]] = {}


def register(name: str):
    """Class decorator: enter a data source under `name`."""

    def enter(source):
        SOURCES[name] = source
        return source

    return enter


def require_path(path: str, what: str) -> str:
    """The path that the user gave.

    Raises:
      FileNotFoundError: there is none in the options.
    """
    if not path:
        raise FileNotFoundError(f"path: expected {what}; give it with --config.data.path=PATH")
    return path


def local_path(path: str, what: str) -> pathlib.Path:
    """The local path that the user gave; `require_path` says what it raises."""
    return pathlib.Path(require_path(path, what)).expanduser()
