"""What segpipe uses of Ray and torch that is private is where it was and means what it did.

Run: pytest tests/test_ray_compat.py
"""

import ast
import inspect
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
import torch
import torch.distributed as dist
from ranks import CONTEXT
from ray._private import services, utils, worker
from ray._raylet import AuthenticationTokenLoader
from ray.data import DataContext
from ray.data._internal.execution.streaming_executor import StreamingExecutor
from ray.train import RunConfig, ScalingConfig
from ray.train.v2._internal import constants as train_constants
from ray.train.v2._internal.data_integration.dataset_manager import DatasetManager
from ray.train.v2._internal.execution.scaling_policy.elastic import ElasticScalingPolicy
from ray.train.v2._internal.execution.worker_group.worker_group import WorkerGroup
from torch import nn
from torch.nn.functional import conv2d
from torch.nn.parallel import DistributedDataParallel

import segpipe
from segpipe import ray_compat
from segpipe.cluster.throttle import BackgroundThrottle, SchedulerThrottle
from segpipe.models import torch_compat

RAY = Path(ray.__file__).parent
PACKAGE = Path(segpipe.__file__).parent
COMPAT = ("ray_compat.py", "models/torch_compat.py")
PRINT = worker.print_to_stdstream  # Ray's own, also while another test's Ray is silent

# ---- nothing lies elsewhere

PRIVATE_MODULE = re.compile(r"^(ray|torch)\b.*(\._|\.core\.generated)")
PRIVATE_NAMES = {  # public spelling, internal or alpha all the same
    "map_batches_internal",
    "custom_execution_callback_classes",
    "elastic_resize_monitor_interval_s",
    "worker_runtime_env",
    "forward_sync_buffers",
    "print_to_stdstream",
    "_system_config",
    "_temp_dir",
    *ray_compat.DATA_SETTINGS,
}
RAYS_CLASSES = {"DataConfig", "ExecutionCallback"}  # that segpipe derives from
DOCUMENTED = {  # switches of Ray's environment
    "RAY_ADDRESS",
    "RAY_AUTH_MODE",
    "RAY_AUTH_TOKEN",
    "RAY_AUTH_TOKEN_PATH",
    "RAY_TMPDIR",
}
TUPLES = {"_replace", "_fields", "_asdict"}  # of named tuples


def private_uses(text: str) -> list[str]:
    """What a module uses of Ray and torch that only the two compat modules may."""
    found, imports = [], set()
    for node in ast.walk(ast.parse(text)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found += [
                name
                for name in names
                if node.module.startswith("ray.") and name.rpartition(".")[2] in RAYS_CLASSES
            ]
        imports |= {name.partition(".")[0] for name in names}
        found += [name for name in names if PRIVATE_MODULE.match(name)]
        if isinstance(node, ast.keyword) and node.arg in PRIVATE_NAMES:
            found.append(node.arg)
        if isinstance(node, ast.Attribute) and node.attr in PRIVATE_NAMES:
            found.append(node.attr)
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            switches = re.findall(r"\bRAY_\w+", node.value)
            found += [name for name in switches if name not in DOCUMENTED]
            found += [node.value] * (node.value in PRIVATE_NAMES)
    if imports & {"ray", "torch"}:
        own = re.compile(r"(self|cls)\b")
        found += [
            node.attr
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.Attribute)
            and re.match("_[a-z]", node.attr)
            and node.attr not in TUPLES
            and not own.fullmatch(ast.unparse(node.value))
        ]
    return found


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("from ray._private import worker", ["ray._private.worker"]),
        ("from ray import _raylet", ["ray._raylet"]),
        ("from ray.core.generated.gcs import X", ["ray.core.generated.gcs.X"]),
        ("from ray.train import DataConfig", ["ray.train.DataConfig"]),
        ("import ray\nray.data.range(1)._logical_plan", ["_logical_plan"]),
        ("import torch\ntorch._dynamo.reset()", ["_dynamo"]),
        ("f(forward_sync_buffers=False)", ["forward_sync_buffers"]),
        ("x.wait_for_min_actors_s = 1", ["wait_for_min_actors_s"]),
        ("os.environ['RAY_BACKEND_LOG_LEVEL']", ["RAY_BACKEND_LOG_LEVEL"]),
        ("import ray\nray.get(self._x), 'RAY_ADDRESS', ray.train.torch", []),
    ],
)
def test_a_private_use_is_seen(text, wanted):
    assert private_uses(text) == wanted


