"""Reads one tensor from a PyTorch file without PyTorch, and without running anything that the file says.

Two formats: the zip archive (PyTorch 1.6 and later) and the older stream of pickles. Both describe the tensor
by a pickle, and a pickle can call any function. This reader admits three names, those that describe a tensor,
puts plain records in their place, and refuses every other name before anything is called. The numbers stay on
disk: the result is memory-mapped.
"""

import collections
import pathlib
import pickle
import struct
import zipfile
from typing import Any, NamedTuple

import numpy as np

DTYPES = {
    "DoubleStorage": np.dtype("<f8"),
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
}
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001
#: What the parsers raise on bytes that are not what they expect; MemoryError for an absurd length.
MALFORMED = (
    pickle.UnpicklingError, zipfile.BadZipFile, struct.error, EOFError, LookupError, TypeError, ValueError,
    AttributeError, ArithmeticError, RuntimeError, MemoryError,
)  # fmt: skip
#: Size of the fixed part of a file header inside a zip archive, and where it holds two lengths.
ZIP_HEADER, ZIP_LENGTHS = 30, slice(26, 30)


class Storage(NamedTuple):
    """A block of numbers in the file."""

    dtype: np.dtype
    key: str
    size: int


class Tensor(NamedTuple):
    """A view of a block: first number, shape and strides, counted in numbers."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_tensor(path: pathlib.Path) -> np.ndarray:
    """The tensor of a file written by `torch.save(tensor, path)`, memory-mapped and read-only.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is cut short, is no PyTorch file, asks for a name that no tensor needs, or holds
        something else than one tensor.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        read = _read_zip if zipfile.is_zipfile(path) else _read_legacy
        return read(path)
    except MALFORMED as error:
        raise ValueError(f"{path}: not a whole PyTorch file of one tensor: {error}") from error


class _Unpickler(pickle.Unpickler):
    """Builds `Tensor` and `Storage` records; knows no function, no class and no module of this process."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild_tensor
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        raise pickle.UnpicklingError(
            f"it asks for {module}.{name}, which no plain tensor needs; nothing was run. Save the tensor "
            "alone, as torch.save(tensor, path)"
        )

    def persistent_load(self, pid: tuple) -> Storage:
        kind, dtype, key, _, size, *view = pid
        if kind != "storage" or not isinstance(dtype, np.dtype) or any(part is not None for part in view):
            raise pickle.UnpicklingError(f"unknown block {pid}")
        return Storage(dtype, str(key), int(size))


def _rebuild_tensor(storage, offset, shape, strides, requires_grad, hooks, metadata=None) -> Tensor:
    if not isinstance(storage, Storage):
        raise pickle.UnpicklingError(f"expected a tensor's numbers, found {type(storage).__name__}")
    numbers = (offset, *shape, *strides)
    if len(shape) != len(strides) or not all(isinstance(n, int) and n >= 0 for n in numbers):
        raise pickle.UnpicklingError(f"a tensor of shape {shape} and strides {strides}")
    return Tensor(storage, offset, tuple(shape), tuple(strides))


def _load(file) -> Tensor:
    found = _Unpickler(file, encoding="utf-8").load()
    if not isinstance(found, Tensor):
        raise pickle.UnpicklingError(f"expected one tensor, found {type(found).__name__}")
    return found


def _read_zip(path: pathlib.Path) -> np.ndarray:
    with zipfile.ZipFile(path) as archive:
        folder = archive.namelist()[0].partition("/")[0]
        with archive.open(f"{folder}/data.pkl") as file:
            tensor = _load(file)
        if f"{folder}/byteorder" in archive.namelist() and archive.read(f"{folder}/byteorder") != b"little":
            raise pickle.UnpicklingError("it was written on a big-endian machine")
        entry = archive.getinfo(f"{folder}/data/{tensor.storage.key}")
    if entry.compress_type != zipfile.ZIP_STORED:
        raise pickle.UnpicklingError("its numbers are compressed; PyTorch stores them plain")
    with open(path, "rb") as file:
        file.seek(entry.header_offset)
        name, extra = struct.unpack("<HH", file.read(ZIP_HEADER)[ZIP_LENGTHS])
    return _map(path, tensor, entry.header_offset + ZIP_HEADER + name + extra, entry.file_size)


def _read_legacy(path: pathlib.Path) -> np.ndarray:
    with open(path, "rb") as file:
        if (pickle_magic := _plain(file)) != LEGACY_MAGIC:
            raise pickle.UnpicklingError(f"it begins with {str(pickle_magic)[:40]!r}")
        if (protocol := _plain(file)) != LEGACY_PROTOCOL:
            raise pickle.UnpicklingError(f"format {protocol} instead of {LEGACY_PROTOCOL}")
        if not _plain(file)["little_endian"]:
            raise pickle.UnpicklingError("it was written on a big-endian machine")
        tensor = _load(file)
        if (keys := _plain(file)) != [tensor.storage.key]:
            raise pickle.UnpicklingError(f"expected one block of numbers, found {keys}")
        (size,) = struct.unpack("<q", file.read(8))
        begin = file.tell()
    return _map(path, tensor, begin, size * tensor.storage.dtype.itemsize)


def _plain(file) -> Any:
    return _Unpickler(file, encoding="utf-8").load()


def _map(path: pathlib.Path, tensor: Tensor, begin: int, length: int) -> np.ndarray:
    """The tensor's view of `length` bytes from byte `begin` on; it may not reach beyond them."""
    storage, end = tensor.storage, path.stat().st_size
    if begin + length > end:
        raise pickle.UnpicklingError(f"expected {begin + length} bytes, found {end}: the file is cut short")
    steps = ((n - 1) * stride for n, stride in zip(tensor.shape, tensor.strides, strict=True))
    beyond = tensor.offset + sum(steps) >= storage.size
    if 0 in tensor.shape or beyond or storage.size * storage.dtype.itemsize > length:
        raise pickle.UnpicklingError(
            f"a tensor of shape {tensor.shape} does not fit {storage.size} numbers in {length} bytes"
        )
    numbers = np.memmap(path, storage.dtype, mode="r", offset=begin, shape=(storage.size,))
    strides = [stride * storage.dtype.itemsize for stride in tensor.strides]
    start = numbers[tensor.offset :]
    return np.lib.stride_tricks.as_strided(start, tensor.shape, strides, subok=True, writeable=False)
