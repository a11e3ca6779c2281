"""What lies in cluster/ fits the pinned versions, Ray's parsers and schema, and our command line.

Run: pytest tests/test_cluster.py
"""

import ast
import inspect
import json
import os
import re
import shlex
import subprocess
import tomllib
from importlib import import_module
from itertools import product
from pathlib import Path

import pytest
import ray
import torch
import yaml
from ray._private.ray_constants import PROMETHEUS_SERVICE_DISCOVERY_FILE
from ray.autoscaler._private.kuberay.autoscaling_config import (
    _derive_autoscaling_config_from_ray_cr as autoscaling,
)
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import cli as ray_cli
from ray.scripts.scripts import start as ray_start
from ray.scripts.symmetric_run import symmetric_run
from setuptools.config.pyprojecttoml import read_configuration

import segpipe
from segpipe import cli, runtime

ROOT = Path(__file__).resolve().parent.parent
CLUSTER = ROOT / "cluster"
FILES = sorted(CLUSTER.iterdir())
TEXTS = {path.name: path.read_text() for path in FILES}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINNED = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
FIELDS = yaml.safe_load((ROOT / "tests/kuberay_v1.yaml").read_text())
MANIFESTS = {
    name: yaml.safe_load(text)
    for name, text in TEXTS.items()
    if name.startswith("kuberay-") and name.endswith(".yaml")
}
JOBS = ["kuberay-segment.yaml", "kuberay-train.yaml"]
CLUSTERS = [*JOBS, "kuberay-cluster.yaml"]
SCRIPTS = [name for name in TEXTS if name.endswith(".sh")]
IMAGE = f"REGISTRY/segpipe:{segpipe.__version__}-gpu"


def ids(*names: str) -> list[str]:
    assert set(names) <= set(TEXTS)
    return list(names)


# Every file


class OnceOnly(yaml.SafeLoader):
    """Refuses a key that is given twice, as kubectl does; PyYAML takes the last."""

    def construct_mapping(self, node, deep=False):
        keys = [key.value for key, _ in node.value]
        if len(set(keys)) < len(keys):
            raise ValueError(f"{node.start_mark}: a key twice among {keys}")
        return super().construct_mapping(node, deep)


def documents() -> list:
    """YAML and JSON of the folder, also in its pages."""
    found = [(name, text) for name, text in TEXTS.items() if name.endswith((".yaml", ".json"))]
    for name, text in TEXTS.items():
        blocks = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
        found += [(f"{name} block", block) for block in blocks]
    return [pytest.param(text, id=name) for name, text in found]


@pytest.mark.parametrize("text", documents())
def test_a_file_parses_and_has_no_key_twice(text):
    assert isinstance(yaml.load(text, OnceOnly), dict)


def test_a_key_twice_is_refused():
    with pytest.raises(ValueError, match="twice"):
        yaml.load("a: 1\nb: {c: 1, c: 2}\n", OnceOnly)


@pytest.mark.parametrize("name", [name for name in TEXTS if name != "README.md"])
def test_a_file_says_how_to_run_watch_and_delete_it(name):
    head = TEXTS[name]
    if name.endswith(".json"):
        head = json.loads(head)["description"]
    for word in ("Run", "Watch", "Delete"):
        assert re.search(rf"\b{word}\b", head), word


def test_the_readme_of_the_folder_links_every_file_in_it():
    linked = set(re.findall(r"\]\(([^)#]+)\)", TEXTS["README.md"]))
    assert linked == set(TEXTS) - {"README.md"}


def clusters() -> list[tuple[str, dict]]:
    found = []
    for name in CLUSTERS:
        spec = MANIFESTS[name]["spec"]
        found.append((name, spec.get("rayClusterSpec", spec)))
    return found


