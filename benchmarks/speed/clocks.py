"""How calls are timed: all in turn, in random order, round after round, so that what else happens meets all of them."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from typing import Protocol

import torch

from benchmarks.speed.contenders import Contender
from benchmarks.speed.plan import DIRECTIONS

__all__ = ["Clock", "DeviceClock", "HostClock", "Timed", "extra_bytes", "host_seconds", "time_in_turn"]

Timed = dict[tuple[int, str], list[float]]  # by number of the contender and direction: seconds, one for each round


class Clock(Protocol):
    """Measures calls."""

    def seconds(self, call: Callable[[int], None], calls: int) -> float:
        """Mean time of calls with 0, 1, 2, ..."""

    def calls_for(self, call: Callable[[int], None]) -> int:
        """Choose how many calls make one measurement, after one that warms up."""


class HostClock:
    """The clock of the host, for work on the CPU."""

    def seconds(self, call: Callable[[int], None], calls: int) -> float:
        """Mean time of calls."""
        start = time.perf_counter()
        for turn in range(calls):
            call(turn)
        return (time.perf_counter() - start) / calls

    def calls_for(self, call: Callable[[int], None]) -> int:
        """One, after one to compile."""
        call(0)
        return 1


class DeviceClock:
    """Events of the device around calls that follow each other.

    Before the first event the device gets something to do (it fills memory, which empties the cache too), so that the
    host runs ahead: a call's time is the device's, unless the host takes longer for a call than the device, which then
    counts, as it does in training.
    """

    WANTED = 5e-3  # seconds of one measurement
    MOST = 64

    def __init__(self) -> None:
        self.filler = torch.empty(2**30, dtype=torch.uint8, device="cuda")

    def seconds(self, call: Callable[[int], None], calls: int) -> float:
        """Mean time of calls."""
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.filler.zero_()
        before.record()
        for turn in range(calls):
            call(turn)
        after.record()
        after.synchronize()
        return before.elapsed_time(after) / 1e3 / calls

    def calls_for(self, call: Callable[[int], None]) -> int:
        """Enough for `WANTED` seconds, after three to warm up."""
        for turn in range(3):
            call(turn)
        return max(1, min(self.MOST, round(self.WANTED / self.seconds(call, 2))))


def time_in_turn(
    contenders: list[Contender], clock: Clock, advance: Callable[[], None]
) -> tuple[Timed, dict[str, str]]:
    """Time all contenders, and say of those that refuse the inputs why. `advance` is called after every measurement."""
    jobs, refused = [], {}
    for number, contender in enumerate(contenders):
        for direction in DIRECTIONS:
            try:
                calls = clock.calls_for(lambda turn, c=contender, d=direction: c.run(d, turn))
            except RuntimeError as error:  # a peer without kernels for this device or not enough memory
                if contender.variant is not None:
                    raise
                refused[f"{contender.name}, {direction}"] = str(error).splitlines()[0]
                continue
            jobs.append((number, direction, calls))
    found: Timed = {(number, direction): [] for number, direction, _ in jobs}
    for turn in range(max(contender.rounds for contender in contenders)):
        for number, direction, calls in random.sample(jobs, len(jobs)):
            contender = contenders[number]
            if turn < contender.rounds:
                call: Callable[[int], None] = lambda t, c=contender, d=direction, first=turn: c.run(d, first + t)  # noqa: E731
                found[number, direction].append(clock.seconds(call, calls))
            advance()
    return found, refused


def extra_bytes(contender: Contender) -> int:
    """Peak memory of a forward pass with backward beyond what its arguments take."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    contender.run("forward+backward", 0)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def host_seconds(contender: Contender, rounds: int = 50, calls: int = 8) -> float:
    """Time after which a forward call returns to its caller: few enough calls at a time that no queue is full."""
    times = []
    for _ in range(rounds + 3):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for turn in range(calls):
            contender.run("forward", turn)
        times.append((time.perf_counter() - start) / calls)
    return statistics.median(times[3:])
