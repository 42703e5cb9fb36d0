"""Which environments start several processes, and two that do."""

import http.server
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time

import jax
import pytest

from dydiff_jax.distributed import cluster
from dydiff_jax.distributed.cluster import Start

HAND = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")

#: What srun sets for the fourth of 8 tasks, on two nodes.
TASK = {
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_NTASKS": "8",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "3",
}

#: What jax finds on a TPU VM as it is imported, and a server of attributes that knows of one host.
TPU = {"TPU_ML_PLATFORM": "JAX"}
ONE_HOST = {"worker-network-endpoints": "10.0.0.2", "tpu-env": "ACCELERATOR_TYPE: 'v5litepod-4'\n"}


def decide(environ: dict[str, str], metadata: dict[str, str] | None = None) -> Start | None:
    """`cluster.decide` with attributes of a VM; None for a machine that must not be asked for them."""

    def ask(name: str) -> str | None:
        assert metadata is not None, f"asked for {name} where there is no TPU"
        return metadata.get(name)

    return cluster.decide(environ, ask)


@pytest.mark.parametrize(
    "environ",
    [
        {
            "HOME": "/home/me",
            "JAX_PLATFORMS": "cpu",
            "TPU_SKIP_MDS_QUERY": "1",
        },  # a laptop, after jax was imported
        {
            "COLAB_RELEASE_TAG": "r",
            "KUBERNETES_SERVICE_HOST": "10.0.0.1",
            "CUDA_VISIBLE_DEVICES": "0",
        },  # Colab, GPU
        {**TPU, "TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"},  # Colab, TPU
        {**TPU, "TPU_SKIP_MDS_QUERY": "1"},
        {
            **TPU,
            "TPU_WORKER_HOSTNAMES": "a,b,c,d",
            "JAX_PLATFORMS": "cpu",
        },  # a pod, but its TPUs are not used
        {"TPU_WORKER_HOSTNAMES": "a,b,c,d"},  # no TPU
        {
            "SLURM_JOB_ID": "1",
            "SLURM_NTASKS": "8",
            "SLURM_PROCID": "0",
            "SLURM_LOCALID": "0",
        },  # a shell of sbatch
        {**TASK, "SLURM_STEP_NUM_TASKS": "1"},  # a shell of salloc: a step of one task in a job of 8
        {**TASK, "SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "1"},
        {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"},
        {**TASK, "JAX_NUM_PROCESSES": "1"},  # each task a run of its own, by hand
        {"JOB_COMPLETION_INDEX": "3", "JAX_NUM_PROCESSES": "1"},
        {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"},
    ],
)
def test_one_process(environ):
    assert decide(environ) is None


@pytest.mark.parametrize("metadata", [ONE_HOST, {}])
def test_one_tpu_vm_is_one_process(metadata):
    assert decide(TPU, metadata) is None


@pytest.mark.parametrize(
    "environ, metadata, processes",
    [
        (TPU, {"worker-network-endpoints": "10.0.0.2,10.0.0.3,10.0.0.4,10.0.0.5"}, 4),
        (TPU, {"worker-network-endpoints": "w:0:10.0.0.2,w:1:10.0.0.3"}, 2),  # the older format
        (TPU, ONE_HOST | {"tpu-env": "A: 'b'\nMEGASCALE_NUM_SLICES: '2'\n"}, 2),
        (TPU | {"MEGASCALE_NUM_SLICES": "3"}, {"worker-network-endpoints": "10.0.0.2,10.0.0.3"}, 6),
        (TPU | {"TPU_WORKER_HOSTNAMES": "a,b,c,d", "JOB_COMPLETION_INDEX": "2"}, None, 4),  # GKE
        (TPU | {"TPU_WORKER_HOSTNAMES": "a,b", "MEGASCALE_NUM_SLICES": "2"}, None, 4),
        (
            TPU | {"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2", "JAX_PLATFORMS": "tpu,cpu"},
            None,
            2,
        ),
        (TPU | {"TPU_PROCESS_ADDRESSES": "a:1,b:1", "TPU_WORKER_HOSTNAMES": "a"}, None, 2),
    ],
)
def test_tpu_pods_and_slices_are_left_to_jax(environ, metadata, processes):
    found = decide(environ, metadata)
    assert (found.processes, found.method, found.coordinator, found.index) == (processes, None, None, None)
    assert found.devices is None


def test_addresses_of_a_tpu_slice_in_a_file(tmp_path):
    (tmp_path / "addresses").write_text("a:8471,b:8471,c:8471\n")
    assert decide(TPU | {"TPU_PROCESS_ADDRESSES_PATH": str(tmp_path / "addresses")}).processes == 3


def test_attributes_of_a_vm_are_asked_for_without_a_proxy(monkeypatch):
    class Server(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            known = self.path == "/computeMetadata/v1/instance/attributes/worker-network-endpoints"
            self.send_response(200 if known and self.headers["Metadata-Flavor"] == "Google" else 404)
            self.end_headers()
            self.wfile.write(b"10.0.0.2,10.0.0.3")

        def log_message(self, *_):
            pass

    monkeypatch.setenv("http_proxy", "http://localhost:9")
    with http.server.HTTPServer(("localhost", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("GCE_METADATA_IP", f"localhost:{server.server_port}")
        assert cluster.decide(TPU).processes == 2
        server.shutdown()
    assert cluster.decide(TPU) is None, "nobody answers"


@pytest.mark.parametrize(
    "environ, devices",
    [
        ({}, None),  # jax gives task 3 of a node its GPU 3
        ({"CUDA_VISIBLE_DEVICES": "0,1,2,3"}, None),
        ({"CUDA_VISIBLE_DEVICES": "0"}, ()),  # --gpus-per-task=1: number 0 is all it sees
        ({"ROCR_VISIBLE_DEVICES": "2"}, ()),
        ({"SLURM_STEP_NUM_NODES": "8"}, ()),  # a task on each node takes all GPUs of the node
        ({"SLURM_STEP_NUM_NODES": "8", "CUDA_VISIBLE_DEVICES": "0,1,2,3"}, ()),
        ({"SLURM_STEP_NUM_NODES": "8", "JAX_LOCAL_DEVICE_IDS": "1,2"}, None),  # read by jax
    ],
)
def test_tasks_of_slurm(environ, devices):
    found = decide(TASK | environ)
    assert (found.method, found.processes, found.coordinator, found.index) == ("slurm", 8, None, None)
    assert found.devices == devices


def test_by_hand_and_in_an_indexed_job():
    hand = dict(zip(HAND, ("host:8476", "4", "2"), strict=True))
    assert decide(hand) == Start(HAND, "deactivate", "host:8476", 4, 2)
    job = {HAND[0]: "train-workers-0-0.train:8476", HAND[1]: "4", "JOB_COMPLETION_INDEX": "3"}
    assert decide(job) == Start((*HAND[:2], "JOB_COMPLETION_INDEX"), "deactivate", job[HAND[0]], 4, 3)
    assert decide(job | {HAND[2]: "1"}).index == 1, "the variable that is set by hand wins"
    assert decide(TASK | hand | {HAND[1]: "8"}).method == "deactivate"


def test_an_address_by_hand_moves_the_coordinator_of_a_cluster():
    found = decide(TASK | {HAND[0]: "10.1.0.7:1234", "SLURM_STEP_NUM_NODES": "8"})
    assert (found.method, found.coordinator, found.processes, found.devices) == (
        "slurm",
        "10.1.0.7:1234",
        8,
        (),
    )
    found = decide(TPU | {HAND[0]: "10.1.0.7:1234", "TPU_WORKER_HOSTNAMES": "a,b"})
    assert (found.method, found.coordinator, found.processes) == (None, "10.1.0.7:1234", 2)


@pytest.mark.parametrize(
    "environ, named",
    [
        ({HAND[0]: "host:1"}, [HAND[0], HAND[1], HAND[2]]),
        ({HAND[0]: "host:1", HAND[1]: "2"}, [HAND[2], "JOB_COMPLETION_INDEX"]),
        ({HAND[0]: "host:1", HAND[2]: "1"}, [HAND[1]]),
        ({HAND[1]: "2"}, [HAND[1], HAND[0]]),
        ({HAND[2]: "0"}, [HAND[2], HAND[0]]),
        ({HAND[1]: "1", HAND[2]: "1"}, [HAND[0]]),
        ({HAND[0]: "host", HAND[1]: "2", HAND[2]: "0"}, [HAND[0], "host:port", "'host'"]),
        ({HAND[0]: ":1", HAND[1]: "2", HAND[2]: "0"}, [HAND[0], "host:port"]),
        ({HAND[0]: "host:1", HAND[1]: "2", HAND[2]: "2"}, [f"{HAND[2]}=2", f"{HAND[1]}=2"]),
        (
            {HAND[0]: "host:1", HAND[1]: "2", "JOB_COMPLETION_INDEX": "5"},
            ["JOB_COMPLETION_INDEX=5", f"{HAND[1]}=2"],
        ),
        ({HAND[0]: "host:1", HAND[1]: "two", HAND[2]: "0"}, [HAND[1], "'two'"]),
        ({HAND[0]: "host:1", HAND[1]: "2", HAND[2]: "-1"}, [HAND[2], "'-1'"]),
        (TASK | {HAND[0]: "host:1", HAND[1]: "4", HAND[2]: "0"}, [f"{HAND[1]}=4", "SLURM_NTASKS=8"]),
        (
            TPU | {"TPU_WORKER_HOSTNAMES": "a,b", **dict(zip(HAND, ("h:1", "4", "0"), strict=True))},
            ["HOSTNAMES=a,b"],
        ),
        ({"JOB_COMPLETION_INDEX": "1"}, ["JOB_COMPLETION_INDEX=1", HAND[0], HAND[1]]),
        (
            {k: v for k, v in TASK.items() if k != "SLURM_LOCALID"},
            ["SLURM_STEP_NUM_TASKS=8", "SLURM_LOCALID"],
        ),
    ],
)
def test_contradictions_are_refused_and_named(environ, named):
    with pytest.raises(ValueError) as error:
        decide(environ)
    for name in named:
        assert name in str(error.value)


@pytest.fixture
def calls(monkeypatch):
    """The calls of jax.distributed.initialize, which does nothing."""
    found = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **arguments: found.append(arguments))
    for name in [*os.environ]:
        if re.match(
            "SLURM|TPU|MEGASCALE|JOB_COMP|JAX_COORD|JAX_NUM_PROC|JAX_PROC|JAX_LOCAL|.*_proxy", name, re.I
        ):
            monkeypatch.delenv(name)
    return found


def test_start_calls_jax_with_what_was_decided(calls, monkeypatch, capsys):
    cluster.start()
    assert not calls
    for name, value in TASK.items():
        monkeypatch.setenv(name, value)
    cluster.start(timeout=90, heartbeat=20)
    assert calls == [
        dict(
            coordinator_address=None,
            num_processes=8,
            process_id=None,
            local_device_ids=None,
            cluster_detection_method="slurm",
            initialization_timeout=90,
            heartbeat_timeout_seconds=20,
        )
    ]
    assert re.fullmatch(r"1 processes, 8 devices \(cpu, cpu\)\n", capsys.readouterr().out)


def test_proxies_are_bypassed_and_only_where_there_are_any(calls, monkeypatch):
    for name, value in zip(HAND, ("host:1", "2", "0"), strict=True):
        monkeypatch.setenv(name, value)
    cluster.start()
    assert "grpc_proxy" not in os.environ
    monkeypatch.setenv("grpc_proxy", "restored after the test")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:3128")
    cluster.start()
    assert os.environ[cluster._PROXY] == "" and len(calls) == 2
    assert jax.config.values["jax_check_proxy_envs"] is False


def test_a_coordinator_that_jax_does_not_find(calls, monkeypatch, capsys):
    def fail(**_):
        raise RuntimeError("Failed to recognize coordinator address t1v-n-0")

    monkeypatch.setattr(jax.distributed, "initialize", fail)
    monkeypatch.setenv("TPU_ML_PLATFORM", "JAX")
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "t1v-n-0,t1v-n-1")
    monkeypatch.setenv("JAX_PLATFORMS", "tpu,cpu")
    with pytest.raises(SystemExit) as stop:
        cluster.start()
    assert stop.value.code == 76
    assert re.search("t1v-n-0; TPU_WORKER_HOSTNAMES=t1v-n-0,t1v-n-1", capsys.readouterr().err)


PROGRAM = """
import json, sys, time
import jax, numpy as np
from dydiff_jax.distributed import cluster

cluster.PATIENCE = 1.0
cluster.start(timeout=int(sys.argv[1]), heartbeat=10)
mesh = jax.make_mesh((jax.device_count(),), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
sharding = jax.sharding.NamedSharding(mesh, jax.P("x"))
rows = np.arange(1.0, 1 + jax.device_count())
x = jax.make_array_from_callback(rows.shape, sharding, lambda index: rows[index])
add = jax.shard_map(lambda y: jax.lax.psum(y, "x"), mesh=mesh, in_specs=jax.P("x"), out_specs=jax.P())
print(json.dumps(dict(
    sum=float(jax.jit(add)(x)[0]), processes=jax.process_count(), index=jax.process_index(),
    devices=jax.device_count(), local=jax.local_device_count(),
    visible=jax.config.values["jax_cuda_visible_devices"],
)), flush=True)
time.sleep(float(sys.argv[2]))
"""


def run(environs: list[dict[str, str]], timeout: int = 60, sleep: float = 0.0) -> list[subprocess.Popen]:
    """Starts processes with 2 CPU devices each, in these environments and no other cluster."""
    base = {k: v for k, v in os.environ.items() if not re.match("SLURM|TPU|JAX|XLA|JOB_COMP", k)}
    base |= {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2"}
    arguments = [sys.executable, "-c", PROGRAM, str(timeout), str(sleep)]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return [subprocess.Popen(arguments, env=base | environ, **pipes) for environ in environs]


def outcomes(processes: list[subprocess.Popen], timeout: float = 90) -> list[tuple[int, str, str]]:
    """Exit status, output and errors of each; kills all and fails where one takes too long."""
    deadline = time.monotonic() + timeout
    try:
        pairs = [process.communicate(timeout=max(deadline - time.monotonic(), 0.1)) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *pair) for process, pair in zip(processes, pairs, strict=True)]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def lines_to_the_result(process: subprocess.Popen) -> list[str]:
    """What a process prints up to its line of JSON, which it waits behind."""
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("{"):
            return lines
    raise AssertionError(process.stderr.read()[-2000:])


def check_two(printed: list[list[str]]) -> None:
    lines = [
        [line.rstrip() for line in found] for found in printed
    ]  # Gloo writes here too, from several threads
    said = "2 processes, 4 devices (cpu, cpu)"
    assert lines[0][0] == said and not any(said in line for line in lines[1]), "process 0 alone speaks"
    for i in range(2):
        assert json.loads(lines[i][-1]) == dict(
            sum=10.0, processes=2, index=i, devices=4, local=2, visible="all"
        )


@pytest.mark.slow
def test_two_tasks_of_slurm():
    """One task a node, so that each keeps all devices of its node; jax finds the coordinator in the node list."""
    task = {
        "SLURM_JOB_ID": str(free_port()),
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_NUM_NODES": "2",
        "SLURM_NTASKS": "2",
        "SLURM_LOCALID": "0",
    }
    found = outcomes(run([task | {"SLURM_PROCID": str(i)} for i in range(2)]))
    assert [status for status, *_ in found] == [0, 0], [error[-2000:] for *_, error in found]
    check_two([out.splitlines() for _, out, _ in found])


@pytest.mark.slow
def test_two_processes_by_hand_behind_a_proxy_until_one_dies():
    address, proxy = f"localhost:{free_port()}", "http://localhost:9"
    environs = [
        {**dict(zip(HAND, (address, "2", str(i)), strict=True)), "http_proxy": proxy, "https_proxy": proxy}
        for i in range(2)
    ]
    processes = run(environs, sleep=80)
    try:
        check_two([lines_to_the_result(process) for process in processes])
        processes[1].kill()
        assert processes[0].wait(timeout=60) == -6  # SIGABRT, 134 to a shell; jax's own limit is 100 s
    finally:
        outcomes(processes)


@pytest.mark.slow
def test_an_address_where_nobody_answers_is_named_before_the_end():
    environ = dict(zip(HAND, (f"localhost:{free_port()}", "2", "1"), strict=True))
    ((status, _, error),) = outcomes(run([environ], timeout=4))
    assert status == -6
    assert re.search(
        "still waits for the others, 4 s at most; " + ", ".join(f"{k}={v}" for k, v in environ.items()), error
    )
