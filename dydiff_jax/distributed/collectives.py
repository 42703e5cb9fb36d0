"""Several processes, one run: what only process 0 does, and what all must know.

`on_main`, `compile_on_all` and `gather_to_host` are collectives where there are several processes: all of them call
these, in the same order.
"""

import contextlib
import itertools
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
from orbax.checkpoint import multihost

from dydiff_jax.runs import exit_codes

T = TypeVar("T")
#: Milliseconds for which a process waits for the others: a week. Where one dies, all end long before (`cluster.start`).
_PATIENCE = 7 * 24 * 3600 * 1000
#: Numbers the calls of `on_main`, which all processes make in the same order.
_CALLS = itertools.count()


class RemoteError(RuntimeError):
    """Raised on the other processes when process 0 fails."""


def is_main() -> bool:
    """Whether this process writes files and prints. Never guards a collective."""
    return jax.process_index() == 0


def on_main(act: Callable[[], T]) -> T:
    """Run ``act`` on process 0; every process returns what it returned, or raises if it raised.

    What process 0 says goes through the service by which the processes found each other, not through their devices,
    which may still be at work. A call must not depend on what this process alone has seen, such as a file.

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
    name, service = f"dydiff_jax/on_main/{next(_CALLS)}", multihost.get_jax_distributed_client()
    if is_main():
        service.key_value_set(name, json.dumps(outcome))
    outcome = json.loads(service.blocking_key_value_get(name, _PATIENCE))
    service.wait_at_barrier(name, _PATIENCE)
    if error is not None:
        raise error
    if outcome["error"] is not None:
        raise RemoteError(f"process 0 failed: {outcome['error']}")
    return outcome["value"]


def compile_on_all(program: jax.stages.Lowered) -> jax.stages.Compiled:
    """Compile a program; every process has compiled it before one goes on.

    A process that runs it waits in its first transfer for those that still compile it, and CPU devices (Gloo) wait for
    thirty seconds at most.
    """
    compiled = program.compile()
    on_main(lambda: None)
    return compiled


def print_main(text: str) -> None:
    """Print once for all processes."""
    if is_main():
        print(text, flush=True)


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
