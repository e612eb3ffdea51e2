"""Speed of ZETA attention against dense and local attention, end to end.

    python -m benchmarks.speed                   # on a GPU, about 7 minutes
    python -m benchmarks.speed --quick           # the rows that matter most, about a minute
    python -m benchmarks.speed --device cpu      # the numba backend against PyTorch's attention on the same threads
    python -m benchmarks.speed --show FILE       # an earlier run: tables; --plot its plot, --readme the README

Selection and attention together, from q, k, v, through the public function on PyTorch tensors. All that is compared
takes turns in one process, in random order. First the results are checked against the definition. Figures, with what
they must be and what is aimed at, are printed and saved as JSON. Run it from the repository's root.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib import util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.environment import describe
from benchmarks.speed.plan import DIM, DIRECTIONS, FLEX, GAMMA, KEY_DIM, NUMBA_CUDA, Group, Plan, plan_for
from benchmarks.speed.readme import write_part
from benchmarks.speed.report import described_figures, save_plot, tables
from zeta_ops.registry import unavailable_reason

if TYPE_CHECKING:
    from benchmarks.speed.contenders import Contender

ROOT = Path(__file__).resolve().parents[2]


def parser() -> argparse.ArgumentParser:
    """Make the parser of the command's arguments."""
    p = argparse.ArgumentParser(
        prog="python -m benchmarks.speed", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="where to run (default: cuda)")
    p.add_argument("--quick", action="store_true", help="fewer and shorter rows")
    p.add_argument("--json", type=Path, help="where the figures go (default: benchmarks/results/speed_<device>.json)")
    p.add_argument(
        "--plot", type=Path, nargs="?", const=Path(), help="save a plot too (default: docs/speed_<device>.png)"
    )
    p.add_argument("--readme", action="store_true", help="write the README's part on this device anew")
    p.add_argument("--show", type=Path, metavar="FILE", help="measure nothing; show and plot an earlier result")
    p.add_argument("--seed", type=int, default=0, help="of the inputs and of the order")
    return p


