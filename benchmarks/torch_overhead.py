"""Host time of one PyTorch call, against an op of the same signature that does nothing.

    python benchmarks/torch_overhead.py

At a length of 16 the kernels have next to nothing to do, so that a call's time is what Python, torch's dispatcher, the
checks and the launches of our kernels take. Figures are the best of several rounds. It prints a table and writes JSON
to benchmarks/results/torch_overhead.json.
"""

from __future__ import annotations

import argparse
import json
import timeit
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from environment import describe

import zeta_ops
from zeta_ops.adapters.torch import ops

RESULTS = Path(__file__).resolve().parent / "results"
LIBRARY = torch.library.Library("zeta_ops_benchmark", "DEF")


def define_noop() -> Callable[..., Any]:
    """Define an op with the signature of the forward one that returns its outputs unwritten."""
    schema = str(ops.search_forward._schema).replace("zeta_ops::search_forward", "noop")
    LIBRARY.define(schema)

    def noop(q: Any, k: Any, v: Any, gamma: Any, cu_seqlens: Any, options: str, q_offset: int, backend: Any) -> Any:
        return torch.empty_like(v), v.new_empty(v.shape[:-1]), []

    LIBRARY.impl("noop", noop, "CPU")
    return torch.ops.zeta_ops_benchmark.noop.default


def best_microseconds(call: Callable[[], Any], calls: int, rounds: int) -> float:
    """Best mean time of a call over rounds of many."""
    call()
    return 1e6 * min(timeit.repeat(call, number=calls, repeat=rounds)) / calls


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=300, help="calls per round")
    parser.add_argument("--rounds", type=int, default=7, help="rounds, of which the best counts")
    parser.add_argument("--output", type=Path, default=RESULTS / "torch_overhead.json", help="where the JSON goes")
    arguments = parser.parse_args()
    q, k, v = (torch.randn(1, 1, 16, width) for width in (3, 3, 16))
    gamma = torch.ones(1)
    trained = [x.clone().requires_grad_() for x in (q, k, v, gamma)]
    static = None, "8 8 1 zorder True 1 True 0 False 10 False", 0, None
    noop = define_noop()

    def with_gradients() -> None:
        zeta_ops.zeta_attention(*trained, top_k=8).sum().backward()

    cases = {
        "an op that does nothing": lambda: noop(q, k, v, gamma, *static),
        "the forward op": lambda: ops.search_forward(q, k, v, gamma, *static),
        "zeta_attention, no gradients": lambda: zeta_ops.zeta_attention(q, k, v, gamma, top_k=8),
        "zeta_attention and backward": with_gradients,
    }
    times = {name: best_microseconds(call, arguments.calls, arguments.rounds) for name, call in cases.items()}
    for name, microseconds in times.items():
        print(f"{name:34s}{microseconds:10.1f} us")
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps({**describe(), "microseconds_per_call": times}, indent=1) + "\n")


if __name__ == "__main__":
    main()
