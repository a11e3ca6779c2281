"""KubeRay's manifests have the fields of their version, and fit each other and our flags.

Run: pytest tests/test_kuberay.py
"""

import json
import re
import shlex
from zoneinfo import ZoneInfo

import pytest
import ray
import yaml
from cluster_files import CLUSTERS, JOBS, MANIFESTS, ROOT, TEXTS, clusters, groups, job_spec, parsed
from ray.autoscaler._private.kuberay.autoscaling_config import (
    _derive_autoscaling_config_from_ray_cr as autoscaling,
)
from ray.scripts.scripts import start as ray_start

from segpipe.cluster.nodes import cpus_per_worker

NIGHTLY = "kuberay-nightly.yaml"
FIELDS = yaml.safe_load((ROOT / "tests/support/kuberay_v1.yaml").read_text())
GROUPS = [pytest.param(group, id=name) for name, group in groups()]


def problems(kind: str, value, at: str = "") -> list[str]:
    """What of a value is not as FIELDS has it for this type."""
    if isinstance(value, list):
        return [p for n, item in enumerate(value) for p in problems(kind, item, f"{at}[{n}]")]
    if kind == "any":
        return []
    if kind in ("int", "bool", "str"):
        found = type(value).__name__
        return [] if found == kind else [f"{at}: {kind}, not {found}"]
    if not isinstance(value, dict):
        return [f"{at}: {kind}, not {value!r}"]
    if kind == "strings":
        return [f"{at}.{k}: str, not {v!r}" for k, v in value.items() if not isinstance(v, str)]
    if kind == "quantities":
        amount = re.compile(r"\d+(\.\d+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?")
        return [f"{at}.{k}: {v!r}" for k, v in value.items() if not amount.fullmatch(str(v))]
    fields = FIELDS[kind]
    unknown = [f"{at}.{key}: no field of {kind}" for key in value if key not in fields]
    return unknown + [
        problem
        for key, item in value.items()
        if key in fields
        for problem in problems(fields[key], item, f"{at}.{key}")
    ]


def test_the_list_of_fields_has_every_type_that_it_names():
    leaves = {"any", "int", "bool", "str", "strings", "quantities"}
    named = {kind for fields in FIELDS.values() for kind in fields.values()}
    assert named <= leaves | set(FIELDS)


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_has_fields_of_its_version_alone(name):
    manifest = MANIFESTS[name]
    group = "monitoring.coreos.com/v1" if manifest["kind"] == "PodMonitor" else "ray.io/v1"
    assert manifest["apiVersion"] == group
    assert problems(manifest["kind"], manifest) == []


WORKER = ("spec", "rayClusterSpec", "workerGroupSpecs", 0)
CONTAINER = (*WORKER, "template", "spec", "containers", 0)
TYPOS = [
    (("spec",), "ttlSecondsAfterFinished", "ttlSecondsAfterFinish"),
    (("spec",), "activeDeadlineSeconds", "activeDeadlineSecond"),
    (("spec", "rayClusterSpec"), "enableInTreeAutoscaling", "enableInTreeAutoScaling"),
    (("spec", "rayClusterSpec", "autoscalerOptions"), "idleTimeoutSeconds", "idleTimeout"),
    (("spec", "rayClusterSpec", "headGroupSpec"), "rayStartParams", "rayStartParam"),
    (WORKER, "maxReplicas", "maxReplica"),
    ((*WORKER, "template", "spec"), "containers", "container"),
    (CONTAINER, "envFrom", "envfrom"),
    ((*CONTAINER, "envFrom", 0, "secretRef"), "optional", "optionally"),
    ((*CONTAINER, "resources"), "limits", "limit"),
]


def unshared(name: str) -> dict:
    """A manifest to be changed: what YAML's aliases share is copied apart."""
    return json.loads(json.dumps(MANIFESTS[name]))


