"""The Kubernetes files of launch/ against the schema, and what their rules do with each exit status."""

import pathlib
import re

import pytest
import yaml
from launching import A_FEW_TIMES, AGAIN, LAUNCH, NEVER, check_command

from dydiff_jax.distributed import cluster

MANIFESTS = sorted(LAUNCH.glob("*.yaml"))

# The fields are those of jobset.x-k8s.io/v1alpha2, batch/v1 and v1 that these files use; "!" marks
# those that the schema requires.

META = {"name": str, "annotations": "labels", "labels": "labels"}
SCHEMA = {
    "JobSet": {"apiVersion!": str, "kind!": str, "metadata!": META, "spec!": "JobSetSpec"},
    "JobSetSpec": {
        "replicatedJobs!": ["ReplicatedJob"],
        "network": {"enableDNSHostnames": bool, "subdomain": str, "publishNotReadyAddresses": bool},
        "failurePolicy": {"maxRestarts": int, "restartStrategy": str, "rules": ["FailurePolicyRule"]},
        "successPolicy": {"operator!": str, "targetReplicatedJobs": [str]},
        "suspend": bool,
        "ttlSecondsAfterFinished": int,
    },
    "FailurePolicyRule": {
        "name": str,
        "action!": {"FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"},
        "onJobFailureReasons": [
            {
                "BackoffLimitExceeded",
                "DeadlineExceeded",
                "FailedIndexes",
                "MaxFailedIndexesExceeded",
                "PodFailurePolicy",
            }
        ],
        "onJobFailureMessagePatterns": [str],
        "targetReplicatedJobs": [str],
    },
    "ReplicatedJob": {"name!": str, "replicas": int, "template!": {"metadata": META, "spec!": "JobSpec"}},
    "JobSpec": {
        "completionMode": {"Indexed", "NonIndexed"},
        "completions": int,
        "parallelism": int,
        "backoffLimit": int,
        "activeDeadlineSeconds": int,
        "podFailurePolicy": {"rules!": ["PodFailurePolicyRule"]},
        "template!": {"metadata": META, "spec!": "PodSpec"},
    },
    "PodFailurePolicyRule": {
        "action!": {"FailJob", "FailIndex", "Ignore", "Count"},
        "onExitCodes": {"containerName": str, "operator!": {"In", "NotIn"}, "values!": [int]},
        "onPodConditions": [{"type!": str, "status!": str}],
    },
    "PodSpec": {
        "restartPolicy": {"Never", "OnFailure"},
        "terminationGracePeriodSeconds": int,
        "shareProcessNamespace": bool,
        "serviceAccountName": str,
        "nodeSelector": "labels",
        "containers!": ["Container"],
        "volumes": ["Volume"],
        "hostNetwork": bool,
        "dnsPolicy": str,
        "tolerations": [{"key": str, "operator": str, "value": str, "effect": str}],
    },
    "Container": {
        "name!": str,
        "image!": str,
        "workingDir": str,
        "command": [str],
        "args": [str],
        "env": [{"name!": str, "value": str}],
        "ports": [{"containerPort!": int, "name": str}],
        "resources": {"requests": "amounts", "limits": "amounts"},
        "volumeMounts": [{"name!": str, "mountPath!": str, "readOnly": bool, "subPath": str}],
    },
    "Volume": {
        "name!": str,
        "csi": {"driver!": str, "readOnly": bool, "volumeAttributes": "labels"},
        "emptyDir": {"medium": str, "sizeLimit": str},
    },
}


def violations(value, kind, path: str) -> list[str]:
    """What in a parsed file is not as the schema has it, by path."""
    if isinstance(kind, str) and kind in SCHEMA:
        kind = SCHEMA[kind]
    if kind in ("labels", "amounts"):
        scalar = str if kind == "labels" else int
        return [] if all(type(v) is scalar for v in value.values()) else [f"{path}: {value}"]
    if isinstance(kind, list):
        if not isinstance(value, list) or not value:
            return [f"{path}: no list"]
        return [line for i, v in enumerate(value) for line in violations(v, kind[0], f"{path}[{i}]")]
    if isinstance(kind, set) and all(isinstance(option, str) for option in kind):
        return [] if value in kind else [f"{path}: {value}"]
    if isinstance(kind, dict):
        fields = {name.removesuffix("!"): inner for name, inner in kind.items()}
        lines = [
            f"{path}.{name[:-1]}: missing" for name in kind if name[-1] == "!" and name[:-1] not in value
        ]
        lines += [f"{path}.{name}: unknown" for name in value if name not in fields]
        return lines + [
            line
            for name in value
            if name in fields
            for line in violations(value[name], fields[name], f"{path}.{name}")
        ]
    return [] if type(value) is kind else [f"{path}: {value!r} is no {kind.__name__}"]


@pytest.fixture(params=MANIFESTS, ids=lambda path: path.name)
def manifest(request) -> dict:
    (found,) = yaml.safe_load_all(request.param.read_text())
    return found