def groups() -> list[tuple[str, dict]]:
    """Every group of every cluster, heads too, with a name for messages."""
    found = []
    for name, spec in clusters():
        found.append((f"{name} head", spec["headGroupSpec"]))
        found += [(f"{name} {group['groupName']}", group) for group in spec["workerGroupSpecs"]]
    return found


GROUPS = [pytest.param(group, id=name) for name, group in groups()]


def test_ray_python_and_the_image_are_the_pinned_ones():
    assert ray.__version__ == PINNED["ray"]
    assert f"ray[data,default,train]=={PINNED['ray']}" in PROJECT["dependencies"]
    for _, spec in clusters():
        assert spec["rayVersion"] == PINNED["ray"]
    for _, group in groups():
        assert group["template"]["spec"]["containers"][0]["image"] == IMAGE
    assert yaml.safe_load(TEXTS["aws.yaml"])["docker"]["image"] == IMAGE
    python = re.search(r"^FROM python:(\d+\.\d+)-slim$", TEXTS["Dockerfile"], re.MULTILINE)[1]
    assert re.fullmatch(rf">={re.escape(python)},<\d+\.\d+", PROJECT["requires-python"])
    assert f"Ray {PINNED['ray']} and Python {python} everywhere" in TEXTS["README.md"]
    told = {v for text in TEXTS.values() for v in re.findall(r"segpipe:(\d\S*?)-[cg]pu", text)}
    assert told == {segpipe.__version__}


# A literal secret, or what looks like one: NAME=value where the value is no path, command or dots.
SECRET = re.compile(r"\b\w*(?:SECRET|TOKEN|KEY|PASSWORD)\w*=(?![\"']?(?:\$|\.\.\.|/))\S+")


def test_no_file_holds_a_secret_or_names_a_package_index():
    for name, text in TEXTS.items():
        assert not SECRET.search(text), name
        assert not re.search(r"\bAKIA[0-9A-Z]{16}\b|BEGIN [A-Z ]*PRIVATE KEY", text), name
        assert not re.search(r"pypi|download\.pytorch|/whl\b|simple/", text), name
    for name, group in groups():
        for container in group["template"]["spec"]["containers"]:
            for entry in container.get("env", []):
                assert "value" not in entry or not SECRET.search(f"{entry['name']}=x"), name


def test_the_search_for_secrets_finds_one():
    assert SECRET.search("export RAY_AUTH_TOKEN=abcdef")
    assert SECRET.search("AWS_SECRET_ACCESS_KEY='abc'")
    assert not SECRET.search('RAY_AUTH_TOKEN="$(kubectl get secret segpipe)"')


# Commands go through our own parser


def parsed(verb: str, flags: list[str]):
    """The checked config. Raises UserError for a flag that is unknown or cannot be meant."""
    module, name, _ = cli.VERBS[verb]
    config = cli._parse(verb, getattr(import_module(module), name), flags)
    if hasattr(config, "check"):
        config.check()
    return config


