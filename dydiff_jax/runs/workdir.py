"""The work directory: one configuration, written whole, that a later run must match."""

import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

from dydiff_jax.distributed import collectives
from dydiff_jax.runs import files


def create_or_verify(workdir: str | os.PathLike, config_json: str, free: Sequence[str] = ()) -> None:
    """Makes the work directory and writes ``config.json``, or checks the one that is there.

    The directory is one that all processes of the run see. Sections of the configuration that ``free`` names may
    differ from those that the run began with.

    Raises:
      OSError: the directory cannot be made or written.
      ValueError: the directory holds another configuration (each difference is shown), a ``config.json``
        that is not JSON, or checkpoints without a configuration.
    """
    workdir = pathlib.Path(workdir)
    collectives.on_main(lambda: _claim(workdir, json.loads(config_json), free))
    if not (workdir / "config.json").exists():
        raise FileNotFoundError(
            f"{workdir}: this process does not see the config.json that process 0 has written; give a work "
            "directory that all hosts share, such as a mounted bucket"
        )


def _claim(workdir: pathlib.Path, config: Any, free: Sequence[str]) -> None:
    path = workdir / "config.json"
    if path.exists():
        _check_same(path, config, free)
        return
    if (workdir / "checkpoints").exists():
        raise ValueError(
            f"{workdir} holds checkpoints but no config.json: restore the file or use another directory"
        )
    workdir.mkdir(parents=True, exist_ok=True)
    files.write_json(path, config)


def _check_same(path: pathlib.Path, config: Any, free: Sequence[str]) -> None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}): use another work directory") from error
    found, config = ({k: v for k, v in c.items() if k not in free} for c in (found, config))
    lines = differences(found, config)
    if lines:
        listing = "\n".join(f"  {line}" for line in lines)
        raise ValueError(
            f"{path} holds another configuration:\n{listing}\n"
            "Use another work directory, or run with the configuration of this one to resume it."
        )


def differences(found: Any, asked: Any, prefix: str = "") -> list[str]:
    """What differs between two JSON values, a line for each key: ``model.width: 64 there, 128 asked for``."""
    if isinstance(found, dict) and isinstance(asked, dict):
        lines = []
        for key in sorted(found.keys() | asked.keys()):
            name = f"{prefix}.{key}" if prefix else key
            if key not in asked:
                lines.append(f"{name}: {json.dumps(found[key])} there, absent now")
            elif key not in found:
                lines.append(f"{name}: absent there, {json.dumps(asked[key])} asked for")
            else:
                lines += differences(found[key], asked[key], name)
        return lines
    return [] if found == asked else [f"{prefix}: {json.dumps(found)} there, {json.dumps(asked)} asked for"]
