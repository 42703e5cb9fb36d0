"""Pickle a read-only memmap as (filename, offset), not by value.

Importing the module makes it so for every read-only `np.memmap` that is pickled, views among them.
"""

import copyreg
import functools
import mmap
import os

import numpy as np


def _reduce(array: np.memmap) -> tuple:
    """How a memory map is pickled: by name where it is read-only, else by value as any array."""
    if array._mmap is None or array.filename is None or array.mode != "r":
        return np.array(array).__reduce__()
    pages = np.frombuffer(array._mmap, np.uint8)
    first_page = array.offset - array.offset % mmap.ALLOCATIONGRANULARITY
    begin = first_page + array.__array_interface__["data"][0] - pages.__array_interface__["data"][0]
    return _reopen, (os.fspath(array.filename), begin, array.dtype, array.shape, array.strides)


def _reopen(name: str, begin: int, dtype: np.dtype, shape: tuple, strides: tuple) -> np.ndarray:
    """The array that begins at byte `begin` of a file."""
    return np.ndarray(shape, dtype, buffer=_bytes(name), offset=begin, strides=strides)


@functools.cache
def _bytes(name: str) -> np.memmap:
    """All bytes of a file: one map, however many arrays are views of it."""
    return np.memmap(name, np.uint8, mode="r")


copyreg.pickle(np.memmap, _reduce)
