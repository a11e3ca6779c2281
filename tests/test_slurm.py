"""The batch scripts and the schedule of docs/archive.md, with stubs of what Slurm brings.

Run: pytest tests/test_slurm.py
"""

import os
import re
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from cluster_files import CLUSTER, ROOT, TEXTS, commands, parsed
from ray.scripts.scripts import start as ray_start
from ray.scripts.symmetric_run import symmetric_run

SCRIPTS = [name for name in TEXTS if name.endswith(".sh")]
JOB_ID = 42
EPHEMERAL = 32768  # the first port that Linux gives out: ip_local_port_range, ip-sysctl.rst
PORT = 20000 + 2 * JOB_ID  # of the job; that of its metrics is the next one
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
        "SLURM_JOB_ID": str(JOB_ID),
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
    assert options["address"] == f"10.0.0.7:{PORT}"
    assert options["min_nodes"] == int(asked["nodes"]) > 1
    node = ray_start.make_context("start", list(options["ray_args_and_entrypoint"])).params
    assert node["num_cpus"] == int(asked["cpus-per-task"])
    assert node["metrics_export_port"] == PORT + 1
    assert node["num_gpus"] == int(asked.get("gpus-per-node", 0))
    ours = words(checkout / "python.words")
    assert ours[:2] == ["-m", f"jobs.{verb}"]
    config = parsed(verb, ours[2:])
    assert (getattr(config, first), config.output) == ("/shared/in put", "s3://bucket/out")
    assert config.device == "cpu"  # what is given last holds
    assert (checkout / "address").read_text() == f"10.0.0.7:{PORT}\n"


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


def asked_address(checkout: Path) -> str:
    called = words(checkout / "srun.words")
    return called[called.index("--address") + 1]


@pytest.fixture
def taken():
    """Have ports taken, on the address that is given."""
    with ExitStack() as held:

        def take(host: str, *ports: int) -> None:
            for port in ports:
                family = socket.AF_INET6 if ":" in host else socket.AF_INET
                held.enter_context(socket.create_server((host, port), family=family))

        yield take


@pytest.mark.parametrize(
    ("host", "ports", "chosen"),
    [
        ("127.0.0.1", [PORT], PORT + 2),
        ("", [PORT + 1], PORT + 2),
        ("::1", [PORT, PORT + 3], PORT + 4),
    ],
)
def test_a_port_that_is_taken_is_passed_over(checkout, taken, host, ports, chosen):
    taken(host, *ports)
    assert batch(checkout, "slurm-segment.sh", "in", "out").returncode == 0
    assert asked_address(checkout) == f"10.0.0.7:{chosen}"
    called = words(checkout / "srun.words")
    assert called[called.index("--metrics-export-port") + 1] == str(chosen + 1)


def test_after_the_last_pair_of_ports_comes_the_first(checkout, taken):
    taken("127.0.0.1", 29999)
    assert batch(checkout, "slurm-segment.sh", "in", "out", SLURM_JOB_ID="4999").returncode == 0
    assert asked_address(checkout) == "10.0.0.7:20000"


@pytest.mark.parametrize("job_id", ["1", "4999", "5000", "67043327"])
def test_no_port_is_one_of_rays_workers_or_given_out_by_linux(checkout, job_id):
    """The largest number of a job: MaxJobId of slurm.conf(5), 0x03ff0000."""
    assert batch(checkout, "slurm-segment.sh", "in", "out", SLURM_JOB_ID=job_id).returncode == 0
    port = int(asked_address(checkout).rpartition(":")[2])
    workers = {p.name: p.default for p in ray_start.params}
    assert workers["max_worker_port"] < port < port + 1 < EPHEMERAL


def test_a_batch_script_fails_where_ray_did_not_start(checkout):
    """symmetric-run itself ends with 0 then. What an earlier job or step left does not count."""
    left = checkout / "home" / f".segpipe-{JOB_ID}-earlier"
    left.mkdir()
    (left / "exit_code").write_text("0\n")
    done = batch(checkout, "slurm-train.sh", "in", "out", FAILS="yes")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert f"Ray did not start on 10.0.0.7:{PORT}" in line


