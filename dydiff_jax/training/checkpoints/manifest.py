"""The integrity manifest of a checkpoint: size and SHA-256 of every file, in ``manifest.json`` of its folder.

A flipped bit, a file cut short and a lost file are found before the values are used.
"""

import functools
import hashlib
import json
import pathlib
from concurrent import futures
from typing import Any

from dydiff_jax.runs import files

NAME = "manifest.json"

#: hashlib releases the interpreter's lock, so threads hash files side by side.
THREADS = 8


def write(folder: pathlib.Path) -> None:
    """Write the manifest of all files below a folder; it appears complete or not at all.

    Raises:
      OSError: a file cannot be read, or the manifest cannot be written.
    """
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    names = [name for name in names if name != NAME]
    with futures.ThreadPoolExecutor(THREADS) as pool:
        entries = list(pool.map(functools.partial(_entry, folder), names))
    files.write_json(folder / NAME, {"files": entries, "sha256": _digest_of_entries(entries)})


def verify(folder: pathlib.Path, part: str | None = None) -> None:
    """Compare a folder with its manifest.

    Args:
      folder: of the checkpoint.
      part: the subfolder that is compared, together with the files beside it; all of them by default.

    Raises:
      ValueError: names a file and what is wrong with it.
    """
    entries = [
        entry
        for entry in _entries(folder / NAME)
        if part is None or "/" not in entry["name"] or entry["name"].startswith(f"{part}/")
    ]
    with futures.ThreadPoolExecutor(THREADS) as pool:
        wrong = [text for text in pool.map(functools.partial(_check, folder), entries) if text is not None]
    if wrong:
        raise ValueError(wrong[0] + (f", and {len(wrong) - 1} more files" if wrong[1:] else ""))


def digest(folder: pathlib.Path) -> str:
    """The SHA-256 of the manifest's entries, which tells one checkpoint from every other.

    Raises:
      ValueError: the manifest is missing or damaged.
    """
    return _digest_of_entries(_entries(folder / NAME))


def _entries(path: pathlib.Path) -> list[dict[str, Any]]:
    try:
        found = json.loads(path.read_bytes())
        if found["sha256"] != _digest_of_entries(found["files"]):
            raise ValueError("another content")
        return found["files"]
    except FileNotFoundError as error:
        raise ValueError(f"{path}: missing") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a manifest ({type(error).__name__}: {error})") from error


def _entry(folder: pathlib.Path, name: str) -> dict[str, Any]:
    return {"name": name, "bytes": (folder / name).stat().st_size, "sha256": _digest(folder / name)}


def _check(folder: pathlib.Path, entry: dict[str, Any]) -> str | None:
    path = folder / entry["name"]
    try:
        size = path.stat().st_size
        if size != entry["bytes"]:
            return f"{path}: {'shorter' if size < entry['bytes'] else 'longer'}, {size} of {entry['bytes']} bytes"
        return (
            None if _digest(path) == entry["sha256"] else f"{path}: another content, of the same {size} bytes"
        )
    except FileNotFoundError:
        return f"{path}: missing"
    except OSError as error:
        return f"{path}: cannot be read ({error.strerror})"


def _digest_of_entries(entries: list[dict[str, Any]]) -> str:
    return hashlib.sha256(json.dumps(entries).encode()).hexdigest()


def _digest(path: pathlib.Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