def commands(text: str) -> list[tuple[str, list[str]]]:
    """Verb and flags of every command of ours in a text: python -m jobs.VERB, segpipe VERB."""
    lines = re.sub(r"^# ?", "", text, flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", " ", lines)
    found = re.findall(r"(?:python -m jobs\.|\bsegpipe )(\w+) (--[^'|;\n]*)", lines)
    return [(verb, shlex.split(flags, comments=True)) for verb, flags in found]


TOLD = [
    pytest.param(verb, flags, id=f"{name} {verb}")
    for name, text in TEXTS.items()
    if not name.startswith("slurm")
    for verb, flags in commands(text)
]


def test_commands_are_found_in_headers():
    found = {param.id for param in TOLD}
    for line in ("aws.yaml segment", "aws.yaml train", "kuberay-cluster.yaml evaluate"):
        assert line in found
    assert "kuberay-segment.yaml status" in found


@pytest.mark.parametrize(("verb", "flags"), TOLD)
def test_a_command_of_a_header_goes_through_our_parser(verb, flags):
    parsed(verb, flags)


@pytest.mark.parametrize("name", JOBS)
def test_the_entrypoint_of_a_job_goes_through_our_parser(name):
    program, verb, *flags = shlex.split(MANIFESTS[name]["spec"]["entrypoint"])
    assert program in PROJECT["scripts"]  # the image has no checkout
    parsed(verb, flags)


def test_an_unknown_flag_of_an_entrypoint_is_refused():
    words = shlex.split(MANIFESTS["kuberay-train.yaml"]["spec"]["entrypoint"])
    with pytest.raises(Exception, match="epoch-count"):
        parsed("train", [*words[2:], "--epoch-count", "3"])


RAY = re.compile(r"(?:^|['\s])ray ((?:job )?[a-z-]+)((?: +(?!--(?:\s|$))[^\s'#]+)*)", re.MULTILINE)


@pytest.mark.parametrize("name", ids("aws.yaml", "kuberay-cluster.yaml"))
def test_ray_commands_of_a_header_have_arguments_that_ray_knows(name):
    header = re.sub(r"\\\n#?\s*", " ", TEXTS[name]).split("\napiVersion")[0]
    header = "\n".join(line[1:] for line in header.splitlines() if line.startswith("# "))
    found = [line for line in header.splitlines() if re.search(r"\bray [a-z]", line)]
    names = set()
    for line in found:
        for words, arguments in RAY.findall(line):
            command = ray_cli
            for word in words.split():
                command = command.commands[word]
            known = {option for parameter in command.params for option in parameter.opts}
            flags = {flag for flag in arguments.split() if flag.startswith("--")}
            assert flags <= known, (words, flags - known)
            names.add(words)
    assert "job submit" in names


# KubeRay


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


def test_a_number_where_ray_start_wants_text_is_refused():
    manifest = unshared("kuberay-segment.yaml")
    manifest["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] = 0
    assert problems("RayJob", manifest)


def test_kubectl_is_told_the_kinds_and_names_of_the_manifests():
    """KubeRay names the submitter's job after the RayJob, the head's service after the cluster."""
    there = {f"{m['kind'].lower()} {m['metadata']['name']}" for m in MANIFESTS.values()}
    there |= {f"job/{MANIFESTS[name]['metadata']['name']}" for name in JOBS}
    there.add(f"service/{MANIFESTS['kuberay-cluster.yaml']['metadata']['name']}-head-svc")
    told = re.findall(
        r"kubectl (?:get|delete|logs --follow|port-forward) ((?:ray\w+|podmonitor) \S+|\w+/[\w-]+)",
        re.sub(r"[`;]", " ", " ".join(TEXTS.values())),
    )
    assert set(told) == there


@pytest.mark.parametrize("name", JOBS)
def test_a_job_has_deadlines_and_retries_and_takes_its_cluster_away(name):
    spec = MANIFESTS[name]["spec"]
    assert 0 < spec["preRunningDeadlineSeconds"] < spec["activeDeadlineSeconds"]
    assert spec["backoffLimit"] > 0
    assert spec["shutdownAfterJobFinishes"]
    assert spec["ttlSecondsAfterFinished"] > 0


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
    found = MANIFESTS[job]["spec"]["rayClusterSpec"]["workerGroupSpecs"]
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
    spec = MANIFESTS["kuberay-train.yaml"]["spec"]
    config = parsed("train", shlex.split(spec["entrypoint"])[2:])
    ((name, group),) = workers("kuberay-train.yaml").items()
    assert name == "gpu"
    assert group["minReplicas"] == group["maxReplicas"] == config.most_workers
    assert "enableInTreeAutoscaling" not in spec["rayClusterSpec"]


def test_segmentation_decodes_on_cpu_pods_and_scales_its_gpus(monkeypatch):
    spec = MANIFESTS["kuberay-segment.yaml"]["spec"]
    config = parsed("segment", shlex.split(spec["entrypoint"])[2:])
    cpu, gpu = (workers("kuberay-segment.yaml")[name] for name in ("cpu", "gpu"))
    assert spec["rayClusterSpec"]["enableInTreeAutoscaling"]
    # All networks must start within runtime.ACTORS_START_S, and --device gpu must find a GPU.
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
    assert runtime.cpus_per_worker(config.workers, "cuda") == 1


# AWS


def test_the_launcher_file_is_valid_and_leaves_nothing_of_the_launchers_own_commands():
    config = prepare_config(yaml.safe_load(TEXTS["aws.yaml"]))
    validate_config(config)
    for key in ("setup_commands", "head_setup_commands", "worker_setup_commands"):
        assert config[key] == []


@pytest.mark.parametrize("place", [(), ("docker",), ("available_node_types", "gpu")])
def test_an_unknown_key_of_the_launcher_file_is_refused(place):
    config = prepare_config(yaml.safe_load(TEXTS["aws.yaml"]))
    inner = config
    for step in place:
        inner = inner[step]
    inner["min_worker"] = 1
    with pytest.raises(Exception, match="min_worker"):
        validate_config(config)


def test_on_aws_workers_are_spot_instances_the_head_is_not_and_all_have_the_token():
    config = yaml.safe_load(TEXTS["aws.yaml"])
    kinds = config["available_node_types"]
    spot = {k: "InstanceMarketOptions" in v["node_config"] for k, v in kinds.items()}
    assert spot == {"head": False, "cpu": True, "gpu": True}
    assert sum(kind["max_workers"] for kind in kinds.values()) == config["max_workers"]
    assert all(kind["node_config"]["IamInstanceProfile"] for kind in kinds.values())
    options = " ".join(config["docker"]["run_options"])
    (folder,) = config["file_mounts"]
    assert "--env RAY_AUTH_MODE=token" in options
    assert f"--env RAY_AUTH_TOKEN_PATH={folder}/auth_token" in options
    assert Path(config["file_mounts"][folder]).name == Path(folder).name == ".segpipe"
    (flags,) = [flags for verb, flags in commands(TEXTS["aws.yaml"]) if verb == "segment"]
    assert parsed("segment", flags).workers == kinds["gpu"]["min_workers"]
    for command in config["head_start_ray_commands"] + config["worker_start_ray_commands"]:
        if command.startswith("ray start"):
            ray_start.make_context("start", shlex.split(command)[2:])


# Slurm

STUBS = {
    "hostname": 'echo "10.0.0.7 172.17.0.1 "',
    "sbatch": "exit 1",
    # What symmetric-run does on the head: the command behind --, after Ray has started.
    "srun": """
        printf '%s\\0' "$@" > srun.words
        stat -c %a "$(dirname "$RAY_AUTH_TOKEN_PATH")" > token.mode
        cp "$RAY_AUTH_TOKEN_PATH" token; echo "$RAY_AUTH_MODE" > token.way
        [ -z "$FAILS" ] || exit 0
        while [ "$1" != -- ]; do shift; done; shift; exec "$@"
        """,
    "python": """
        printf '%s\\0' "$@" > python.words; echo "$RAY_ADDRESS" > address; exit "$ENDS_WITH"
        """,
}


@pytest.fixture
def checkout(tmp_path):
    """A folder like a checkout, with programs that write down how they were called."""
    (tmp_path / "cluster").symlink_to(CLUSTER)
    (tmp_path / "home").mkdir()
    programs = tmp_path / ".venv/bin"
    programs.mkdir(parents=True)
    for name, body in STUBS.items():
        (programs / name).write_text(f"#!/bin/bash\n{body}\n")
        (programs / name).chmod(0o755)
    return tmp_path


def batch(checkout: Path, script: str, *words: str, **env: str) -> subprocess.CompletedProcess:
    """Run a batch script as Slurm would, with what it would set by the script's own directives."""
    asked = dict(re.findall(r"^#SBATCH --([a-z-]+)=(\S+)$", TEXTS[script], re.MULTILINE))
    given = {
        "PATH": f"{checkout}/.venv/bin:/usr/bin:/bin",
        "HOME": str(checkout / "home"),
        "SLURM_JOB_ID": "42",
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_JOB_NUM_NODES": asked["nodes"],
        "SLURM_CPUS_PER_TASK": asked["cpus-per-task"],
        "FAILS": "",
        "ENDS_WITH": "0",
    }
    if "gpus-per-node" in asked:
        given["SLURM_GPUS_ON_NODE"] = asked["gpus-per-node"]
    return subprocess.run(
        ["/bin/bash", CLUSTER / script, *words],
        cwd=checkout,
        env=given | env,
        capture_output=True,
        text=True,
        timeout=30,
    )


def words(path: Path) -> list[str]:
    return path.read_text().split("\0")[:-1]


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_is_bash_and_may_be_run(name):
    subprocess.run(["bash", "-n", CLUSTER / name], check=True)
    assert os.access(CLUSTER / name, os.X_OK)
    assert TEXTS[name].startswith("#!/bin/bash\n")


@pytest.mark.parametrize(
    ("script", "verb", "first"),
    [("slurm-train.sh", "train", "data"), ("slurm-segment.sh", "segment", "input")],
)
def test_a_batch_script_starts_ray_on_all_nodes_and_our_command_on_one(
    script, verb, first, checkout
):
    done = batch(checkout, script, "/shared/in put", "s3://bucket/out", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    # Slurm's part, Ray's and ours, each through its own parser
    called = words(checkout / "srun.words")
    at = called.index("ray")
    assert all(word.startswith("--") for word in called[:at])
    assert called[at : at + 2] == ["ray", "symmetric-run"]
    end = called.index("--")
    options = symmetric_run.make_context("symmetric-run", called[at + 2 : end]).params
    asked = dict(re.findall(r"^#SBATCH --([a-z-]+)=(\S+)$", TEXTS[script], re.MULTILINE))
    assert options["address"] == "10.0.0.7:6379"
    assert options["min_nodes"] == int(asked["nodes"]) > 1
    node = ray_start.make_context("start", list(options["ray_args_and_entrypoint"])).params
    assert node["num_cpus"] == int(asked["cpus-per-task"])
    assert node["num_gpus"] == int(asked.get("gpus-per-node", 0))
    ours = words(checkout / "python.words")
    assert ours[:2] == ["-m", f"jobs.{verb}"]
    config = parsed(verb, ours[2:])
    assert (getattr(config, first), config.output) == ("/shared/in put", "s3://bucket/out")
    assert config.device == "cpu"  # what is given last holds
    assert (checkout / "address").read_text() == "10.0.0.7:6379\n"


def test_a_training_on_slurm_has_a_worker_for_each_gpu(checkout):
    env = {"SLURM_JOB_NUM_NODES": "4", "SLURM_GPUS_ON_NODE": "2"}
    flags = ["--batch-size", "8"]
    assert batch(checkout, "slurm-train.sh", "in", "out", *flags, **env).returncode == 0
    assert parsed("train", words(checkout / "python.words")[2:]).workers == "8"


def test_a_job_on_slurm_has_a_token_of_its_own_which_goes_with_it(checkout):
    tokens = set()
    for _ in range(2):
        assert batch(checkout, "slurm-segment.sh", "in", "out").returncode == 0
        assert (checkout / "token.mode").read_text() == "700\n"
        assert (checkout / "token.way").read_text() == "token\n"
        tokens.add((checkout / "token").read_text())
        assert list((checkout / "home").iterdir()) == []
    assert len(tokens) == 2
    assert min(map(len, tokens)) > 40


def test_a_batch_script_ends_with_the_code_of_our_command(checkout):
    assert batch(checkout, "slurm-segment.sh", "in", "out", ENDS_WITH="1").returncode == 1
    assert batch(checkout, "slurm-segment.sh", "in", "out", ENDS_WITH="2").returncode == 2


def test_a_batch_script_fails_where_ray_did_not_start(checkout):
    """symmetric-run itself ends with 0 then."""
    done = batch(checkout, "slurm-train.sh", "in", "out", FAILS="yes")
    assert done.returncode == 1
    assert "Ray did not start on 10.0.0.7:6379" in done.stderr


# The image

INSTRUCTIONS = {"FROM", "SHELL", "ARG", "RUN", "COPY", "ENV", "USER", "WORKDIR", "CMD"}


def dockerfile() -> list[tuple[str, str]]:
    lines = "\n".join(line for line in TEXTS["Dockerfile"].splitlines() if line[:1] != "#")
    logical = re.sub(r"\\\n", "", lines).splitlines()
    return [tuple(line.split(" ", 1)) for line in logical if line]


def test_the_image_is_built_by_known_instructions_from_files_that_are_there():
    found = dockerfile()
    assert {name for name, _ in found} == INSTRUCTIONS
    assert found[0][0] == "FROM"
    kept = re.findall(r"^!(.+)$", TEXTS["Dockerfile.dockerignore"], re.MULTILINE)
    sources = [word for name, rest in found if name == "COPY" for word in rest.split()[:-1]]
    assert sorted(sources) == sorted(kept)
    assert all((ROOT / source).exists() for source in sources)
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert {name.split(".")[0] for name in packages["packages"]} <= set(sources)


def test_a_wheel_takes_no_top_level_name_but_ours():
    """As setuptools itself reads pyproject.toml; `jobs` is run from a checkout."""
    taken = read_configuration(ROOT / "pyproject.toml")["tool"]["setuptools"]["packages"]
    assert {name.split(".")[0] for name in taken} == {"segpipe"}
    found = {str(path.parent.relative_to(ROOT)) for path in ROOT.glob("segpipe/**/__init__.py")}
    assert sorted(taken) == sorted(name.replace("/", ".") for name in found)


OF_JOBS = re.compile(r"-m\W+jobs\.|^\s*(?:import|from) jobs\b|\bjobs/\w*\.py", re.MULTILINE)


def test_nothing_that_is_installed_needs_the_jobs_of_a_checkout():
    """Nor what runs in the image: all but scripts of a checkout and headers that send one."""
    installed = [path for path in ROOT.glob("segpipe/**/*") if path.suffix in (".py", ".html")]
    image = [CLUSTER / name for name in ("Dockerfile", "aws.yaml", *JOBS)]
    assert len(installed) > 50
    for path in installed + image:
        assert not OF_JOBS.search(path.read_text()), path
    for told in ("python -m jobs.segment --input x", 'words = ["-m", "jobs.train"]', "import jobs"):
        assert OF_JOBS.search(told)


def test_the_image_installs_pinned_versions_and_ends_as_no_root():
    found = dockerfile()
    runs = [rest for name, rest in found if name == "RUN"]
    installs = [part for run in runs for part in run.split("&&") if "pip install" in part]
    assert len(installs) == 3
    assert all("--constraint constraints.txt" in part for part in installs)
    for run in runs:
        subprocess.run(["bash", "-n", "-c", run], check=True)
    assert [rest for name, rest in found if name == "USER"] == ["1000"]
    arguments = dict(rest.split("=", 1) for name, rest in found if name == "ARG")
    assert arguments == {"DEVICE": "gpu", "TORCH_INDEX": ""}
    assert PINNED["torch"] == torch.__version__.split("+")[0]


def snippet(number: int) -> str:
    """A program of the Dockerfile, as bash hands it to python."""
    runs = "\n".join(rest for name, rest in dockerfile() if name == "RUN")
    return re.findall(r'python -c "(.*?)"', runs)[number]


def test_the_image_refuses_a_torch_for_the_other_device():
    ends = {}
    for device in ("cpu", "gpu"):
        with pytest.raises(SystemExit) as stop:
            exec(snippet(0).replace("$DEVICE", device))
        ends[device] = stop.value.code
    right, wrong = ("gpu", "cpu") if torch.version.cuda else ("cpu", "gpu")
    assert ends[right] == 0
    assert ends[wrong].endswith(f"is for {right}, DEVICE is {wrong}: give TORCH_INDEX")


def test_the_image_has_what_segpipe_needs(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    exec(snippet(1))
    dicom = PROJECT["optional-dependencies"]["dicom"]
    assert capsys.readouterr().out.split("\n")[:-1] == [*PROJECT["dependencies"], *dicom]


# Monitoring


def exported() -> dict[str, set[str]]:
    """Metrics as Prometheus sees them, with their labels, read from the code that makes them."""
    found = {}
    for call in ast.walk(ast.parse(inspect.getsource(runtime.Gauges))):
        kind = getattr(getattr(call, "func", None), "id", None)
        if kind in ("Counter", "Gauge"):
            tags = [ast.literal_eval(k.value) for k in call.keywords if k.arg == "tag_keys"]
            name = f"ray_{call.args[0].value}" + ("_total" if kind == "Counter" else "")
            found[name] = set(tags[0]) if tags else set()
    return found


METRIC = re.compile(r"\bray_\w+")
SHOWN = json.loads(TEXTS["grafana.json"])


def test_the_dashboard_shows_every_metric_that_is_exported_and_no_other():
    queries = [variable["query"] for variable in SHOWN["templating"]["list"]]
    expressions = [target["expr"] for panel in SHOWN["panels"] for target in panel["targets"]]
    assert {m for text in queries + expressions for m in METRIC.findall(text)} == set(exported())


@pytest.mark.parametrize("page", ["cluster/monitoring.md", "docs/results.md"])
def test_a_page_names_the_metrics_that_are_exported(page):
    assert set(METRIC.findall((ROOT / page).read_text())) == set(exported())


@pytest.mark.parametrize(
    "panel", SHOWN["panels"], ids=[panel["title"] for panel in SHOWN["panels"]]
)
def test_a_panel_chooses_by_labels_that_its_metrics_have(panel):
    for target in panel["targets"]:
        text = target["expr"]
        metrics = METRIC.findall(text)
        known = set().union(*(exported()[name] for name in metrics)) | {"instance"}
        asked = set(re.findall(r"(\w+)(?:=~|!=|!~|=)\"", text))
        asked |= set(re.findall(r"\w+", " ".join(re.findall(r"by \((.*?)\)", text))))
        assert metrics
        assert asked <= known
        assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= asked
        for pair in ("()", "{}", "[]"):
            assert text.count(pair[0]) == text.count(pair[1])
        # A counter alone grows for ever: it is a rate, or a share of the same counter.
        assert all("rate(" in text or "/" in text for name in metrics if name.endswith("_total"))


def test_the_panels_of_the_dashboard_lie_beside_each_other():
    taken = set()
    for panel in SHOWN["panels"]:
        at = panel["gridPos"]
        across, down = range(at["x"], at["x"] + at["w"]), range(at["y"], at["y"] + at["h"])
        cells = set(product(across, down))
        assert not cells & taken
        assert max(x for x, _ in cells) < 24
        taken |= cells
    assert len({panel["id"] for panel in SHOWN["panels"]}) == len(SHOWN["panels"])


def test_prometheus_reads_the_list_that_ray_keeps():
    (job,) = yaml.safe_load(TEXTS["prometheus.yaml"])["scrape_configs"]
    (files,) = job["file_sd_configs"]
    assert Path(files["files"][0]).name == PROMETHEUS_SERVICE_DISCOVERY_FILE
