"""The start of a run that has several processes: finds the others through ``jax.distributed``, or does nothing.

| where | what says so | who finds the coordinator |
|---|---|---|
| by hand | ``JAX_COORDINATOR_ADDRESS``, ``JAX_NUM_PROCESSES``, ``JAX_PROCESS_ID`` | these |
| indexed Job, JobSet | the first two, and ``JOB_COMPLETION_INDEX`` | these |
| SLURM | a step (``srun``) of several tasks | jax |
| Cloud TPU pod, GKE slice, multislice | several workers or slices | jax |
| anywhere else; ``JAX_NUM_PROCESSES=1`` | | one process |

How a run ends, for those who start it (files in ``launch/``): `runs.exit_codes`.
"""

import os
import sys
import threading
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import jax

from dydiff_jax.runs import exit_codes

#: Seconds after which a process that still waits for the others says so.
PATIENCE = 30.0

_ADDRESS, _COUNT, _INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
_POD = "JOB_COMPLETION_INDEX"
_SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
_TPU_HOSTS = ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES")
_SLICES = "MEGASCALE_NUM_SLICES"
_PROXY = "grpc_proxy"


@dataclass(frozen=True)
class Start:
    """Arguments of ``jax.distributed.initialize``; None is left to jax, which reads the rest off the cluster.

    Attributes:
      variables: names of the environment variables that decide, for messages.
      method: jax's name of the cluster, "deactivate" where nothing is left to find.
      coordinator: host:port of process 0.
      processes: their number.
      index: of this process, from 0.
      devices: local devices that this process takes; empty for all it sees.
    """

    variables: tuple[str, ...]
    method: str | None = None
    coordinator: str | None = None
    processes: int | None = None
    index: int | None = None
    devices: tuple[int, ...] | None = None


def start(timeout: int = 300, heartbeat: int = 100) -> None:
    """Finds the other processes of the run, where there are any; call it before jax is used.

    With several processes, process 0 prints one line on them. A process that dies later makes the others leave
    within ``heartbeat`` seconds, with exit status 134, so that whoever started them can start them all again.

    Args:
      timeout: seconds to wait for the others.
      heartbeat: seconds without a sign of life after which a process counts as dead.

    Raises:
      ValueError: the environment contradicts itself; the message names the variables.
      SystemExit: with `exit_codes.STUCK`, where jax does not find the coordinator. (One that it finds but that does not
        answer ends the process with status 134; what it waits for is printed before.)
    """
    if jax.distributed.is_initialized() or (found := decide(os.environ)) is None:
        return
    _spare_proxies()
    shown = ", ".join(f"{name}={os.environ[name]}" for name in found.variables if name in os.environ)
    notice = threading.Timer(
        min(PATIENCE, timeout / 2),
        _complain,
        [f"this process still waits for the others, {timeout} s at most", shown],
    )
    notice.daemon = True
    notice.start()
    try:
        jax.distributed.initialize(
            coordinator_address=found.coordinator,
            num_processes=found.processes,
            process_id=found.index,
            local_device_ids=found.devices,
            cluster_detection_method=found.method,
            initialization_timeout=timeout,
            heartbeat_timeout_seconds=heartbeat,
        )
    except RuntimeError as error:
        _complain(f"jax did not start several processes: {error}", shown)
        sys.exit(exit_codes.STUCK)
    finally:
        notice.cancel()
    if jax.process_index() == 0:
        device = jax.devices()[0]
        kind = f"{device.platform}, {device.device_kind}"
        print(f"{jax.process_count()} processes, {jax.device_count()} devices ({kind})", flush=True)


def decide(environ: Mapping[str, str], metadata: Callable[[str], str | None] | None = None) -> Start | None:
    """How to find the other processes, or None for a process of its own.

    Args:
      environ: environment variables.
      metadata: attribute of a Cloud TPU VM by name, None where there is none; asks the VM's server by default.

    Raises:
      ValueError: variables that are set by hand are incomplete, or contradict each other or the cluster.
    """
    address, count, index = environ.get(_ADDRESS), _integer(environ, _COUNT), _integer(environ, _INDEX)
    if count == 1 and not index:
        return None
    cluster = _slurm(environ) or _tpu(environ, metadata or _ask_metadata)
    if address is None:
        for name in (_COUNT, _INDEX):
            if name in environ:
                raise ValueError(f"{name} is set and {_ADDRESS} is not: expected all of {_BY_HAND}, or none")
        if cluster is None and _integer(environ, _POD):
            raise ValueError(
                f"{_POD}={environ[_POD]}: expected {_ADDRESS} and {_COUNT} in a Job of several pods, found neither; "
                f"{_COUNT}=1 makes each pod a run of its own"
            )
        return cluster
    return _by_hand(environ, cluster)


_BY_HAND = f"{_ADDRESS}, {_COUNT} and {_INDEX}"


