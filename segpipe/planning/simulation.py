"""The course of a bulk run, event by event: what waits for what, deaths of nodes, retries, the end.

The driver lists, starts and hands out groups, two for each worker at most, as Ray Data does.
A worker waits for a group's first photograph, works while the others come and masks go, and waits
for its last writes; the store, a node's network and its GPUs serve one after the other. A node that
dies gives back the groups that its workers held, and comes again; the driver's node takes the run
with it, which is then given again: listed, indexed, started.

A billion photographs are fifteen million groups. Equal groups of one worker are one entity of up to
a NUM_LUMPS-th of the archive, fewer at the beginning and at the end, where single groups decide who
waits for whom: what is simulated takes seconds, whatever the archive. Times are drawn from one
seeded generator in the order of events: the same seed gives the same course.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import simpy

from segpipe.errors import UserError
from segpipe.planning.forecast import Setting, end_s, index_s, list_s
from segpipe.segment.fetch import TRANSFERS
from segpipe.segment.manifest import PAGE_ROWS

MOST_DEATHS = 100_000  # of nodes in a course; with more a run ends late or never
NUM_LUMPS = 5_000  # entities into which the groups of an archive are gathered, about
FINE = 2  # lumps for each worker that are to come while they still are large
IN_FLIGHT = 2  # groups that Ray Data gives to an actor at once
GETS, PUTS, DRIVER = "store GET", "store PUT", "driver"

Events = Generator[simpy.Event, Any, None]


@dataclass(frozen=True)
class Chance:
    """What a run cannot know."""

    seed: int = 0
    spread: float = 0.0
    """Standard deviation of a photograph's core seconds / their mean."""
    node_hours: float = math.inf
    """Mean time until a node dies."""
    replace_s: float = 300.0
    """Seconds until another node is in its place."""


@dataclass
class Course:
    """What happened."""

    phases: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(("list", "start", "work", "end", "lost"), 0.0)
    )
    """Seconds of all attempts; `lost` while the driver's node was away."""
    done: int = 0
    """Photographs whose group was committed."""
    again: int = 0
    """Photographs that were begun once more, because a node died in their group."""
    deaths: int = 0
    restarts: int = 0
    """Deaths that took the driver along."""
    busy: dict[str, float] = field(default_factory=dict)
    """Share of the work in which each server served."""

    @property
    def seconds(self) -> float:
        return sum(self.phases.values())


class Lump(NamedTuple):
    groups: int
    images: int


def simulate(setting: Setting, chance: Chance | None = None) -> Course:
    """One course of the whole run."""
    run = _Run(setting, chance or Chance())
    run.env.run(until=run.env.process(run.attempts()))
    work_s = run.course.phases["work"]
    run.course.busy = {name: server.busy_s / work_s for name, server in run.servers.items()}
    return run.course


class _Server:
    """Serves one after the other."""

    def __init__(self, env: simpy.Environment, capacity: int = 1) -> None:
        self.env, self.capacity, self.busy_s = env, capacity, 0.0
        self.queue = simpy.Resource(env, capacity)

    def serve(self, seconds: float) -> Events:
        with self.queue.request() as turn:
            yield turn
            self.busy_s += seconds / self.capacity
            yield self.env.timeout(seconds)