def test_no_other_module_uses_what_is_private_in_ray_or_torch():
    modules = [path for path in PACKAGE.rglob("*.py")]
    found = {
        str(path.relative_to(PACKAGE)): uses
        for path in modules
        if (uses := private_uses(path.read_text()))
    }
    assert len(modules) > 80
    assert {name: uses for name, uses in found.items() if name not in COMPAT} == {}
    assert set(found) == set(COMPAT)


@pytest.mark.parametrize("module", [ray_compat, torch_compat])
def test_each_entry_is_tested_here(module):
    tree = ast.parse(Path(module.__file__).read_text())
    names = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    names += [node.targets[0].id for node in tree.body if isinstance(node, ast.Assign)]
    names += [node.target.id for node in tree.body if isinstance(node, ast.AnnAssign)]
    own = Path(__file__).read_text()
    assert len(names) > 2
    assert [
        name for name in names if f"{module.__name__.rpartition('.')[2]}.{name}" not in own
    ] == []


# ---- how Ray's processes run


def test_rays_core_still_asks_for_its_log_level_in_the_environment():
    assert ray_compat.ENVIRONMENT["RAY_BACKEND_LOG_LEVEL"] == "fatal"
    assert b"RAY_BACKEND_LOG_LEVEL" in (RAY / "_raylet.so").read_bytes()


@pytest.mark.parametrize("ignored", [True, False])
def test_unhandled_errors_are_told_unless_the_environment_says_no(monkeypatch, ignored):
    told: list[Exception] = []
    name = "RAY_IGNORE_UNHANDLED_ERRORS"
    monkeypatch.setattr(worker, "_unhandled_error_handler", told.append)
    monkeypatch.delenv(name, raising=False)
    if ignored:
        monkeypatch.setenv(name, ray_compat.ENVIRONMENT[name])
    error = ValueError("x")
    worker.Worker.raise_errors(SimpleNamespace(deserialize_objects=lambda *_: [error]), [], [])
    assert told == ([] if ignored else [error])


def test_a_training_watches_for_preemption_unless_the_environment_says_no():
    [(name, value)] = ray_compat.OWN_ENVIRONMENT.items()
    assert name == train_constants.ENABLE_PREEMPTION_WATCHER_ENV_VAR
    assert train_constants.DEFAULT_ENABLE_PREEMPTION_WATCHER
    assert value == "0"


def test_each_setting_of_rays_core_is_one_of_its_own():
    core = (RAY / "core/src/ray/raylet/raylet").read_bytes()
    assert [name for name in ray_compat.SYSTEM_CONFIG if name.encode() not in core] == []


UNKNOWN = """
import ray
from segpipe import ray_compat
ray.init(address="local", nonsense=1, **ray_compat.own_options("/tmp"))
"""


def test_ray_takes_the_options_of_our_own():
    """It names those that it does not know before it starts anything."""
    ended = subprocess.run([sys.executable, "-c", UNKNOWN], check=False, capture_output=True)
    assert ended.stderr.decode().endswith("RuntimeError: Unknown keyword argument(s): nonsense\n")
    assert "_temp_dir" not in ray_compat.own_options(None)


def test_rays_longest_socket_lies_where_we_count(ray_cluster):
    node = worker.global_worker.node
    sockets = [node.plasma_store_socket_name, node.raylet_socket_name]
    longest = max(sockets, key=len)
    below = longest[longest.index("ray/session_") :]
    counted = ray_compat.SOCKET.format(pid=re.findall(r"_(\d+)/sockets", longest)[0])
    assert re.sub(r"\d", "0", below) == re.sub(r"\d", "0", counted)


@pytest.mark.parametrize("quota", [1.0, 3.0, None])
def test_a_containers_quota_counts(monkeypatch, quota):
    monkeypatch.setattr(utils, "_get_docker_cpus", lambda: quota)
    monkeypatch.setattr(utils.multiprocessing, "cpu_count", lambda: 8)
    assert ray_compat.container_cores() == (quota or 8)