def parts(manifest: dict) -> tuple[dict, dict, dict, dict]:
    """The replicated job, its Job, its pods and their container."""
    (job,) = manifest["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    return job, spec, pod, container


def test_manifest_agrees_with_the_schema(manifest):
    assert violations(manifest, "JobSet", "") == []
    assert (manifest["apiVersion"], manifest["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert re.fullmatch(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?", manifest["metadata"]["name"])


def test_the_check_of_the_schema_finds_what_is_wrong(manifest):
    job, spec, pod, container = parts(manifest)
    container["resource"] = container.pop("resources")
    spec["backoffLimit"] = "0"
    pod["restartPolicy"] = "Always"
    del job["name"]
    manifest["spec"]["failurePolicy"]["rules"][0]["action"] = "Restart"
    found = " ".join(violations(manifest, "JobSet", ""))
    for named in ("resource: unknown", "backoffLimit: '0'", "Always", "].name: missing", "action: Restart"):
        assert named in found


def test_pods_of_a_manifest_are_one_gang(manifest):
    _, spec, pod, container = parts(manifest)
    assert spec["completionMode"] == "Indexed" and spec["completions"] == spec["parallelism"]
    assert spec["backoffLimit"] == 0, "a pod alone is never started again"
    assert pod["restartPolicy"] == "Never", "required by podFailurePolicy"
    assert pod["terminationGracePeriodSeconds"] >= 180
    names = {volume["name"] for volume in pod["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == names
    template = spec["template"]["metadata"]["annotations"]
    assert template["gke-gcsfuse/volumes"] == "true"
    options = pod["volumes"][0]["csi"]["volumeAttributes"]["mountOptions"].split(",")
    assert {"metadata-cache:ttl-secs:0", "metadata-cache:negative-ttl-secs:0"} <= set(options)
    for rule in spec["podFailurePolicy"]["rules"]:
        if "onExitCodes" in rule:
            values = rule["onExitCodes"]["values"]
            assert rule["onExitCodes"]["containerName"] == container["name"]
            assert values == sorted(set(values)) and 0 not in values


def test_hosts_and_chips_make_the_topology():
    (manifest,) = yaml.safe_load_all((LAUNCH / "gke_jobset.yaml").read_text())
    _, spec, pod, container = parts(manifest)
    sides = [int(side) for side in pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")]
    chips = container["resources"]["limits"]["google.com/tpu"]
    assert spec["completions"] * chips == sides[0] * sides[1]
    assert container["resources"]["requests"] == container["resources"]["limits"]
    assert "env" not in container, "GKE tells jax where the slice is"


def test_the_environment_of_gpu_pods_starts_them_as_one_run():
    (manifest,) = yaml.safe_load_all((LAUNCH / "gke_jobset_gpu.yaml").read_text())
    job, spec, _, container = parts(manifest)
    environ = {entry["name"]: entry["value"] for entry in container["env"]}
    name = manifest["metadata"]["name"]
    for index in range(spec["completions"]):
        found = cluster.decide(environ | {"JOB_COMPLETION_INDEX": str(index)}, lambda _: None)
        assert (found.processes, found.index) == (spec["completions"], index)
        assert found.coordinator.split(":")[0] == f"{name}-{job['name']}-0-0.{name}"


def outcome(manifest: dict, status: int, lost: bool = False) -> str:
    """What the controllers of Job and JobSet do once a pod has ended so."""
    _, spec, _, _ = parts(manifest)
    reason, message = "BackoffLimitExceeded", "Job has reached the specified backoff limit"
    for i, rule in enumerate(spec["podFailurePolicy"]["rules"]):
        codes = rule.get("onExitCodes")
        hit = lost if codes is None else (status in codes["values"]) == (codes["operator"] == "In")
        if hit:
            assert rule["action"] == "FailJob"
            reason = "PodFailurePolicy"
            what = (
                f"Container train for pod a/b failed with exit code {status}"
                if codes
                else "Pod a/b has condition"
            )
            message = f"{what} matching FailJob rule at index {i}"
            break
    for rule in manifest["spec"]["failurePolicy"]["rules"]:
        patterns = rule["onJobFailureMessagePatterns"]
        if reason in rule["onJobFailureReasons"] and any(re.search(pattern, message) for pattern in patterns):
            return rule["action"]
    return "RestartJobSet"


def test_exit_statuses_in_kubernetes(manifest):
    assert manifest["spec"]["failurePolicy"]["maxRestarts"] > 0
    for status in AGAIN:
        assert outcome(manifest, status) == "RestartJobSetAndIgnoreMaxRestarts"
    for status in A_FEW_TIMES:
        assert outcome(manifest, status) == "RestartJobSet"
    for status in NEVER:
        assert outcome(manifest, status) == "FailJobSet"
    for status in {*A_FEW_TIMES, *NEVER, *AGAIN}:
        assert outcome(manifest, status, lost=True) == "RestartJobSetAndIgnoreMaxRestarts"


def test_the_command_of_a_manifest(manifest):
    *_, container = parts(manifest)
    assert container["command"][:4] == ["python", "-u", "-m", "dydiff_jax.main"]
    check_command(container["command"])
    mounted = pathlib.PurePath(container["volumeMounts"][0]["mountPath"])
    workdir = next(flag for flag in container["command"] if flag.startswith("--workdir=")).split("=")[1]
    assert (pathlib.PurePath(container["workingDir"]) / workdir).is_relative_to(mounted), "the pods share it"