class _Run:
    def __init__(self, setting: Setting, chance: Chance) -> None:
        self.setting, self.chance = setting, chance
        self.env, self.course = simpy.Environment(), Course()
        self.random = np.random.default_rng(chance.seed)
        self.largest = max(1, setting.groups // NUM_LUMPS)
        self.left = Lump(setting.groups, setting.images)  # never handed out
        self.back: deque[Lump] = deque()  # handed out and given back by deaths
        self.servers = {name: _Server(self.env) for name in (GETS, PUTS, DRIVER)}
        self.networks = [_Server(self.env) for _ in range(setting.nodes)]
        gpus = setting.nodes if setting.gpus else 0
        self.gpus = [_Server(self.env, setting.gpus) for _ in range(gpus)]
        self.handed = 0

    # ---- attempts

    def attempts(self) -> Events:
        """The command, given again whenever the driver's node died."""
        while True:
            attempt = self.env.process(self.attempt())
            yield attempt | self.env.timeout(self.lifetime())
            if attempt.triggered:
                return
            attempt.interrupt()
            yield attempt
            self.count_death()
            self.course.restarts += 1
            yield from self.spend("lost", self.chance.replace_s)

    def count_death(self) -> None:
        self.course.deaths += 1
        if self.course.deaths > MOST_DEATHS:
            raise UserError(
                f"--node-hours {self.chance.node_hours:g}: {MOST_DEATHS:,} nodes died and "
                f"{self.course.done:,} of {self.setting.images:,} photographs were done, raise it"
            )

    def lifetime(self) -> float:
        """Seconds until a node dies."""
        hours = self.chance.node_hours
        return float(self.random.exponential(hours * 3600)) if hours < math.inf else 1e18

    def attempt(self) -> Events:
        setting, costs = self.setting, self.setting.costs
        self.living: list[simpy.Process] = []
        try:
            yield from self.spend("list", list_s(setting))
            if self.course.done:
                yield from self.spend("list", index_s(setting, self.course.done))
            open_pages = -(-(setting.images - self.course.done) // PAGE_ROWS)
            yield from self.spend("start", costs.start_s + open_pages * costs.page_s)
            yield from self.work()
            yield from self.spend("end", end_s(setting))
        except simpy.Interrupt:
            return
        finally:
            for process in self.living:
                if process.is_alive and process is not self.env.active_process:
                    process.interrupt("over")

    def spend(self, phase: str, seconds: float) -> Events:
        start = self.env.now
        try:
            yield self.env.timeout(seconds)
        finally:
            self.course.phases[phase] += self.env.now - start

    # ---- the work

    def work(self) -> Events:
        start, setting = self.env.now, self.setting
        self.finished = self.env.event()
        self.queue: simpy.Store = simpy.Store(self.env)
        self.wanted = simpy.Container(self.env, init=IN_FLIGHT * setting.workers)
        self.more = self.env.event()
        cores = np.array_split(np.arange(setting.workers), setting.nodes)
        for node, share in enumerate(cores):
            self.living.append(self.env.process(self.node(node, len(share))))
        self.living.append(self.env.process(self.driver()))
        try:
            if self.course.done < setting.images:
                yield self.finished
        finally:
            self.course.phases["work"] += self.env.now - start

    def driver(self) -> Events:
        """Hands out what is left, as fast as it can and workers want it."""
        lump, group_s = None, self.setting.costs.driver_group_s
        try:
            while True:
                yield self.wanted.get(1)
                while not (self.back or self.left.groups):
                    yield self.more
                lump = self.next_lump()
                yield from self.servers[DRIVER].serve(lump.groups * group_s)
                self.queue.put(lump)
                lump = None
        except simpy.Interrupt:  # what no worker has begun is to do
            self.back.extend([*self.queue.items, *filter(None, [lump])])

    def next_lump(self) -> Lump:
        if self.back:
            return self.back.popleft()
        setting, left = self.setting, self.left
        share = FINE * setting.workers
        groups = max(1, min(self.largest, left.groups // share, self.handed // share))
        images = min(left.images, groups * setting.group)
        self.left = Lump(left.groups - groups, left.images - images)
        self.handed += groups
        return Lump(groups, images)

    def node(self, number: int, cores: int) -> Events:
        """Its workers, and its deaths; the first node is the driver's and dies with the attempt."""
        workers: list[simpy.Process] = []
        try:
            while True:
                workers = [self.env.process(self.worker(number)) for _ in range(cores)]
                yield self.env.timeout(self.lifetime() if number else 1e18)
                self.count_death()
                for worker in workers:
                    worker.interrupt("died")
                yield self.env.timeout(self.chance.replace_s)
        except simpy.Interrupt:
            for worker in workers:
                if worker.is_alive:
                    worker.interrupt("over")

    def worker(self, node: int) -> Events:
        """One group after the other."""
        usual_s = self.setting.group_s  # of a group, as the last ones were
        while True:
            getting: Any = self.queue.get()
            try:
                lump: Lump = yield getting
            except simpy.Interrupt:
                if getting.triggered:
                    self.give_back(getting.value, 0.0, usual_s)
                else:
                    getting.cancel()
                return
            start = self.env.now
            try:
                yield from self.segment(lump, node)
            except simpy.Interrupt:
                self.give_back(lump, self.env.now - start, usual_s)
                return
            usual_s = (self.env.now - start) / lump.groups
            self.commit(lump)

    def segment(self, lump: Lump, node: int) -> Events:
        setting, env = self.setting, self.env
        yield env.timeout(lump.groups * setting.before_s)
        spread = self.chance.spread / math.sqrt(lump.images)
        drawn = max(0.1, self.random.normal(1.0, spread)) if spread else 1.0
        waits: list[simpy.Event] = [
            env.timeout(lump.images * setting.photograph_s * drawn),
            env.timeout(lump.images * setting.transfer_s / TRANSFERS),
        ]
        if setting.s3:
            gets = lump.images + lump.groups * setting.page_reads
            puts = lump.images + lump.groups
            coming_s = lump.images * setting.image_bytes / setting.node_bytes_s
            for server, seconds in (
                (self.servers[GETS], gets / setting.gets_s),
                (self.servers[PUTS], puts / setting.puts_s),
                (self.networks[node], coming_s),
            ):
                waits.append(env.process(server.serve(seconds)))
        if setting.gpus:
            waits.append(env.process(self.gpus[node].serve(lump.images * setting.gpu_s)))
        yield env.all_of(waits)
        yield env.timeout(lump.groups * setting.after_s)

    def commit(self, lump: Lump) -> None:
        self.course.done += lump.images
        if self.course.done == self.setting.images and not self.finished.triggered:
            self.finished.succeed()
        self.wanted.put(1)

    def give_back(self, lump: Lump, worked_s: float, usual_s: float) -> None:
        """Of a dead worker's groups those that it had finished are done, the others are not."""
        groups = min(lump.groups - 1, int(worked_s / usual_s))
        images = groups * self.setting.group
        self.course.done += images
        if worked_s > groups * usual_s:
            self.course.again += min(self.setting.group, lump.images - images)
        self.back.append(Lump(lump.groups - groups, lump.images - images))
        self.wanted.put(1)
        more, self.more = self.more, self.env.event()
        more.succeed()