def test_rays_wheel_has_a_jemalloc_for_the_loader():
    env = os.environ | {"LD_PRELOAD": ray_compat.jemalloc(), "MALLOC_CONF": "stats_print:true"}
    ended = subprocess.run(["true"], env=env, check=True, capture_output=True)
    assert b"jemalloc statistics" in ended.stderr


# ---- what a head answers


@pytest.fixture
def head(ray_cluster) -> str:
    return ray.get_runtime_context().gcs_address


def test_a_head_is_found_by_its_address_or_as_this_machines_latest(monkeypatch, tmp_path, head):
    assert ray_compat.find_head(head) == head
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))  # no latest
    monkeypatch.setattr(services, "find_gcs_addresses", lambda: frozenset([head]))
    assert ray_compat.find_head("auto") == head
    monkeypatch.setattr(services, "find_gcs_addresses", frozenset)
    assert ray_compat.find_head("auto") is None


def test_a_node_on_this_machine_is_seen(ray_cluster, monkeypatch):
    assert ray_compat.has_node_here()
    monkeypatch.setattr(services.psutil, "process_iter", lambda *_, **__: iter(()))
    assert not ray_compat.has_node_here()


def test_a_head_tells_its_versions(head):
    metadata = ray_compat.head_metadata(head, timeout_s=10)
    assert metadata["ray_version"] == ray.__version__
    assert metadata["python_version"] == ".".join(map(str, sys.version_info[:3]))
    assert ray_compat.same_versions(metadata)
    assert not ray_compat.same_versions(metadata | {"ray_version": "2.9.3"})
    assert not ray_compat.same_versions(metadata | {"python_version": "3.10.4"})


def test_the_machines_token_is_taken_where_nothing_is_said(monkeypatch, tmp_path):
    """In a process of its own: the mode is kept by Ray's core."""
    (tmp_path / ".ray").mkdir()
    program = "import os\nfrom segpipe import ray_compat\nray_compat.use_machine_token()\n"
    program += "print(os.environ.get('RAY_AUTH_MODE'))"
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    words = [sys.executable, "-c", program]
    for wanted in (b"None", b"token"):
        told = subprocess.run(
            words, env=env | {"HOME": str(tmp_path)}, check=True, capture_output=True
        )
        assert told.stdout.split() == [wanted]
        (tmp_path / ".ray/auth_token").write_text("a" * 64)


def test_a_token_that_changes_is_noticed_after_it_is_forgotten(monkeypatch):
    loader = AuthenticationTokenLoader.instance()
    try:
        for token in ("a" * 64, "b" * 64):
            monkeypatch.setenv("RAY_AUTH_TOKEN", token)
            ray_compat.forget_token()
            assert loader.get_raw_token(ignore_auth_mode=True) == token
        monkeypatch.setenv("RAY_AUTH_TOKEN", "c" * 64)
        assert loader.get_raw_token(ignore_auth_mode=True) == "b" * 64  # else nothing to forget
    finally:
        monkeypatch.undo()
        ray_compat.forget_token()


@pytest.mark.parametrize("silent", [True, False])
def test_rays_thread_for_errors_of_the_cluster_writes_nothing_of_its_own(
    monkeypatch, capsys, silent
):
    """That thread itself, with one message and then a connection that is gone."""
    monkeypatch.setattr(worker, "print_to_stdstream", PRINT)
    messages = iter([{"job_id": None, "error_message": "Raylet is terminated."}])

    def poll() -> tuple[None, dict]:
        for message in messages:
            return None, message
        raise ConnectionError

    subscriber = SimpleNamespace(subscribe=lambda: None, poll=poll)
    job = SimpleNamespace(binary=lambda: b"")
    listener = SimpleNamespace(gcs_error_subscriber=subscriber, current_job_id=job)
    with ray_compat.silent_listener() if silent else nullcontext():
        worker.listen_error_messages(listener, threading.Event())
    assert ("Raylet is terminated." in capsys.readouterr().out) == (not silent)


SIGTERM = """
import signal, sys, ray
from contextlib import nullcontext
from segpipe import ray_compat
with ray_compat.sigterm_kept() if sys.argv[1] == "True" else nullcontext():
    ray.init()
print(signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)
"""


