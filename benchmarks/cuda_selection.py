"""Time every step of a selection on a GPU: `python benchmarks/cuda_selection.py --json FILE`.

Needs CuPy and cuda-cccl. Up to 65 536 tokens each row's selection is compared with the `numba` backend's, bit for bit.
"""

from __future__ import annotations

import argparse
import json
import statistics
from math import prod
from typing import Any

import cupy as cp
import numpy as np
from environment import describe

import zeta_ops
from zeta_ops.arguments import attention_shapes, search_problem
from zeta_ops.backends.cupy.args import Args
from zeta_ops.backends.cupy.runner import DeviceRunner, sort_bytes
from zeta_ops.backends.cupy.selection import Runner, element_strides, fill_args, list_selected, select, workspace
from zeta_ops.options import Problem

ROWS = [  # heads, length, kind, curves, window
    (16, 8192, "random", 1, 32),
    (16, 65536, "random", 1, 32),
    (16, 65536, "drift", 1, 32),
    (16, 65536, "random", 1, 64),
    (16, 65536, "random", 3, 64),
    (16, 262144, "random", 1, 32),
    (4, 1048576, "random", 1, 32),
]
LONGEST_CHECKED = 65536


class Timed:
    """Runs steps with an event before and after each."""

    def __init__(self, runner: Runner, stream: Any) -> None:
        self.runner, self.stream = runner, stream
        self.steps: list[tuple[str, Any, Any]] = []

    def _record(self, name: str, step: Any) -> None:
        before, after = cp.cuda.Event(), cp.cuda.Event()
        before.record(self.stream)
        step()
        after.record(self.stream)
        self.steps.append((name, before, after))

    def launch(self, kernel: str, blocks: int, threads: int, args: Args) -> None:
        """Launch and time a kernel."""
        self._record(kernel, lambda: self.runner.launch(kernel, blocks, threads, args))

    def sort(self, *arguments: int) -> None:
        """Sort and time it."""
        self._record(f"sort of {arguments[-1]} bits", lambda: self.runner.sort(*arguments))


class Selection:
    """A problem on the GPU with all its memory."""

    def __init__(self, problem: Problem, q: Any, k: Any) -> None:
        self.problem, self.arrays = problem, {"q": q, "k": k}
        for name, spec in workspace(problem).items():
            self.arrays[name] = cp.full(prod(spec.shape) * np.dtype(spec.dtype).itemsize, 0xCD, cp.uint8)
        self.indices = cp.full((*problem.normalizer_shape, problem.options.top_k), 0x7BCDCDCD, cp.int32)
        self.arrays["indices"] = self.indices
        self.addresses = {name: array.data.ptr for name, array in self.arrays.items() if array.size}
        self.args = Args()
        fill_args(problem, self.args, self.addresses, element_strides(q), element_strides(k))
        self.storage = cp.empty(max(1, sort_bytes(0, prod(problem.normalizer_shape))), cp.uint8)
        self.stream = cp.cuda.Stream(non_blocking=True)
        self.runner = DeviceRunner(
            0, self.stream.ptr, self.storage.data.ptr, self.storage.nbytes, "float32", 3, problem.options.num_curves
        )

    def run(self, runner: Runner | None = None) -> None:
        """Select; nothing waits for it."""
        select(self.problem, self.args, self.addresses, runner or self.runner)

    def list(self) -> Any:
        """Give the selected positions, on the CPU."""
        list_selected(self.problem, self.args, self.runner)
        self.stream.synchronize()
        return self.indices.get()


def points(kind: str, heads: int, length: int) -> np.ndarray:
    """Draw points `(heads, length, 3)`."""
    x = np.random.default_rng().standard_normal((heads, length, 3), dtype=np.float32)
    return x + np.linspace(-4, 4, length, dtype=np.float32)[:, None] if kind == "drift" else x


def measure(heads: int, length: int, kind: str, curves: int, window: int, repeats: int) -> dict[str, Any]:
    """Time one row, in all and step by step."""
    q, k = points(kind, heads, length), points(kind, heads, length)
    options = {"top_k": 32, "window": window, "num_curves": curves}
    defaults = {
        "search": "zorder", "causal": True, "chunk_size": 1, "include_self": True, "local_window": 0, "bits": None,
        "bounds": None, "q_offset": None,
    }  # fmt: skip
    problem = search_problem(attention_shapes(q, k, None, 1.0), None, **defaults, **options)
    selection = Selection(problem, cp.asarray(q)[None], cp.asarray(k)[None])
    cp.cuda.Device().synchronize()
    selection.run()
    equal = None
    if length <= LONGEST_CHECKED:
        equal = bool((selection.list()[0] == zeta_ops.causal_topk(q, k, backend="numba", **options)).all())
        assert equal, "the GPU selects other keys than the CPU"
    totals, steps = [], {}
    for _ in range(repeats):
        before, after = cp.cuda.Event(), cp.cuda.Event()
        before.record(selection.stream)
        selection.run()
        after.record(selection.stream)
        after.synchronize()
        totals.append(cp.cuda.get_elapsed_time(before, after))
        timed = Timed(selection.runner, selection.stream)
        selection.run(timed)
        selection.stream.synchronize()
        for place, (name, start, stop) in enumerate(timed.steps):
            steps.setdefault(f"{place:02d} {name}", []).append(cp.cuda.get_elapsed_time(start, stop))
    return {
        "heads": heads, "length": length, "kind": kind, "num_curves": curves, "window": window,
        "equal_to_numba": equal, "total_ms": statistics.median(totals),
        "steps_ms": {name: round(statistics.median(times), 4) for name, times in steps.items()},
    }  # fmt: skip


def main() -> None:
    """Time all rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=20, help="timed runs of each row (median)")
    parser.add_argument("--json", help="file to write")
    options = parser.parse_args()
    rows = []
    for row in ROWS:
        rows.append(measure(*row, options.repeats))
        found = rows[-1]
        print(*row, f"{found['total_ms']:.3f} ms, equal: {found['equal_to_numba']}", flush=True)
        print("   ", found["steps_ms"], flush=True)
    device = cp.cuda.runtime.getDeviceProperties(0)["name"].decode()
    if options.json:
        result = describe() | {"device": device, "cupy": cp.__version__, "rows": rows}
        with open(options.json, "w") as file:
            json.dump(result, file, indent=1)


if __name__ == "__main__":
    main()
