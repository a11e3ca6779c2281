"""What lies in cluster/ fits the pinned versions, Ray's parsers and schema, and our command line.

Run: pytest tests/test_cluster.py
"""

import ast
import inspect
import json
import re
import shlex
import subprocess
import tomllib
from itertools import product
from pathlib import Path

import pytest
import ray
import torch
import yaml
from cluster_files import (
    CLUSTER,
    IMAGE,
    JOBS,
    PINNED,
    PROJECT,
    ROOT,
    TEXTS,
    clusters,
    commands,
    groups,
    job_spec,
    parsed,
)
from ray._private.ray_constants import PROMETHEUS_SERVICE_DISCOVERY_FILE
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import cli as ray_cli
from ray.scripts.scripts import start as ray_start
from setuptools.config.pyprojecttoml import read_configuration

import segpipe
from segpipe.segment.gauges import Gauges

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
    assert "kuberay-nightly.yaml status" in found


@pytest.mark.parametrize(("verb", "flags"), TOLD)
def test_a_command_of_a_header_goes_through_our_parser(verb, flags):
    parsed(verb, flags)


@pytest.mark.parametrize("name", JOBS)
def test_the_entrypoint_of_a_job_goes_through_our_parser(name):
    program, verb, *flags = shlex.split(job_spec(name)["entrypoint"])
    assert program in PROJECT["scripts"]  # the image has no checkout
    parsed(verb, flags)


def test_an_unknown_flag_of_an_entrypoint_is_refused():
    words = shlex.split(job_spec("kuberay-train.yaml")["entrypoint"])
    with pytest.raises(Exception, match="epoch-count"):
        parsed("train", [*words[2:], "--epoch-count", "3"])


RAY = re.compile(r"(?:^|['\s])ray ((?:job )?[a-z-]+)((?: +(?!--(?:\s|$))[^\s'#]+)*)", re.MULTILINE)


@pytest.mark.parametrize("name", ["aws.yaml", "kuberay-cluster.yaml"])
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
    for call in ast.walk(ast.parse(inspect.getsource(Gauges))):
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