@pytest.mark.parametrize("kept", [True, False])
def test_ray_sets_handlers_of_sigterm(kept, ray_cluster):
    env = os.environ | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    words = [sys.executable, "-c", SIGTERM, str(kept)]
    told = subprocess.run(words, env=env, check=True, capture_output=True, timeout=120, text=True)
    assert told.stdout.split()[-1] == str(kept)


# ---- Ray Data


def test_each_setting_of_ray_data_has_another_default_and_is_read():
    fields, fresh = DataContext.__dataclass_fields__, DataContext()
    source = "".join(path.read_text() for path in (RAY / "data/_internal").rglob("*.py"))
    for name, value in ray_compat.DATA_SETTINGS.items():
        assert name in fields
        assert getattr(fresh, name) != value
        assert re.search(rf"(context|ctx)\.{name}\b", source)
    assert ray_compat.DATA_SETTINGS["wait_for_min_actors_s"] == ray_compat.ACTORS_START_S


def test_ray_data_tells_its_errors_by_one_logger():
    module = sys.modules[StreamingExecutor.__module__]
    assert module.logger.name.startswith(f"{ray_compat.DATA_LOGGER}.")


@pytest.fixture
def seen(monkeypatch) -> Iterator[dict[type, list[StreamingExecutor]]]:
    """Executors as segpipe's own callbacks see them: first at their start, then in each step."""
    found: dict[type, list[StreamingExecutor]] = {SchedulerThrottle: [], BackgroundThrottle: []}
    for kind in found:
        for hook in ("before_execution_starts", "on_execution_step"):
            monkeypatch.setattr(kind, hook, lambda self, one: found[type(self)].append(one))
    context = DataContext.get_current()
    before = list(context.custom_execution_callback_classes)
    yield found
    context.custom_execution_callback_classes = before


def test_a_callback_sees_each_step_of_each_execution_from_its_start(ray_cluster, seen):
    for _ in range(2):
        ray_compat.add_callback(SchedulerThrottle)
    own = DataContext.get_current().custom_execution_callback_classes
    assert own.count(SchedulerThrottle) == 1
    ray.data.range(3).materialize()
    [executor] = set(seen[SchedulerThrottle])
    assert len(seen[SchedulerThrottle]) > 2
    assert isinstance(executor, StreamingExecutor)
    dataset = ray.data.range(3)
    ray_compat.set_callback(dataset, BackgroundThrottle)
    dataset.materialize()
    assert set(seen[SchedulerThrottle]) == {executor}
    assert len(seen[BackgroundThrottle]) > 2
    assert issubclass(SchedulerThrottle, ray_compat.ExecutionCallback)


def test_an_execution_that_is_left_ends_when_it_is_stopped(ray_cluster, seen):
    def later_ones_wait(batch):
        if batch["id"][0] > 3:
            threading.Event().wait()
        return batch

    dataset = ray.data.range(6, override_num_blocks=6).map_batches(later_ones_wait, num_cpus=0.1)
    ray_compat.set_callback(dataset, BackgroundThrottle)
    left = iter(dataset.iter_batches(batch_size=None))
    next(left)
    [executor] = set(seen[BackgroundThrottle])
    assert executor.is_alive()
    ray_compat.stop_executor(executor)
    executor.join(timeout=60)
    assert not executor.is_alive()


def test_a_repartition_books_what_it_is_told_and_its_public_method_takes_no_cores(ray_cluster):
    dataset = ray.data.range(2).repartition(target_num_rows_per_block=1)
    ray_compat.book_cpus(dataset, 0.1)
    found = dataset.materialize()
    assert re.search(r"StreamingRepartition", found.stats())
    assert dataset._logical_plan.dag.ray_remote_args["num_cpus"] == 0.1
    assert "num_cpus" not in inspect.signature(ray.data.Dataset.repartition).parameters