def _by_hand(environ: Mapping[str, str], cluster: Start | None) -> Start:
    """What `_ADDRESS` and its companions say; the cluster's variables complete them."""
    address, count, index = environ[_ADDRESS], _integer(environ, _COUNT), _integer(environ, _INDEX)
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise ValueError(f"{_ADDRESS}: expected host:port of process 0, found {address!r}")
    if count is None and index is None and cluster is not None:
        return Start(
            (_ADDRESS, *cluster.variables), cluster.method, address, cluster.processes, None, cluster.devices
        )
    name = _INDEX if _INDEX in environ else _POD
    index = _integer(environ, name)
    if count is None or index is None:
        missing = _COUNT if count is None else f"{_INDEX} (or {_POD})"
        raise ValueError(f"{_ADDRESS} is set and {missing} is not: expected all of {_BY_HAND}")
    if index >= count:
        raise ValueError(f"{name}={index}: expected less than {_COUNT}={count}")
    if cluster is not None and cluster.processes not in (None, count):
        shown = ", ".join(f"{name}={environ[name]}" for name in cluster.variables if name in environ)
        raise ValueError(
            f"{_COUNT}={count} and {cluster.processes} processes of the cluster ({shown}) disagree"
        )
    return Start((_ADDRESS, _COUNT, name), "deactivate", address, count, index)


def _slurm(environ: Mapping[str, str]) -> Start | None:
    """A step of several tasks. A shell of sbatch or salloc is no step, or one of a single task.

    jax gives each task one GPU, that of its number on the node. That is wrong where a node has one task, and where
    SLURM itself has bound one GPU to each: those tasks take all they see.
    """
    counted = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in environ else "SLURM_NTASKS"
    tasks = _integer(environ, counted)
    if "SLURM_STEP_NODELIST" not in environ or tasks in (None, 1):
        return None
    missing = [name for name in _SLURM if name not in environ]
    if missing:
        raise ValueError(f"{counted}={tasks}, but {', '.join(missing)} is not set: expected what srun sets")
    bound = any(
        name in environ and "," not in environ[name]
        for name in ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
    )
    whole = bound or _integer(environ, "SLURM_STEP_NUM_NODES") == tasks
    devices = () if whole and "JAX_LOCAL_DEVICE_IDS" not in environ else None
    return Start((*_SLURM, counted), "slurm", processes=tasks, devices=devices)


def _tpu(environ: Mapping[str, str], metadata: Callable[[str], str | None]) -> Start | None:
    """Several workers of a TPU slice, or several slices. On a TPU VM, and there only, jax sets TPU_ML_PLATFORM."""
    if "TPU_ML_PLATFORM" not in environ or "tpu" not in environ.get("JAX_PLATFORMS", "tpu"):
        return None
    slices = _integer(environ, _SLICES)
    hosts = next((environ[name] for name in _TPU_HOSTS if name in environ), None)
    if hosts is None and environ.get("TPU_PROCESS_ADDRESSES_PATH"):
        with open(environ["TPU_PROCESS_ADDRESSES_PATH"], encoding="utf-8") as file:
            hosts = file.read()
    if hosts is None and "TPU_SKIP_MDS_QUERY" not in environ:
        hosts = metadata("worker-network-endpoints")
        slices = slices or _slices(metadata("tpu-env"))
    workers = (hosts or "").count(",") + 1
    processes = workers * (slices or 1)
    return Start((*_TPU_HOSTS, _SLICES), processes=processes) if processes > 1 else None


def _slices(text: str | None) -> int:
    """Slices according to the attribute tpu-env, lines of ``NAME: 'value'``."""
    for line in (text or "").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == _SLICES:
            return int(value.strip().strip("'"))
    return 1


def _ask_metadata(name: str) -> str | None:
    """An attribute of this VM, None where there is no such attribute or no server of attributes."""
    server = os.environ.get("GCE_METADATA_IP", "metadata.google.internal")
    request = urllib.request.Request(
        f"http://{server}/computeMetadata/v1/instance/attributes/{name}",
        headers={"Metadata-Flavor": "Google"},
    )
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for _ in range(3):
        try:
            with direct.open(request, timeout=5) as answer:
                return answer.read().decode()
        except OSError:
            continue
    return None


def _integer(environ: Mapping[str, str], name: str) -> int | None:
    """The number of 0 or more in a variable, None where it is not set."""
    if name not in environ:
        return None
    if not environ[name].isdecimal():
        raise ValueError(f"{name}: expected a number of 0 or more, found {environ[name]!r}")
    return int(environ[name])


def _spare_proxies() -> None:
    """The processes talk to each other, never through a proxy, where they would wait for ever."""
    if any(name.lower() in ("http_proxy", "https_proxy", _PROXY) for name in os.environ):
        os.environ[_PROXY] = ""  # lower case, empty: gRPC goes straight to the host
        jax.config.update("jax_check_proxy_envs", False)


def _complain(what: str, shown: str) -> None:
    print(f"{what}; {shown}", file=sys.stderr, flush=True)
