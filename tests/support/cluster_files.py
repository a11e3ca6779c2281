"""What lies in cluster/, read once for all its tests; our commands there, and their parser."""

import re
import shlex
import tomllib
from importlib import import_module
from pathlib import Path

import yaml

import segpipe
from segpipe import cli

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = ROOT / "cluster"
FILES = sorted(CLUSTER.iterdir())
TEXTS = {path.name: path.read_text() for path in FILES}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINNED = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
MANIFESTS = {
    name: yaml.safe_load(text)
    for name, text in TEXTS.items()
    if name.startswith("kuberay-") and name.endswith(".yaml")
}
JOBS = ["kuberay-nightly.yaml", "kuberay-segment.yaml", "kuberay-train.yaml"]
CLUSTERS = [*JOBS, "kuberay-cluster.yaml"]
IMAGE = f"REGISTRY/segpipe:{segpipe.__version__}-gpu"


def job_spec(name: str) -> dict:
    """The spec of a RayJob, or of those that a RayCronJob makes."""
    spec = MANIFESTS[name]["spec"]
    return spec.get("jobTemplate", spec)


def clusters() -> list[tuple[str, dict]]:
    found = []
    for name in CLUSTERS:
        spec = job_spec(name)
        found.append((name, spec.get("rayClusterSpec", spec)))
    return found


def groups() -> list[tuple[str, dict]]:
    """Every group of every cluster, heads too, with a name for messages."""
    found = []
    for name, spec in clusters():
        found.append((f"{name} head", spec["headGroupSpec"]))
        found += [(f"{name} {group['groupName']}", group) for group in spec["workerGroupSpecs"]]
    return found


def parsed(verb: str, flags: list[str]):
    """The checked config. Raises UserError for a flag that is unknown or cannot be meant."""
    module, name, _ = cli.VERBS[verb]
    config = cli.parse(verb, getattr(import_module(module), name), flags)
    if hasattr(config, "check"):
        config.check()
    return config


def commands(text: str) -> list[tuple[str, list[str]]]:
    """Verb and flags of every command of ours in a text: python -m jobs.VERB, segpipe VERB."""
    lines = re.sub(r"^# ?", "", text, flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", " ", lines)
    found = re.findall(r"(?:python -m jobs\.|\bsegpipe )(\w+) (--[^'|;\n]*)", lines)
    return [(verb, shlex.split(flags, comments=True)) for verb, flags in found]
