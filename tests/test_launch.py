"""The shell files of launch/, as far as they go without a cluster: fake gcloud, srun and scontrol stand in."""

import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest
from launching import A_FEW_TIMES, AGAIN, FLAGS, LAUNCH, NEVER, ROOT, check_command

SCRIPTS = sorted(LAUNCH.glob("*.sh"))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_shell(path):
    assert os.access(path, os.X_OK)
    subprocess.run(["bash", "-n", path], check=True)
    beside = pathlib.Path(sys.executable).with_name("shellcheck")
    checker = str(beside) if beside.exists() else shutil.which("shellcheck")
    if checker is None:
        pytest.skip("shellcheck is not there")
    found = subprocess.run([checker, path], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout
    text = path.read_text()
    assert text.startswith("#!/usr/bin/env bash\n") and "\nset -euo pipefail\n" in text


@pytest.mark.parametrize(
    "path", [path for path in SCRIPTS if path.name != "tpu_worker.sh"], ids=lambda path: path.name
)
def test_commands_in_headers_have_real_flags(path):
    header = path.read_text().split("set -euo pipefail")[0]
    lines = re.findall(rf"^#.*launch/{path.name} (.*--workdir=\S+)", header, re.M)
    assert lines
    for line in lines:
        check_command(["dydiff_jax.main", *shlex.split(line.replace("--dry-run", ""))])


# SLURM and Cloud TPUs, with programs of the same names that do as they are told.


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Puts a program of a name and a text in front of the others; every call is written to the file of `calls`."""
    bin = tmp_path / "bin"
    bin.mkdir()
    monkeypatch.setenv("PATH", f"{bin}:{os.environ['PATH']}")
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    monkeypatch.setenv("FAKES", str(tmp_path))
    (tmp_path / "calls").touch()

    def add(name: str, text: str) -> None:
        (bin / name).write_text(f'#!/usr/bin/env bash\necho "{name} ${{*@Q}}" >>"$CALLS"\n{text}\n')
        (bin / name).chmod(0o755)

    return add


def calls(tmp_path: pathlib.Path) -> list[str]:
    """Calls of the fake programs, in order."""
    return [line.replace("'", "") for line in (tmp_path / "calls").read_text().splitlines()]


#: srun: a task for each word of $STATUSES; ends with the highest status.
SRUN = """
while [[ "$1" != bash ]]; do shift; done
highest=0
for status in $STATUSES; do STATUS=$status "$@" || { code=$?; ((code <= highest)) || highest=$code; }; done
exit $highest"""


def wait_for(condition) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def slurm(fake, tmp_path, statuses: str, **environ: str) -> tuple[int, int]:
    """Exit status of a job whose tasks end so, and how often it was queued again."""
    fake("srun", SRUN)
    fake("scontrol", "")
    fake("run", 'exit "$STATUS"')
    before = calls(tmp_path).count("scontrol requeue 7")
    env = os.environ | {"SLURM_JOB_ID": "7", "PYTHON": "run", "STATUSES": statuses} | environ
    found = subprocess.run([LAUNCH / "slurm.sh", *FLAGS], cwd=tmp_path, env=env, capture_output=True)
    return found.returncode, calls(tmp_path).count("scontrol requeue 7") - before


@pytest.mark.parametrize("status", [0, *sorted(AGAIN | A_FEW_TIMES | NEVER)])
def test_slurm_queues_again_what_may_go_on(fake, tmp_path, status):
    found, requeued = slurm(fake, tmp_path, str(status))
    assert (found == 0) == (status == 0)
    assert requeued == (status in AGAIN | A_FEW_TIMES)


@pytest.mark.parametrize(
    "statuses, requeued",
    [
        ("0 0 0", 0),
        ("75 75 75 75", 1),
        ("75 143 75 143", 1),  # one was quicker, and the others were ended
        ("76 143", 1),
        ("1 143 143", 0),  # one refused, and the others were ended
        ("143 134 1 134", 0),
    ],
)
def test_slurm_tells_tasks_that_end_differently_apart(fake, tmp_path, statuses, requeued):
    assert slurm(fake, tmp_path, statuses)[1] == requeued


def test_slurm_gives_up_after_failures_in_a_row(fake, tmp_path):
    statuses = ["76", "134", "75", "76", "137", "76"]
    history = [slurm(fake, tmp_path, status, MAX_FAILURES="2")[1] for status in statuses]
    assert history == [1, 1, 1, 1, 1, 0]
    assert slurm(fake, tmp_path, "0") == (0, 0)
    assert not list(tmp_path.glob("*.failures"))


def job(fake, tmp_path) -> tuple[subprocess.Popen, int]:
    """A job whose run saves for half a second when it is told to, and the process group of its task."""
    fake("srun", 'while [[ "$1" != bash ]]; do shift; done\nsetsid "$@" &\necho $! >"$FAKES/task"\nwait $!')
    fake("scontrol", "")
    fake("run", 'trap "sleep 0.5; exit 75" TERM; touch "$FAKES/up"; for _ in {1..200}; do sleep 0.1; done')
    env = os.environ | {"SLURM_JOB_ID": "7", "PYTHON": "run"}
    process = subprocess.Popen([LAUNCH / "slurm.sh", *FLAGS], cwd=tmp_path, env=env, start_new_session=True)
    wait_for(lambda: (tmp_path / "up").exists())
    return process, int((tmp_path / "task").read_text())


def test_slurm_signals_the_step_before_the_limit(fake, tmp_path):
    """SIGTERM goes to all processes of a task: the run saves, what stands around it waits."""
    process, task = job(fake, tmp_path)
    os.killpg(task, signal.SIGTERM)
    assert process.wait(timeout=20) == 75
    assert "scontrol requeue 7" in calls(tmp_path)


def test_slurm_leaves_a_cancelled_job_cancelled(fake, tmp_path):
    process, task = job(fake, tmp_path)
    os.killpg(task, signal.SIGTERM)
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(timeout=20) == -signal.SIGTERM
    time.sleep(0.7)
    assert "scontrol requeue 7" not in calls(tmp_path)


def test_slurm_dry_run(monkeypatch):
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "64")
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "4")
    text = subprocess.check_output([LAUNCH / "slurm.sh", "--dry-run", *FLAGS], text=True)
    *step, wrapped = shlex.split(text.split("'task'")[0])
    assert (
        step == ["srun", "--kill-on-bad-exit=1", "--cpus-per-task=16", "bash", "-c"]
        and "trap : TERM" in wrapped
    )
    command = shlex.split(text.split("'task'")[1])
    assert command == ["python", "-u", "-m", "dydiff_jax.main", *FLAGS]
    check_command(command)


@pytest.mark.parametrize("arguments", [[], ["--help"], FLAGS])
def test_slurm_outside_a_job(arguments, monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    found = subprocess.run([LAUNCH / "slurm.sh", *arguments], capture_output=True, text=True)
    assert found.returncode == 64 and "sbatch" in found.stderr


def test_slurm_signal_leaves_time_for_a_checkpoint():
    options = dict(re.findall(r"^#SBATCH --(\S+?)(?:=(\S+))?$", (LAUNCH / "slurm.sh").read_text(), re.M))
    assert options["signal"] == "TERM@180", "to the steps, not to the shell"
    assert "requeue" in options and options["open-mode"] == "append" and options["ntasks-per-node"] == "1"


#: gcloud: a slice that takes one look to come up; the next word of $FAKES/runs is what a run ends with, "lost" a
#: preemption during it.
GCLOUD = """
cd "$FAKES"
case "$*" in
  *queued-resources\\ create*) echo WAITING_FOR_RESOURCES >state ;;
  *queued-resources\\ delete*) rm state ;;
  *queued-resources\\ describe*)
    cat state
    ! grep -q WAITING state || echo ACTIVE >state ;;
  *tpu-vm\\ describe*) if [[ -e gone ]]; then echo PREEMPTED; else echo READY; fi ;;
  *tpu_worker.sh\\ setup*) rm -f gone ;;
  *tpu_worker.sh\\ run*)
    read -r next <runs; sed -i 1d runs
    if [[ $next == lost ]]; then echo SUSPENDED >state; touch gone; exit 1; fi
    exit "$next" ;;
