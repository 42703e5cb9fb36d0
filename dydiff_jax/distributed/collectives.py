"""Several processes, one run: what only process 0 does, and what all must know.

`on_main` and `gather_to_host` are collectives where there are several processes: all of them call these, in the same
order.
"""

import contextlib
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import TypeVar

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

from dydiff_jax.runs import exit_codes

T = TypeVar("T")


class RemoteError(RuntimeError):
    """Raised on the other processes when process 0 fails."""


def is_main() -> bool:
    """Whether this process writes files and prints. Never guards a collective."""
    return jax.process_index() == 0


def on_main(act: Callable[[], T]) -> T:
    """Run ``act`` on process 0; every process returns what it returned, or raises if it raised.

    Args:
      act: makes files, or looks at them, and returns something that JSON holds.

    Raises:
      RemoteError: on the other processes, with the message of the error that process 0 raises.
    """
    if jax.process_count() == 1:
        return act()
    error, outcome = None, {"value": None, "error": None}
    if is_main():
        try:
            outcome["value"] = act()
        except Exception as raised:  # raised again below, once all processes know
            error, outcome["error"] = raised, f"{type(raised).__name__}: {raised}"
    outcome = json.loads(_broadcast(json.dumps(outcome).encode()))
    if error is not None:
        raise error
    if outcome["error"] is not None:
        raise RemoteError(f"process 0 failed: {outcome['error']}")
    return outcome["value"]


def print_main(text: str) -> None:
    """Print once for all processes."""
    if is_main():
        print(text, flush=True)


def _broadcast(text: bytes) -> bytes:
    """The bytes of process 0, on every process."""
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    padded = np.frombuffer(text.ljust(size)[:size], np.uint8)
    return np.asarray(multihost_utils.broadcast_one_to_all(padded)).tobytes()


def gather_to_host(x: jax.Array) -> np.ndarray:
    """The whole of an array that is spread over the devices of all processes, on every one."""
    if jax.process_count() == 1:
        return np.asarray(x)
    return np.asarray(multihost_utils.process_allgather(x, tiled=True))


@contextlib.contextmanager
def exit_on_user_error() -> Iterator[None]:
    """Print an expected error without a traceback and exit with status 1.

    One of several processes leaves at once, whatever the error: to wait for the others, as Python does at its end,
    would take minutes.
    """
    try:
        yield
    except (ValueError, OSError, FloatingPointError, ImportError, RemoteError) as error:
        logging.debug("where the error arose", exc_info=True)
        print(
            f"{type(error).__name__}: {error}\n(--verbosity=1 shows where it arose)",
            file=sys.stderr,
            flush=True,
        )
        _leave()
    except Exception:
        if jax.distributed.is_initialized():
            traceback.print_exc()
            _leave()
        raise


def _leave() -> None:
    if jax.distributed.is_initialized():
        os._exit(exit_codes.FAILED)
    sys.exit(exit_codes.FAILED)