@contextmanager
def progress(total: int) -> Iterator[Callable[[str], None]]:
    """Show how far the run is: a bar if rich is installed, else a line for each part."""
    if util.find_spec("rich") is None:
        yield lambda what: print(what, flush=True) if what else None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = TextColumn("{task.description:44s}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns) as bar:
        task = bar.add_task("", total=total)

        def advance(what: str) -> None:
            if what:
                bar.update(task, description=what)
            else:
                bar.advance(task)

        yield advance


def measure(plan: Plan, device: str, save: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Check, then time everything; each finished part is saved, so that a failure later loses nothing."""
    from benchmarks.speed.check import check
    from benchmarks.speed.clocks import DeviceClock, HostClock, host_seconds, time_in_turn
    from benchmarks.speed.contenders import contenders_of

    cuda = device == "cuda"
    clock = DeviceClock() if cuda else HostClock()
    result: dict[str, Any] = {"rows": [], "refused": {}, "steps": {}}
    with progress(sum(measurements(group, plan) for group in plan.groups)) as advance:
        advance("check of the results")
        result["errors"] = check(plan, device)
        plan, errors = _with_numba_cuda(plan, device, result["refused"])
        result["errors"] |= errors
        for group in plan.groups:
            advance(f"{group.length} tokens, {group.heads} heads")
            found = contenders_of(group, plan, device)
            times, refused = time_in_turn(found, clock, lambda: advance(""))
            result["refused"] |= {f"{name}, {group.length} tokens": why for name, why in refused.items()}
            for number, contender in enumerate(found):
                mine = {key: times[number, key] for key in DIRECTIONS if (number, key) in times}
                result["rows"].append(row_of(contender, group, mine, plan))
            if cuda and group.length == plan.host_length:
                result["host_seconds"] = host_seconds(found[0])
            if cuda and group.length == plan.main:
                result["steps"] = steps_of(found, plan, advance)
            save(result)
    return result


def _with_numba_cuda(plan: Plan, device: str, refused: dict[str, str]) -> tuple[Plan, dict[str, Any]]:
    """Check the backend in Python too where the plan has it; without it where it is not available."""
    from benchmarks.speed.check import check

    if all(NUMBA_CUDA not in group.peers for group in plan.groups):
        return plan, {}
    reason = unavailable_reason("numba_cuda")
    if reason is None:
        other = replace(plan, backend="numba_cuda", groups=(Group(plan.main, 2),))
        return plan, {f"numba_cuda, {case}": error for case, error in check(other, device).items()}
    refused[NUMBA_CUDA] = reason
    groups = (replace(group, peers=tuple(set(group.peers) - {NUMBA_CUDA})) for group in plan.groups)
    return replace(plan, groups=tuple(groups)), {}


def measurements(group: Group, plan: Plan) -> int:
    """Count what progress counts: every contender in every round of its group, each way."""
    peers = [plan.rounds if peer in (FLEX, NUMBA_CUDA) else plan.dense_rounds for peer in group.peers]
    return len(DIRECTIONS) * (len(group.ours) + len(peers)) * max([plan.rounds, *peers])


def row_of(contender: Contender, group: Group, seconds: dict[str, list[float]], plan: Plan) -> dict[str, Any]:
    """Make a row of the result of what one contender took."""
    from benchmarks.speed.clocks import extra_bytes

    statistic = {"median": statistics.median, "best": min}[plan.statistic]
    on_device = contender.inputs[0][1].device.type == "cuda"
    return {
        "contender": contender.name,
        "kind": contender.kind,
        "variant": contender.variant,
        "length": group.length,
        "heads": group.heads,
        "ms": {direction: 1e3 * statistic(found) for direction, found in seconds.items()},
        "slowest_to_fastest": {direction: max(found) / min(found) for direction, found in seconds.items()},
        "rounds": contender.rounds,
        "extra_bytes": extra_bytes(contender) if on_device and len(seconds) == len(DIRECTIONS) else None,
    }


def steps_of(found: list[Contender], plan: Plan, advance: Callable[[str], None]) -> dict[str, Any]:
    """Break the calls down that the plan names."""
    from benchmarks.speed.steps import breakdown

    result = {}
    for contender in found:
        if (contender.kind, contender.variant) in plan.steps:
            name = f"{contender.variant}, {contender.kind} keys"
            advance(f"steps, {name}")
            result[f"{name}, {plan.main} tokens"] = breakdown(contender)
    return result


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark and return the exit status."""
    given = parser().parse_args(arguments)
    if given.plot is not None and util.find_spec("matplotlib") is None:
        print(
            "A plot needs matplotlib: pip install 'zeta-ops[demo]'; --show FILE --plot makes it later", file=sys.stderr
        )
        return 2
    if given.show is not None:
        result = json.loads(given.show.read_text())
    else:
        result = run(given, shlex.join(sys.argv[1:] if arguments is None else arguments))
        if result is None:
            return 2
    print(tables(result))
    if given.plot is not None:
        path = ROOT / "docs" / f"speed_{slug(result['device_name'])}.png" if given.plot == Path() else given.plot
        save_plot(result, path)
        print(f"\nSaved {path}.")
    if given.readme:
        write_part(ROOT / "README.md", slug(result["device_name"]), result)
    return 0


def run(given: argparse.Namespace, arguments: str) -> dict[str, Any] | None:
    """Measure and save; None, with a message, where that is not possible."""
    if util.find_spec("torch") is None:
        print("The benchmark needs PyTorch: pip install 'zeta-ops[torch]'", file=sys.stderr)
        return None
    import torch

    from zeta_ops.backends.numba import get_num_threads, set_num_threads

    if given.device == "cuda" and not torch.cuda.is_available():
        print("PyTorch sees no CUDA device; --device cpu measures the CPU backend.", file=sys.stderr)
        return None
    plan = plan_for(given.device, given.quick)
    torch.manual_seed(given.seed)
    random.seed(given.seed)
    set_num_threads(torch.get_num_threads())
    name = torch.cuda.get_device_name() if given.device == "cuda" else "CPU"
    about = describe()
    about["command"] = f"python -m benchmarks.speed {arguments}".strip()
    if given.device == "cuda":
        about["versions"] |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    about |= {"device": given.device, "device_name": name}
    about["setting"] = {
        "dk": KEY_DIM, "dv": DIM, "gamma": GAMMA, "value_dtype": plan.value_dtype, "backend": plan.backend,
        "main": plan.main, "threads": get_num_threads(), "figure": f"{plan.statistic} of the rounds of each row",
    }  # fmt: skip
    path = given.json or ROOT / "benchmarks" / "results" / f"speed_{slug(name)}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()

    def save(measured: dict[str, Any]) -> None:
        about.update(measured)
        about["figures"] = described_figures(about)
        about["seconds"] = round(time.monotonic() - start)
        path.write_text(json.dumps(about, indent=1) + "\n")

    measure(plan, given.device, save)
    print(f"Saved {path}.\n")
    return about


def slug(name: str) -> str:
    """Name of a device as part of a file's name: "NVIDIA H100 80GB HBM3" is "h100"."""
    model = re.sub(r" \d+gb\b.*", "", name.lower().removeprefix("nvidia "))
    return re.sub(r"[^a-z0-9]+", "_", model).strip("_")


if __name__ == "__main__":
    sys.exit(main())
