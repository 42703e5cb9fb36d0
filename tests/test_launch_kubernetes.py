"""What the Kubernetes files of launch/ say of a run: its gang, its command, and what each exit status leads to."""

import pathlib
import re

import pytest
import yaml
from launching import A_FEW_TIMES, AGAIN, LAUNCH, NEVER, check_command

from dydiff_jax.distributed import cluster

MANIFESTS = sorted(LAUNCH.glob("*.yaml"))


def read(path: pathlib.Path) -> dict:
    (found,) = yaml.safe_load_all(path.read_text())
    return found


@pytest.fixture(params=MANIFESTS, ids=lambda path: path.name)
def manifest(request) -> dict:
    return read(request.param)


def parts(manifest: dict) -> tuple[dict, dict, dict, dict]:
    """The replicated job, its Job, its pods and their container."""
    (job,) = manifest["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    return job, spec, pod, container


def test_pods_of_a_manifest_are_one_gang(manifest):
    assert (manifest["apiVersion"], manifest["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    _, spec, pod, container = parts(manifest)
    assert spec["completionMode"] == "Indexed" and spec["completions"] == spec["parallelism"]
    assert spec["backoffLimit"] == 0, "a pod alone is never started again"
    assert pod["restartPolicy"] == "Never", "required by podFailurePolicy"
    assert pod["terminationGracePeriodSeconds"] >= 180, "a checkpoint is saved in it"
    assert pod["shareProcessNamespace"], "process 1 would ignore SIGTERM until jax handles it"
    assert [mount["name"] for mount in container["volumeMounts"]] == [v["name"] for v in pod["volumes"]]
    assert spec["template"]["metadata"]["annotations"]["gke-gcsfuse/volumes"] == "true"
    options = pod["volumes"][0]["csi"]["volumeAttributes"]["mountOptions"].split(",")
    assert {"metadata-cache:ttl-secs:0", "metadata-cache:negative-ttl-secs:0"} <= set(options)


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_what_a_user_must_fill_in_is_marked(path):
    *_, pod, container = parts(read(path))
    assert container["image"] == "IMAGE"
    assert pod["volumes"][0]["csi"]["volumeAttributes"]["bucketName"] == "BUCKET"
    lines = [line for line in path.read_text().splitlines() if re.search(": (IMAGE|BUCKET)", line)]
    assert len(lines) == 2 and all("# EDIT" in line for line in lines)


def test_hosts_and_chips_make_the_topology():
    _, spec, pod, container = parts(read(LAUNCH / "gke_jobset.yaml"))
    sides = [int(side) for side in pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")]
    chips = container["resources"]["limits"]["google.com/tpu"]
    assert spec["completions"] * chips == sides[0] * sides[1]
    assert container["resources"]["requests"] == container["resources"]["limits"]
    assert "env" not in container, "GKE tells jax where the slice is"


def test_the_environment_of_gpu_pods_starts_them_as_one_run():
    manifest = read(LAUNCH / "gke_jobset_gpu.yaml")
    job, spec, _, container = parts(manifest)
    assert container["resources"]["limits"]["nvidia.com/gpu"] > 0
    environ = {entry["name"]: entry["value"] for entry in container["env"]}
    name = manifest["metadata"]["name"]
    for index in range(spec["completions"]):
        found = cluster.decide(environ | {"JOB_COMPLETION_INDEX": str(index)}, lambda _: None)
        assert (found.processes, found.index) == (spec["completions"], index)
        assert found.coordinator.split(":")[0] == f"{name}-{job['name']}-0-0.{name}"


def test_exit_statuses_in_kubernetes(manifest):
    """A Job ends by the first rule that its pod meets; JobSet finds the index of that rule in the message."""
    _, spec, _, container = parts(manifest)
    lost, saved, refused = spec["podFailurePolicy"]["rules"]
    assert {rule["action"] for rule in (lost, saved, refused)} == {"FailJob"}
    assert lost["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    assert saved["onExitCodes"] == {
        "containerName": container["name"], "operator": "In", "values": sorted(AGAIN),
    }  # fmt: skip
    assert refused["onExitCodes"] == {
        "containerName": container["name"], "operator": "NotIn", "values": sorted(AGAIN | A_FEW_TIMES),
    }  # fmt: skip
    assert not {0, *NEVER} & (AGAIN | A_FEW_TIMES)

    policy = manifest["spec"]["failurePolicy"]
    assert policy["maxRestarts"] > 0, "for the statuses that no rule meets, and a Job that failed otherwise"
    actions = {}
    for index in range(3):
        message = (
            f"Container train for pod a/b failed with exit code 1 matching FailJob rule at index {index}"
        )
        actions[index] = [
            rule["action"]
            for rule in policy["rules"]
            if rule["onJobFailureReasons"] == ["PodFailurePolicy"]
            and any(re.search(pattern, message) for pattern in rule["onJobFailureMessagePatterns"])
        ]
    again = "RestartJobSetAndIgnoreMaxRestarts"
    assert actions == {0: [again], 1: [again], 2: ["FailJobSet"]}


def test_the_command_of_a_manifest(manifest):
    *_, container = parts(manifest)
    assert container["command"][:4] == ["python", "-u", "-m", "dydiff_jax.main"]
    check_command(container["command"])
    mounted = pathlib.PurePath(container["volumeMounts"][0]["mountPath"])
    workdir = next(flag for flag in container["command"] if flag.startswith("--workdir=")).split("=")[1]
    assert (pathlib.PurePath(container["workingDir"]) / workdir).is_relative_to(mounted), "the pods share it"