esac"""


def tpu(fake, tmp_path, runs: list, **environ: str) -> tuple[int, list[str]]:
    """Exit status of tpu_pod.sh where runs end so, and what it did, without looks at states."""
    fake("gcloud", GCLOUD)
    fake("git", "")
    (tmp_path / "runs").write_text("".join(f"{run}\n" for run in runs))
    env = os.environ | {"NAME": "n", "ZONE": "z", "POLL": "0"} | environ
    found = subprocess.run([LAUNCH / "tpu_pod.sh", *FLAGS], env=env, capture_output=True, timeout=60)
    words = r"queued-resources (create|delete)|(scp)|tpu_worker.sh (setup|run)"
    return found.returncode, [
        next(filter(None, found.groups())) for line in calls(tmp_path) if (found := re.search(words, line))
    ]


START, GO = ["create", "scp", "setup"], ["run"]


@pytest.mark.parametrize(
    "runs, status, done",
    [
        ([0], 0, START + GO),
        ([75, 143, 75, 75, 75, 0], 0, START + GO * 6),
        (["lost", 0], 0, START + GO + ["delete"] + START + GO),
        ([76, 134, "lost", 137, 255, 76, 0], 0, START + GO * 3 + ["delete"] + START + GO * 4),
        ([1], 1, START + GO),
        ([75, 2], 2, START + GO * 2),
        ([76, 134, 137, 255], 255, START + GO * 4),
        ([76, 134, 137, 75, 76, 0], 0, START + GO * 6),
    ],
)
def test_tpu_pod(fake, tmp_path, runs, status, done):
    assert tpu(fake, tmp_path, runs) == (status, done)


def test_tpu_pod_takes_up_the_slice_that_is_there(fake, tmp_path):
    (tmp_path / "state").write_text("ACTIVE\n")
    assert tpu(fake, tmp_path, [0], DELETE="yes") == (0, ["scp", "setup", "run", "delete"])


def test_tpu_pod_replaces_a_slice_that_was_preempted_meanwhile(fake, tmp_path):
    (tmp_path / "state").write_text("SUSPENDED\n")
    assert tpu(fake, tmp_path, [0]) == (0, ["delete", *START, "run"])


def test_tpu_pod_stops_at_a_request_that_failed(fake, tmp_path):
    (tmp_path / "state").write_text("FAILED\n")
    assert tpu(fake, tmp_path, []) == (1, [])


def test_tpu_pod_dry_run(tmp_path):
    env = os.environ | {"PATH": "/usr/bin:/bin", "TMPDIR": str(tmp_path)}
    variables = {
        "NAME": "flow",
        "ZONE": "us-a",
        "PROJECT": "p",
        "BUCKET": "data",
        "DELETE": "yes",
        "SETUP": "true",
    }
    text = subprocess.check_output(
        [LAUNCH / "tpu_pod.sh", "--dry-run", *FLAGS], env=env | variables, text=True
    )
    lines = [shlex.split(line) for line in text.splitlines()]
    archive = lines[2][-2].split("=")[1]
    assert not pathlib.Path(archive).exists()
    gcloud, where = ["gcloud", "compute", "tpus"], ["--zone=us-a", "--project=p"]
    everywhere = ["--worker=all", "--batch-size=all"]
    unpack = "mkdir -p dydiff_jax && cd dydiff_jax && tar -xzf ../dydiff_jax.tar.gz"
    run = " ".join("'" + flag + "'" for flag in FLAGS)
    ssh = [*gcloud, "tpu-vm", "ssh", "flow", *where, *everywhere]
    kind = ["--accelerator-type=v5litepod-16", "--runtime-version=v2-alpha-tpuv5-lite", "--spot"]
    assert lines == [
        [*gcloud, "queued-resources", "create", "flow", "--node-id=flow", *where, *kind],
        [*gcloud, "queued-resources", "describe", "flow", *where, "--format=value(state.state)"],
        ["git", "-C", str(ROOT), "archive", "--format=tar.gz", f"--output={archive}", "HEAD"],
        [*gcloud, "tpu-vm", "scp", archive, "flow:dydiff_jax.tar.gz", *where, *everywhere],
        [*ssh, f"--command={unpack} && bash launch/tpu_worker.sh setup data && true"],
        [*ssh, f"--command=cd dydiff_jax && exec bash launch/tpu_worker.sh run {run}"],
        [*gcloud, "queued-resources", "delete", "flow", *where, "--force", "--quiet"],
    ]
    check_command(["dydiff_jax.main", *shlex.split(lines[5][-1].split("tpu_worker.sh run ")[1])])
    assert subprocess.run([LAUNCH / "tpu_pod.sh", *FLAGS], env=env, capture_output=True).returncode == 64


def test_tpu_worker_runs_one_at_a_time(fake, tmp_path):
    """A run that a lost connection left behind is told to save, and is gone before the next one begins."""
    (tmp_path / ".venv/bin").mkdir(parents=True)
    fake(
        "run",
        """trap 'sleep 0.5; echo saved >>"$CALLS"; exit 75' TERM\ntouch up\nfor _ in {1..200}; do sleep 0.1; done""",
    )
    (tmp_path / "bin/run").rename(tmp_path / ".venv/bin/python")
    worker = ["bash", LAUNCH / "tpu_worker.sh", "run", *FLAGS]
    first = subprocess.Popen(worker, cwd=tmp_path)
    wait_for(lambda: (tmp_path / "up").exists())
    (tmp_path / "up").unlink()
    second = subprocess.Popen(worker, cwd=tmp_path)
    assert first.wait(timeout=20) == 75
    wait_for(lambda: (tmp_path / "up").exists())
    assert int((tmp_path / "run.pid").read_text()) == second.pid
    second.terminate()
    assert second.wait(timeout=20) == 75
    command = "run -u -m dydiff_jax.main " + " ".join(FLAGS)
    assert calls(tmp_path) == [command, "saved", command, "saved"]


def test_tpu_worker_mounts_the_bucket_once(fake, tmp_path):
    for name in ("python3", "gcsfuse"):
        fake(name, "")
    fake("mountpoint", '[[ -e "$FAKES/mounted" ]]')
    worker = ["bash", LAUNCH / "tpu_worker.sh", "setup", "data"]
    subprocess.run(worker, cwd=tmp_path, check=True)
    (tmp_path / "mounted").touch()
    subprocess.run(worker, cwd=tmp_path, check=True)
    (mount,) = [line for line in calls(tmp_path) if line.startswith("gcsfuse")]
    assert mount.endswith(" data runs")
    assert {
        "--rename-dir-limit=200000",
        "--metadata-cache-ttl-secs=0",
        "--metadata-cache-negative-ttl-secs=0",
    } <= set(mount.split())
    assert "python3 -m uv pip install --quiet -e .[tpu] -c constraints.txt" in calls(tmp_path)