@pytest.mark.parametrize(("place", "right", "wrong"), TYPOS, ids=[typo[2] for typo in TYPOS])
def test_a_misspelt_field_is_refused(place, right, wrong):
    manifest = unshared("kuberay-segment.yaml")
    inner = manifest
    for step in place:
        inner = inner[step]
    inner[wrong] = inner.pop(right)
    (problem,) = problems("RayJob", manifest)
    assert f".{wrong}: no field of" in problem


@pytest.mark.parametrize("key", ["concurrencyPolicy", "startingDeadlineSeconds"])
def test_a_field_that_only_a_cronjob_of_kubernetes_has_is_refused(key):
    manifest = unshared(NIGHTLY)
    manifest["spec"][key] = "Forbid"
    assert problems("RayCronJob", manifest) == [f".spec.{key}: no field of RayCronJobSpec"]


def test_a_spec_in_the_template_of_a_raycronjob_is_refused():
    """As a CronJob of Kubernetes has it."""
    manifest = unshared(NIGHTLY)
    manifest["spec"]["jobTemplate"] = {"spec": manifest["spec"]["jobTemplate"]}
    assert problems("RayCronJob", manifest) == [".spec.jobTemplate.spec: no field of RayJobSpec"]


def test_a_number_where_ray_start_wants_text_is_refused():
    manifest = unshared("kuberay-segment.yaml")
    manifest["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] = 0
    assert problems("RayJob", manifest)


def test_kubectl_is_told_the_kinds_and_names_of_the_manifests():
    """KubeRay names the submitter's job after the RayJob, the head's service after the cluster."""
    there = {f"{m['kind'].lower()} {m['metadata']['name']}" for m in MANIFESTS.values()}
    there |= {f"job/{MANIFESTS[name]['metadata']['name']}" for name in JOBS if name != NIGHTLY}
    there.add("job/NAME")  # those of a RayCronJob have names that KubeRay makes up
    there.add(f"service/{MANIFESTS['kuberay-cluster.yaml']['metadata']['name']}-head-svc")
    told = re.findall(
        r"kubectl (?:get|delete|logs --follow|port-forward) "
        r"((?:ray\w+|podmonitor) (?!-)\S+|\w+/[\w-]+)",
        re.sub(r"[`;]", " ", " ".join(TEXTS.values())),
    )
    assert set(told) == there


@pytest.mark.parametrize("name", JOBS)
def test_a_job_has_deadlines_and_retries_and_takes_its_cluster_away(name):
    spec = job_spec(name)
    assert 0 < spec["preRunningDeadlineSeconds"] < spec["activeDeadlineSeconds"]
    assert spec["backoffLimit"] > 0
    assert spec["shutdownAfterJobFinishes"]
    assert spec["ttlSecondsAfterFinished"] > 0


CRON = re.compile(r"(\d+) (\d+) \* \* \*")  # of the fields of cron(5), what runs once a day
DAY_S = 24 * 3600


def test_all_attempts_of_a_night_end_before_the_next_one():
    """A retry is given the whole deadline again; one that exceeded it is not retried."""
    spec = MANIFESTS[NIGHTLY]["spec"]
    minute, hour = map(int, CRON.fullmatch(spec["schedule"]).groups())
    assert minute < 60
    assert hour < 24
    job = job_spec(NIGHTLY)
    assert (job["backoffLimit"] + 1) * job["activeDeadlineSeconds"] < DAY_S


def test_a_time_zone_stands_in_its_own_field():
    """KubeRay refuses it in the schedule."""
    spec = MANIFESTS[NIGHTLY]["spec"]
    assert "TZ" not in spec["schedule"]
    assert ZoneInfo(spec["timeZone"])


def test_a_night_skips_an_output_that_is_locked_and_keeps_a_job_of_its_own():
    """KubeRay has no policy for a night that begins while another one still runs."""
    config = parsed("segment", shlex.split(job_spec(NIGHTLY)["entrypoint"])[2:])
    assert config.if_locked == "skip"
    assert config.device == "cpu"
    assert set(workers(NIGHTLY)) == {"cpu"}
    assert "jobId" not in job_spec(NIGHTLY)


@pytest.mark.parametrize(("name", "spec"), clusters(), ids=CLUSTERS)
def test_a_cluster_asks_for_a_token_and_runs_no_work_on_its_head(name, spec):
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


@pytest.mark.parametrize("group", GROUPS)
def test_a_pod_asks_for_what_it_may_use_runs_as_no_root_and_has_the_stores_secret(group):
    pod = group["template"]["spec"]
    (container,) = pod["containers"]
    assert container["resources"]["requests"] == container["resources"]["limits"]
    assert {"cpu", "memory"} <= set(container["resources"]["requests"])
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["runAsUser"] == 1000  # the user of the image
    assert container["envFrom"] == [{"secretRef": {"name": "segpipe-s3", "optional": True}}]
    known = {option.removeprefix("--") for p in ray_start.params for option in p.opts}
    assert set(group["rayStartParams"]) <= known
    if "nvidia.com/gpu" in container["resources"]["limits"]:
        assert "nvidia.com/gpu" in [toleration["key"] for toleration in pod["tolerations"]]
    if "groupName" in group:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


def workers(job: str) -> dict[str, dict]:
    """The worker groups of a job by name."""
    found = job_spec(job)["rayClusterSpec"]["workerGroupSpecs"]
    return {group["groupName"]: group for group in found}


def counted(spec: dict) -> dict[str, dict[str, int]]:
    """What Ray's autoscaler takes a pod of each group to have."""
    kinds = autoscaling({"metadata": {"name": "some", "namespace": "some"}, "spec": spec})
    return {name: kind["resources"] for name, kind in kinds["available_node_types"].items()}


@pytest.mark.parametrize(("name", "spec"), clusters(), ids=CLUSTERS)
def test_rays_autoscaler_counts_no_core_on_the_head_and_one_gpu_on_a_gpu_pod(name, spec):
    found = counted(spec)
    assert found.pop("headgroup")["CPU"] == 0
    assert {group: kind.get("GPU", 0) for group, kind in found.items()} == {
        group: int(group == "gpu") for group in found
    }
    assert all(kind["CPU"] >= 1 for kind in found.values())


def test_a_training_has_as_many_gpus_from_start_to_end_as_it_has_workers():
    spec = job_spec("kuberay-train.yaml")
    config = parsed("train", shlex.split(spec["entrypoint"])[2:])
    ((name, group),) = workers("kuberay-train.yaml").items()
    assert name == "gpu"
    assert group["minReplicas"] == group["maxReplicas"] == config.most_workers
    assert "enableInTreeAutoscaling" not in spec["rayClusterSpec"]


def test_segmentation_decodes_on_cpu_pods_and_scales_its_gpus(monkeypatch):
    spec = job_spec("kuberay-segment.yaml")
    config = parsed("segment", shlex.split(spec["entrypoint"])[2:])
    cpu, gpu = (workers("kuberay-segment.yaml")[name] for name in ("cpu", "gpu"))
    assert spec["rayClusterSpec"]["enableInTreeAutoscaling"]
    # All networks must start within ACTORS_START_S, and --device gpu must find a GPU.
    assert gpu["replicas"] == gpu["maxReplicas"] == config.workers
    assert 1 <= gpu["minReplicas"] < gpu["maxReplicas"]
    assert cpu["minReplicas"] == cpu["maxReplicas"]
    # The network books the one core of a GPU pod, so that no data stage is placed beside it.
    pods = counted(spec["rayClusterSpec"])
    assert pods["gpu"]["CPU"] == 1
    nodes = [pods[group["groupName"]] for group in (cpu, gpu) for _ in range(group["replicas"])]
    have = [
        {"Alive": True, "NodeID": str(number), "Resources": node}
        for number, node in enumerate(nodes)
    ]
    monkeypatch.setattr(ray, "nodes", lambda: have)
    assert cpus_per_worker(config.workers, "cuda") == 1
