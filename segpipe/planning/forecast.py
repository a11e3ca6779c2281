"""How long a bulk run takes and what stops it first, from the costs of its parts, in closed form.

A run is four phases, one after the other: the driver lists and writes the manifest; it starts Ray
and hands over; workers take groups; the driver compacts. Within the work the slowest of a few
things sets the rate. `with_deaths` adds what dying nodes cost on average. What waits for what is
not modelled: an event by event simulation was as far from measured runs (results/LOG.md).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from segpipe.errors import UserError
from segpipe.planning.costs import Costs, decoded_megapixels
from segpipe.segment.fetch import TRANSFERS
from segpipe.segment.manifest import PAGE_ROWS
from segpipe.segment.output import FETCHES
from segpipe.segment.todo import group_rows

LIST_KEYS = 1000  # in a page of a listing, of S3 and those that are like it
MANIFEST_ROW_BYTES = 60  # of a page of the manifest: id, path, bytes, version, compressed
TASK_BYTES = 4 * PAGE_ROWS + 2048  # of a page in Ray's object store: its rows, and what reads them
REPLACE_S = 300.0  # until another node is in the place of a dead one
MIB = 2**20


@dataclass(frozen=True)
class Setting:
    """An archive, a cluster and a store, and what things cost there."""

    images: int
    image_bytes: float
    """Mean of the files."""
    megapixels: float
    """Mean of the photographs."""
    nodes: int
    cores: int
    """Of a node, each with a worker."""
    costs: Costs
    diameter_px: float
    """The least working diameter of the network."""
    group_size: int = 64
    gpus: int = 0
    """Of a node; with any the networks run there, and cores read and write."""
    gpu_s: float = 0.0
    """A GPU's seconds for a canvas."""
    s3: bool = True
    """Whether input and output are on S3 rather than on a local disk, which answers at once."""
    request_s: float = 0.0
    """Until a store answers with the first byte."""
    connection_bytes_s: float = 1e12
    """Of one connection to the store."""
    gets_s: float = 1e12
    """GETs that the store answers a second."""
    puts_s: float = 1e12
    node_bytes_s: float = 1e12
    """From the store into a node."""
    flips: int = 1
    """Canvases of a photograph that the network scores."""

    @cached_property
    def workers(self) -> int:
        return min(self.nodes * self.cores, self.images)

    @cached_property
    def group(self) -> int:
        """Photographs in a group."""
        return group_rows(self.images, self.workers, self.group_size)

    @property
    def groups(self) -> int:
        return -(-self.images // self.group)

    @property
    def pages(self) -> int:
        """Of the manifest."""
        return -(-self.images // PAGE_ROWS)

    @cached_property
    def photograph_s(self) -> float:
        """Core seconds of a photograph in a worker, while all cores work."""
        costs = self.costs
        decoded = decoded_megapixels(self.megapixels, self.diameter_px)
        own = (
            costs.photograph_s
            + costs.megabyte_s * self.image_bytes / 1e6
            + costs.decoded_s * decoded
            + costs.megapixel_s * self.megapixels
            + (0 if self.gpus else costs.model_s * self.flips)
        )
        return self.contention * (own + 2 * costs.request_s * self.s3)

    @property
    def contention(self) -> float:
        """How many times as slow cores are, which share caches and memory with busy ones."""
        return self.costs.contention if self.cores > 1 else 1.0

    def answer_s(self, num_bytes: float = 0.0) -> float:
        """Seconds until one request with so many bytes is through."""
        return (self.request_s + num_bytes / self.connection_bytes_s) * self.s3

    @cached_property
    def transfer_s(self) -> float:
        """Seconds of one of the worker's connections for a photograph: its GET, its mask's PUT."""
        return self.answer_s(self.image_bytes) + self.answer_s()

    @cached_property
    def page_reads(self) -> float:
        """GETs of a page of the manifest for each group.

        A page's groups go to all workers, and each reads the page for its first of them.
        """
        groups = min(PAGE_ROWS / self.group, self.groups)
        readers: float = self.workers * (1 - (1 - 1 / self.workers) ** groups)
        return readers / groups

    @cached_property
    def before_s(self) -> float:
        """Of a group, until its first photograph is there."""
        page = self.page_reads * self.answer_s(MANIFEST_ROW_BYTES * PAGE_ROWS)
        return page + self.answer_s(self.image_bytes)

    @cached_property
    def after_s(self) -> float:
        """Of a group, after its last canvas: the last mask is put, then the part."""
        return 2 * self.answer_s() + self.contention * self.costs.group_s

    @cached_property
    def each_s(self) -> float:
        """A worker's seconds for a photograph in the middle of a group."""
        return max(self.photograph_s, self.transfer_s / TRANSFERS)

    @cached_property
    def group_s(self) -> float:
        """A worker's seconds for a whole group where nothing else holds it up."""
        return self.before_s + self.group * self.each_s + self.after_s

    @property
    def longest_s(self) -> float:
        """Seconds of the worker that has most to do."""
        rounds = -(-self.groups // self.workers)
        last = self.images - (self.groups - 1) * self.group
        alone = (self.groups - 1) % self.workers == 0  # the last group, and it may be a small one
        return rounds * self.group_s - alone * (self.group - last) * self.each_s

    @property
    def gets(self) -> float:
        """GETs while workers work."""
        return self.images + self.groups * self.page_reads

    @property
    def puts(self) -> float:
        return self.images + self.groups


@dataclass(frozen=True)
class Forecast:
    phases: dict[str, float]
    """Seconds of list, start, work and end."""
    limits: dict[str, float]
    """Images a second that each part could do, the lowest first."""
    rate: float
    """Images a second over the work."""
    waiting: float
    """Share of a worker's seconds that wait for the store's answers."""
    driver_bytes: float
    """Memory of the driver and Ray's own processes on its node."""
    object_store_bytes: float
    """Of Ray's, on the driver's node."""
    node_bytes: float
    """Memory of a node's workers."""
    gets: float
    """Requests of the whole run, in all its phases."""
    puts: float
    """PUTs and LISTs, which cost the same."""

    @property
    def seconds(self) -> float:
        return sum(self.phases.values())


def forecast(setting: Setting) -> Forecast:
    limits = dict(sorted(capacities(setting).items(), key=lambda item: item[1]))
    work_s = max(setting.longest_s, setting.images / _others(limits))
    costs, images = setting.costs, setting.images
    phases = {
        "list": list_s(setting),
        "start": costs.start_s + setting.pages * costs.page_s,
        "work": work_s,
        "end": end_s(setting),
    }
    busy = setting.group * setting.photograph_s + setting.contention * costs.group_s
    parts_read = 2 * setting.groups
    lists = setting.s3 * (-(-images // LIST_KEYS) + -(-setting.groups // LIST_KEYS))
    return Forecast(
        phases,
        limits,
        images / work_s,
        1 - busy / setting.group_s,
        costs.driver_mib * MIB + images * costs.row_bytes,
        setting.pages * TASK_BYTES,
        setting.cores * costs.worker_mib * MIB,
        setting.s3 * (setting.gets + parts_read),
        setting.s3 * (setting.puts + setting.pages) + lists,
    )


CORES, CONNECTIONS = "cores", f"{TRANSFERS} requests in flight a worker"
WORKERS = (CORES, CONNECTIONS)


def capacities(setting: Setting) -> dict[str, float]:
    """Images a second that each part of the run could do if all others were quicker."""
    s, g = setting, setting.group
    slow = s.transfer_s / TRANSFERS > s.photograph_s
    found = {CONNECTIONS if slow else CORES: s.workers * g / s.group_s}
    if s.gpus:
        found["GPUs"] = s.nodes * s.gpus / s.gpu_s
    if s.s3:
        found["GETs at the store"] = s.gets_s / (s.gets / s.images)
        found["PUTs at the store"] = s.puts_s / (s.puts / s.images)
        found["network of the nodes"] = s.nodes * s.node_bytes_s / s.image_bytes
    found["driver handing out groups"] = g / s.costs.driver_group_s
    return found


def _others(limits: dict[str, float]) -> float:
    """Images a second that all but the workers allow."""
    return min(rate for name, rate in limits.items() if name not in WORKERS)


def list_s(setting: Setting) -> float:
    """Listing, page after page, and the manifest, page after page."""
    lists = -(-setting.images // LIST_KEYS) * setting.answer_s()
    pages = setting.pages * setting.answer_s(MANIFEST_ROW_BYTES * PAGE_ROWS)
    return lists + pages + setting.images * setting.costs.key_s


def index_s(setting: Setting, done: int) -> float:
    """Listing and reading the parts of `done` inputs."""
    parts = -(-done // setting.group)
    return -(-parts // LIST_KEYS) * setting.answer_s() + _read_s(setting, parts)


def _read_s(setting: Setting, parts: int) -> float:
    """FETCHES at once, then each is parsed."""
    own_s = setting.costs.part_s + setting.costs.request_s * setting.s3
    return parts * (own_s + setting.answer_s() / FETCHES)


def end_s(setting: Setting) -> float:
    """Every part is read twice: once to know which rows it holds, once in the manifest's order."""
    reading = index_s(setting, setting.images) + _read_s(setting, setting.groups)
    return reading + setting.images * setting.costs.row_s + setting.costs.end_s


# ---- nodes that die


@dataclass(frozen=True)
class WithDeaths:
    """Means over all courses of a run whose nodes die at random times."""

    seconds: float
    """Of the whole run."""
    deaths: float
    """Of nodes, the driver's among them."""
    restarts: float
    """Deaths of the driver's node: the command is given again."""
    repeated: float
    """Photographs that are segmented once more, at most."""


def with_deaths(setting: Setting, node_hours: float) -> WithDeaths:
    """What is expected where a node lives `node_hours` on average, each moment as risky as another.

    A worker's node gives back the groups that it held. The driver's node takes the run along: it
    is listed, indexed and started again, then goes on with what is left; the end cannot be shared.
    Raises UserError where nodes die before they get anything done.
    """
    try:
        return _with_deaths(setting, node_hours * 3600)
    except OverflowError as error:
        raise UserError(
            f"--node-hours {node_hours:g}: nodes die before they have done anything, raise it"
        ) from error


def _with_deaths(setting: Setting, life_s: float) -> WithDeaths:
    def until_done(seconds: float, restart_s: float = 0.0) -> float:
        """Mean seconds until so many have passed without a death, which begins them anew."""
        return math.expm1(seconds / life_s) * (life_s + REPLACE_S + restart_s)

    def attempt_s(done: int) -> float:
        """Until workers have work."""
        index = index_s(setting, done) if done else 0.0
        pages = -(-(setting.images - done) // PAGE_ROWS)
        return list_s(setting) + index + setting.costs.start_s + pages * setting.costs.page_s

    others = setting.nodes - 1  # than the driver's
    share = setting.group_s / until_done(setting.group_s)  # of their groups' time that counts
    work_s = max(
        setting.longest_s * setting.nodes / (1 + others * share),
        setting.images / _others(capacities(setting)),
    )
    half, whole = (until_done(attempt_s(done)) for done in (setting.images // 2, setting.images))
    in_work = work_s / life_s  # deaths of the driver's node
    seconds = (
        until_done(attempt_s(0))
        + work_s
        + in_work * (REPLACE_S + half)
        + until_done(end_s(setting), whole)
    )
    cycle_s = life_s + REPLACE_S
    restarts, of_others = seconds / cycle_s, others * work_s / cycle_s
    held = (of_others * setting.cores + in_work * setting.workers) * setting.group
    return WithDeaths(seconds, restarts + of_others, restarts, held)
