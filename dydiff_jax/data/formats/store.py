"""Small files of a data set by name, in a local folder or in object storage: gs://, s3://, http:// and https://."""

import functools
import pathlib

import tensorstore as ts

#: What an object store that does not answer may cost: waits of 1, 2, 4, 8 and 16 seconds.
RETRIES = {"max_retries": 5, "initial_delay": "1s", "max_delay": "16s"}
#: Bytes of shard indexes and chunks that a process keeps.
CACHE = 256 * 2**20

#: What tensorstore raises: every status that is not OK becomes one of these.
FAILURES = (ValueError, OSError, RuntimeError, TimeoutError)


class StoreError(ValueError):
    """A store that cannot be opened, read or written; the message names it."""


def is_remote(path: str) -> bool:
    """Whether a path names object storage rather than a local folder."""
    return "://" in path


@functools.cache
def context() -> ts.Context:
    """The cache and the patience that all stores of this process share."""
    retries = {f"{kind}_request_retries": RETRIES for kind in ("gcs", "s3", "http")}
    return ts.Context({"cache_pool": {"total_bytes_limit": CACHE}, **retries})


def spec(path: str) -> str | dict:
    """How tensorstore is told of a folder."""
    if is_remote(path):
        return path.rstrip("/") + "/"
    return {"driver": "file", "path": f"{pathlib.Path(path).expanduser().resolve()}/"}


def read(path: str, name: str) -> bytes:
    """One whole file of a folder.

    Raises:
      FileNotFoundError: it is not there.
      StoreError: the store does not answer, or does not let us read.
    """
    try:
        found = _open(path).read(name).result()
    except FAILURES as error:
        raise StoreError(f"{file_name(path, name)}: cannot be read: {advice(path, error)}") from error
    if found.state != "value":
        raise FileNotFoundError(f"{file_name(path, name)}: no such file")
    return found.value


def write(path: str, name: str, value: bytes) -> None:
    """One file of a folder, written atomically.

    Raises:
      StoreError: the store does not answer, or does not let us write.
    """
    try:
        _open(path).write(name, value).result()
    except FAILURES as error:
        raise StoreError(f"{file_name(path, name)}: cannot be written: {advice(path, error)}") from error


def check_free(path: str) -> None:
    """Raises a FileExistsError if a folder is there, or object storage holds something under its name."""
    if is_remote(path):
        try:
            taken = bool(_open(path).list().result())
        except FAILURES as error:
            raise StoreError(f"{path}: cannot be listed: {advice(path, error)}") from error
    else:
        taken = pathlib.Path(path).expanduser().exists()
    if taken:
        raise FileExistsError(f"{path}: expected a folder that is not there yet; name another, or remove it")


def make(path: str) -> None:
    """Makes a new local folder; object storage needs none."""
    if not is_remote(path):
        pathlib.Path(path).expanduser().mkdir(parents=True)


def file_name(path: str, name: str) -> str:
    """How a file of a folder is called in messages."""
    return f"{path.rstrip('/')}/{name}"


def advice(path: str, error: Exception) -> str:
    """What failed, and what to look at."""
    what = str(error).split(" [tensorstore_spec=")[0]
    hint = (
        "; is the address right, the network up, and are there credentials for it?" if is_remote(path) else ""
    )
    return f"{what}{hint}"


def _open(path: str) -> ts.KvStore:
    return ts.KvStore.open(spec(path), context=context()).result()
