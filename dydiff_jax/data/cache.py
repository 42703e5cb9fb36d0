"""Cache of arrays, written atomically."""

import contextlib
import dataclasses
import fcntl
import io
import os
import pathlib
import zipfile
import zlib

import numpy as np

from dydiff_jax.runs import files

#: What numpy and zipfile raise for a file that is cut short or changed.
BROKEN = (ValueError, KeyError, EOFError, OSError, RuntimeError, zipfile.BadZipFile, zlib.error)


def cache_root(chosen: str | None) -> pathlib.Path:
    """`chosen`, else $DYDIFF_JAX_CACHE, else dydiff_jax in $XDG_CACHE_HOME or ~/.cache."""
    if chosen is not None:
        return pathlib.Path(chosen).expanduser()
    if "DYDIFF_JAX_CACHE" in os.environ:
        return pathlib.Path(os.environ["DYDIFF_JAX_CACHE"]).expanduser()
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return pathlib.Path(home).expanduser() / "dydiff_jax"


@contextlib.contextmanager
def locked(folder: pathlib.Path):
    """Make the folder and hold it alone; a second process waits, and a dead one's hold ends with it."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@dataclasses.dataclass(frozen=True)
class Part:
    """One array of the cache: where it is and what it must look like."""

    path: pathlib.Path
    shape: tuple[int, ...]

    @property
    def moments(self) -> pathlib.Path:
        """Where the moments of its frames are kept, beside it: trajectory_003.moments.npz."""
        return self.path.with_suffix(".moments.npz")

    def write(self, array: np.ndarray) -> None:
        """Save the array atomically."""
        files.write_npy(self.path, array)

    def open(self) -> np.ndarray:
        """The array, memory-mapped; moments that are older than it are removed.

        Raises:
          ValueError: the file is cut short, is no array, or holds another shape.
        """
        array = open_npy(self.path)
        if self.moments.exists() and self.moments.stat().st_mtime_ns < self.path.stat().st_mtime_ns:
            self.moments.unlink(missing_ok=True)
        if array.shape != self.shape:
            raise ValueError(
                f"{self.path}: expected an array of shape {self.shape}, found {array.shape}; delete the file "
                "and run again, and it is made anew"
            )
        return array


def open_npy(path: pathlib.Path):
    """A .npy file, memory-mapped, or a .npz archive; a broken one is named.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is cut short, holds no plain array, or holds Python objects.
    """
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    except BROKEN as error:
        raise broken(path, error) from error


def broken(path: pathlib.Path, error: Exception) -> ValueError:
    """The error that names a file that cannot be read."""
    return ValueError(
        f"{path}: not a whole .npy or .npz file of numbers ({error}); delete or replace the file and run again"
    )


def npz_arrays(contents: bytes) -> dict[str, np.ndarray]:
    """The arrays in the contents of an .npz file.

    Raises:
      ValueError: they are broken.
    """
    try:
        with np.load(io.BytesIO(contents), allow_pickle=False) as archive:
            return {name: archive[name] for name in archive}
    except BROKEN as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error


def npz_header(path: pathlib.Path, key: str) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and dtype of one array of an .npz file, without reading its numbers."""
    with zipfile.ZipFile(path) as archive, archive.open(f"{key}.npy") as file:
        version = np.lib.format.read_magic(file)
        read = (
            np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        )
        shape, _, dtype = read(file)
    return shape, dtype