def test_whole_blocks_reach_a_stage_on_gpus(ray_cluster):
    """Once Ray's own map_batches takes them, this entry can go."""

    class Whole:  # here, so that workers get it with its code
        def __call__(self, batch: dict) -> dict:
            return {"rows": [len(batch["id"])]}

    pool = ray.data.ActorPoolStrategy(size=1)
    options = {"compute": pool, "max_task_retries": 3}
    blocks = ray.data.from_items([{"id": n} for n in range(6)], override_num_blocks=2)
    found = ray_compat.map_blocks(blocks, Whole, num_cpus=0.1, **options)
    assert found._logical_plan.dag.ray_remote_args["max_task_retries"] == 3
    assert [row["rows"] for row in found.take_all()] == [3, 3]
    on_gpu = ray_compat.map_blocks(blocks, Whole, num_gpus=1, **options)
    last = on_gpu._logical_plan.dag
    assert (last.batch_size, last.ray_remote_args["num_gpus"]) == (None, 1)
    with pytest.raises(ValueError, match="batch_size"):
        blocks.map_batches(Whole, batch_size=None, num_gpus=1, compute=pool)


# ---- Ray Train


def test_how_often_a_group_is_resized_is_what_its_policy_reads():
    assert ScalingConfig(**ray_compat.resize_check(7.0)).elastic_resize_monitor_interval_s == 7.0
    assert "scaling_config.elastic_resize_monitor_interval_s" in inspect.getsource(
        ElasticScalingPolicy
    )


def test_workers_of_a_training_get_their_environment():
    env = {"env_vars": {"LD_PRELOAD": "libjemalloc.so"}}
    config = RunConfig(**ray_compat.worker_env(env))
    found = WorkerGroup._get_worker_runtime_env(custom_runtime_env=config.worker_runtime_env)
    assert found["env_vars"]["LD_PRELOAD"] == "libjemalloc.so"
    assert "run_config.worker_runtime_env" in inspect.getsource(WorkerGroup)


def test_ray_train_asks_its_data_config_once_for_each_set_and_group():
    """Of a manager of data sets: what it hands over, and what it makes of the answer."""
    asked: list[dict] = []

    class Config(ray_compat.DataConfig):
        def configure(self, datasets, world_size, *_, **others):
            asked.append({"datasets": datasets, "world_size": world_size})
            return [{name: (name, rank) for name in datasets} for rank in range(world_size)]

    manager = SimpleNamespace(
        _data_config=Config(enable_shard_locality=False), _world_size=2, _worker_node_ids=["a", "b"]
    )
    found = DatasetManager._create_dataset_iterators(
        manager, SimpleNamespace(dataset_name="crops"), "stream"
    )
    assert asked == [{"datasets": {"crops": "stream"}, "world_size": 2}]
    assert found == [("crops", 0), ("crops", 1)]


# ---- torch


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("with_other", [True, False])
def test_a_convolution_with_what_follows_is_their_sum_and_relu(dtype, with_other):
    if not torch_compat.fuses(dtype):
        pytest.skip(f"this CPU's oneDNN has none of {dtype}")
    generator = torch.Generator().manual_seed(0)
    x, weight, bias, other = (
        torch.randn(shape, generator=generator).to(dtype)
        for shape in ((1, 4, 9, 9), (8, 4, 3, 3), (8,), (1, 8, 9, 9))
    )
    weight = weight.contiguous(memory_format=torch.channels_last)
    shape = ([1, 1], [1, 1], [1, 1], 1)  # padding, stride, dilation, groups
    found = torch_compat.convolution_relu(x, other if with_other else None, weight, bias, shape)
    wanted = conv2d(x.float(), weight.float(), bias.float(), padding=1)
    wanted = (wanted + other.float() * with_other).relu()
    torch.testing.assert_close(found.float(), wanted, rtol=2e-2, atol=5e-2)


def synced_buffers(meet: str) -> list[bool]:
    """Whether each step syncs buffers, by our wrapper and by torch's default."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=meet, rank=0, world_size=1)
    module = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
    wrapped = [torch_compat.data_parallel(module), DistributedDataParallel(module)]
    found = [one.will_sync_module_buffers() for one in wrapped]
    del wrapped
    torch_compat.leave_group()
    return found


def test_ranks_send_no_statistics_of_batch_norm(tmp_path):
    """In a process of its own, as a group's threads belong to a whole process."""
    with ProcessPoolExecutor(1, CONTEXT) as pool:
        assert pool.submit(synced_buffers, f"file://{tmp_path}/ranks").result() == [False, True]