def test_a_batch_script_fails_where_its_command_was_cut_off(checkout):
    """As a node that runs out of memory may do, and srun still end with 0."""
    cut_off = "kill -9 $PPID"
    (checkout / ".venv/bin/python").write_text(f"#!/bin/bash\n{cut_off}\n")
    (checkout / ".venv/bin/srun").write_text(
        '#!/bin/bash\nwhile [ "$1" != -- ]; do shift; done; shift; "$@"; exit 0\n'
    )
    done = batch(checkout, "slurm-segment.sh", "in", "out")
    assert done.returncode == 1
    assert "the command did not end by itself" in done.stderr.splitlines()[-1]


# Ray's own symmetric-run, where `ray start` takes the head's port and does no more.
SYMMETRIC_RUN = f"""#!{sys.executable}
import socket, sys
if sys.argv[1] == "start":
    port = next(int(word.partition("=")[2]) for word in sys.argv if word.startswith("--port="))
    socket.create_server(("127.0.0.1", port)).close()  # OSError where it is taken
elif sys.argv[1] == "symmetric-run":
    import ray.scripts.symmetric_run as ray
    ray.check_ray_already_started = lambda: False  # one of other tests may run
    ray.symmetric_run(sys.argv[2:])
"""
SRUN = f"""#!{sys.executable}
import os, socket, subprocess, sys
held = [socket.create_server(("127.0.0.1", int(port))) for port in os.environ["TAKES"].split()]
words = sys.argv[1:]
while words[0].startswith("--"):
    del words[0]
code = subprocess.run(words).returncode
open("srun.code", "w").write(str(code))
sys.exit(code)
"""


@pytest.fixture
def rays_own(checkout):
    """The checkout with Ray's own symmetric-run, on a job of one node."""
    (checkout / ".venv/bin/ray").write_text(SYMMETRIC_RUN)
    (checkout / ".venv/bin/ray").chmod(0o755)
    (checkout / ".venv/bin/srun").write_text(SRUN)

    def run(command: str, **env: str) -> subprocess.CompletedProcess:
        (checkout / ".venv/bin/python").write_text(f"#!/bin/bash\n{command}\n")
        given = {"SLURM_JOB_NUM_NODES": "1", "SEGPIPE_HEAD": "127.0.0.1", "TAKES": ""}
        return batch(checkout, "slurm-segment.sh", "in", "out", **given | env)

    return run


def test_a_port_that_is_taken_after_the_look_fails_the_job(checkout, rays_own):
    done = rays_own("touch ran", TAKES=str(PORT))
    assert (checkout / "srun.code").read_text() == "0"  # as symmetric-run has it
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(
        f"slurm-ray.sh: Ray did not start on 127.0.0.1:{PORT}, the command was not run"
    )
    assert not (checkout / "ran").exists()


@pytest.mark.parametrize(
    "command", [pytest.param("exit 0", marks=pytest.mark.nightly), "exit 7", "kill -9 $$"]
)
def test_a_job_ends_with_the_code_of_a_command_that_rays_own_symmetric_run_ran(rays_own, command):
    code = {"exit 0": 0, "exit 7": 7, "kill -9 $$": 128 + 9}[command]
    assert rays_own(command).returncode == code


# The schedules

ARCHIVE = (ROOT / "docs/archive.md").read_text()
SCHEDULES = re.findall(r"```crontab\n(.*?)```", ARCHIVE, re.DOTALL)


def test_what_cron_runs_goes_through_our_parser_and_skips_a_locked_output():
    ((verb, flags),) = commands(SCHEDULES[0])
    assert parsed(verb, flags[: flags.index(">>")]).if_locked == "skip"
    (hours,) = re.findall(r" timeout .* (\d+)h ", SCHEDULES[0])
    assert int(hours) < 24


def test_what_scrontab_asks_for_is_what_the_script_asks_for(checkout):
    """But for its name, place and time: it reads no #SBATCH line."""
    ours = {"job-name", "output", "chdir", "time"}
    asked = re.findall(r"^#SCRON --([a-z-]+)(?:=(\S+))?$", SCHEDULES[1], re.MULTILINE)
    script = re.findall(
        r"^#SBATCH --([a-z-]+)(?:=(\S+))?$", TEXTS["slurm-segment.sh"], re.MULTILINE
    )
    others = {"job-name", "output", "open-mode", "time", "requeue"}
    assert {o for o in asked if o[0] not in ours} == {o for o in script if o[0] not in others}
    assert int(dict(asked)["time"].split(":")[0]) < 24
    program, *rest = SCHEDULES[1].splitlines()[-1].split()[5:]
    assert batch(checkout, Path(program).name, *rest).returncode == 0
    assert parsed("segment", words(checkout / "python.words")[2:]).if_locked == "skip"
