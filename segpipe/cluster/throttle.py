"""Rests for Ray Data's scheduling loop, which else takes a core from the work."""

from __future__ import annotations

import os
import time
from typing import Any, ClassVar
from weakref import WeakSet

from segpipe.ray_compat import ExecutionCallback

NICE = 10  # of what is made ahead


class SchedulerThrottle(ExecutionCallback):
    """Lets Ray Data's scheduling loop rest between its steps.

    While outputs wait for a slower consumer the loop runs unpaused and takes half a core: on 2
    cores training ran at 35 crops/s without this pause and at 51 with it (results/LOG.md).
    """

    seconds = 0.02  # a block takes some 0.3 s to produce, so nothing waits for the scheduler
    running: ClassVar[WeakSet[Any]] = WeakSet()  # executors of this process

    def before_execution_starts(self, executor: Any) -> None:
        self.running.add(executor)

    def on_execution_step(self, executor: Any) -> None:
        time.sleep(self.seconds)


class BackgroundThrottle(SchedulerThrottle):
    """For a stream that is made ahead of its readers: half the work, in time that others leave."""

    seconds = 0.1

    def before_execution_starts(self, executor: Any) -> None:
        super().before_execution_starts(executor)
        self.modest = False

    def on_execution_step(self, executor: Any) -> None:
        if not self.modest:
            os.nice(NICE)  # of the loop's thread alone
            self.modest = True
        super().on_execution_step(executor)
