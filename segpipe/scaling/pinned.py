"""A command on some of the machine's cores, with all that it starts, and what it used.

The command's processes carry a mark in their environment, by which they are found whatever became
of their parents: none is left when the command has ended, was given up, or this process was killed.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil

MARK = "SEGPIPE_MEASUREMENT"
SAMPLE_S = 0.5  # seconds between two looks at the processes, which take some milliseconds
MEMORY_EVERY = 10  # looks: PSS takes the kernel some time
END_S = 10.0  # seconds for which what a command leaves behind may take to end by itself
PR_SET_PDEATHSIG = 1  # of prctl.h
SIBLINGS = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"


@dataclass(frozen=True)
class Ended:
    """A command that has ended."""

    code: int
    stdout: str
    stderr: str
    started: float
    """Seconds since 1970, as `ended`."""
    ended: float
    driver_cpu_s: float
    """Of the command's first process; of any, what it used in its last half second may lack."""
    cpu_s: float
    """Of all its processes."""
    peak_mib: float
    """Highest sum of PSS: what processes share is counted once. Sampled every five seconds."""
    cores: tuple[int, ...]
    """On which any of the processes was allowed to run."""

    @property
    def seconds(self) -> float:
        return self.ended - self.started

    @property
    def last_word(self) -> str:
        """Of what it told on stderr."""
        lines = [line.strip() for line in self.stderr.splitlines() if line.strip()]
        return lines[-1] if lines else "it told nothing"


def own_cores() -> list[int]:
    """The cores that this process may use, one of each physical core first."""
    cores = sorted(os.sched_getaffinity(0))
    first = {_siblings(core): core for core in reversed(cores)}
    return [*sorted(first.values()), *sorted(set(cores) - set(first.values()))]


def num_physical(cores: Sequence[int]) -> int:
    """How many physical cores these are: two hyperthreads are one."""
    return len({_siblings(core) for core in cores})


def _siblings(core: int) -> str:
    """The hyperthreads of its physical core, as the kernel writes them."""
    try:
        return Path(SIBLINGS.format(core)).read_text().strip()
    except OSError:  # a machine that does not tell
        return str(core)


def run(words: Sequence[str], cores: Sequence[int] | None, env: Mapping[str, str]) -> Ended:
    """Run a command to its end, on these cores alone unless they are None.

    Its exit code is the caller's to judge. `env` is added to this process's environment.
    """
    mark = uuid.uuid4().hex
    usage = _Usage()
    # to files: a pipe that nobody reads would stop it
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        started = time.time()
        try:
            process = subprocess.Popen(
                list(words),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env=os.environ | env | {MARK: mark},
                start_new_session=True,  # a terminal's Ctrl-C is ours to handle
                preexec_fn=_Prepare(cores),
            )
            driver = psutil.Process(process.pid)
            looks = 0
            while True:
                usage.look(driver, memory=looks % MEMORY_EVERY == MEMORY_EVERY - 1)
                looks += 1
                with suppress(subprocess.TimeoutExpired):
                    process.wait(SAMPLE_S)
                    break
            ended = time.time()
            psutil.wait_procs(marked(mark), END_S)
        finally:
            end(mark)
        stdout, stderr = _text(out), _text(err)
    return Ended(
        process.returncode,
        stdout,
        stderr,
        started,
        ended,
        usage.driver_s,
        sum(usage.cpu_s.values()),
        usage.peak_bytes / 2**20,
        tuple(sorted(usage.cores)),
    )


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")


class _Prepare:
    """What the child does before it becomes the command: its cores, and it dies with its parent."""

    def __init__(self, cores: Sequence[int] | None) -> None:
        self.cores = cores
        self.prctl = ctypes.CDLL(None).prctl  # found here: between fork and exec little is safe

    def __call__(self) -> None:
        self.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if self.cores is not None:
            os.sched_setaffinity(0, self.cores)


def marked(mark: str) -> list[psutil.Process]:
    """The living processes of a command, and their children, whose environment may lack the mark
    (a decoder's does).
    """
    found = set()
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(MARK) == mark:
                found |= {process, *process.children(recursive=True)}
    return list(found)


def end(mark: str) -> None:
    """Kill all processes of a command; a killed one may have started another just before."""
    while left := marked(mark):
        for process in left:
            with suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(left, END_S)


class _Usage:
    """What a process and its descendants use, as seen from time to time."""

    def __init__(self) -> None:
        self.cpu_s: dict[int, float] = {}
        self.driver_s = self.peak_bytes = 0.0
        self.cores: set[int] = set()

    def look(self, driver: psutil.Process, memory: bool) -> None:
        try:
            processes = [driver, *driver.children(recursive=True)]
        except psutil.Error:  # it has ended
            return
        pss = 0.0
        for process in processes:
            with suppress(psutil.Error):
                times = process.cpu_times()
                self.cpu_s[process.pid] = times.user + times.system
                self.cores.update(process.cpu_affinity())
                if memory:
                    pss += process.memory_full_info().pss
        self.driver_s = self.cpu_s.get(driver.pid, 0.0)
        self.peak_bytes = max(self.peak_bytes, pss)
