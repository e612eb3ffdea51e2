"""Time by step: an event before and after everything that a call launches on the device."""

from __future__ import annotations

import statistics
from typing import Any

import torch

from benchmarks.speed.contenders import Contender
from benchmarks.speed.plan import DIRECTIONS

__all__ = ["breakdown"]

AHEAD = 40  # GiB to fill, about 10 ms: the host launches a whole call meanwhile


class Stopwatch:
    """Stands around a runner and times whatever it is asked to do; kernels go by their name."""

    def __init__(self, runner: Any, steps: list[tuple[str, Any, Any]]) -> None:
        self._runner, self._steps = runner, steps

    def __getattr__(self, name: str) -> Any:
        step = getattr(self._runner, name)
        if not callable(step):
            return step

        def timed(*arguments: Any, **named: Any) -> Any:
            before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            before.record()
            result = step(*arguments, **named)
            after.record()
            kernel = arguments[0] if arguments and isinstance(arguments[0], str) else name
            self._steps.append((kernel.removesuffix("_kernel"), before, after))
            return result

        return timed


def _one_call(contender: Contender, direction: str, filler: torch.Tensor) -> tuple[float, dict[str, tuple[int, float]]]:
    """Milliseconds of one call, and of each step with how often it ran."""
    from zeta_ops.backends.cupy.runner import observed

    steps: list[tuple[str, Any, Any]] = []
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for _ in range(AHEAD):
        filler.zero_()
    before.record()
    with observed(lambda runner: Stopwatch(runner, steps)):
        contender.run(direction, 0)
    after.record()
    torch.cuda.synchronize()
    found: dict[str, tuple[int, float]] = {}
    for name, start, stop in steps:
        count, total = found.get(name, (0, 0.0))
        found[name] = count + 1, total + start.elapsed_time(stop)
    return before.elapsed_time(after), found


def breakdown(contender: Contender, rounds: int = 20) -> dict[str, Any]:
    """Median time of every step of a forward call, and of one with backward, in the order of their first launch.

    What is left of the total is the framework's: casts, fills, and gaps between launches.
    """
    filler = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    result: dict[str, Any] = {}
    for direction in DIRECTIONS:
        calls = [_one_call(contender, direction, filler) for _ in range(rounds + 1)][1:]
        total = statistics.median(total for total, _ in calls)
        names = list(calls[0][1])
        if not names:
            raise SystemExit("no step was seen: does the backend heed `observed`?")
        steps = {
            name: {"launches": calls[0][1][name][0], "ms": statistics.median(steps[name][1] for _, steps in calls)}
            for name in names
        }
        rest = total - sum(step["ms"] for step in steps.values())
        result[direction] = {"total_ms": total, "steps": steps, "rest_ms": rest}
    return result
