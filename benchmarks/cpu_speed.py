"""Speed of the CPU backend against dense attention: forward, and forward with backward.

    python benchmarks/cpu_speed.py

Selection and attention together, from q, k, v. All cases run in turn, round after round, in one process on the same
threads, so that what else the machine does meets all of them; a figure is the best of the rounds. The result is checked
against the definition in the same run. It prints a table and writes JSON to benchmarks/results/cpu_speed.json.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from environment import describe

import zeta_ops
from zeta_ops.backends.numba import get_num_threads, set_num_threads
from zeta_ops.reference.attention import attend_forward
from zeta_ops.reference.morton import morton_encode
from zeta_ops.reference.selection import curve_window

HEADS, DIM, GAMMA, WINDOW = 8, 64, 0.5, 32
RANDOM, DENSE = "zeta, random keys", "dense attention, torch"
RESULTS = Path(__file__).resolve().parent / "results"
Inputs = tuple[np.ndarray, np.ndarray, np.ndarray]


def random_keys(n: int, rng: np.random.Generator) -> Inputs:
    """Gaussian queries and keys."""
    q, k = rng.standard_normal((2, 1, HEADS, n, 3), dtype=np.float32)
    return q, k, rng.standard_normal((1, HEADS, n, DIM), dtype=np.float32)


def drifting_keys(n: int, rng: np.random.Generator) -> Inputs:
    """Draw queries and keys around a point that moves through space with time, as those of real text do."""
    q, k, v = random_keys(n, rng)
    path = np.linspace(-20, 20, n, dtype=np.float32)[:, None]
    return q + path, k + path, v


def clustered_keys(n: int, rng: np.random.Generator) -> Inputs:
    """Draw queries and keys in 64 tight clusters."""
    q, k, v = random_keys(n, rng)
    centres = 3 * rng.standard_normal((64, 3), dtype=np.float32)
    return (*(0.05 * x + centres[rng.integers(0, 64, x.shape[:-1])] for x in (q, k)), v)


def looking_ahead(n: int, rng: np.random.Generator) -> Inputs:
    """Each query stands where keys will be half as late again: all it sees is far, all that is near comes later."""
    q, k, v = random_keys(n, rng)
    time_of = np.arange(n, dtype=np.float32)[:, None] / n
    return 0.01 * q + 60 * time_of, 0.01 * k + 40 * time_of, v


def behind_a_wall(n: int, rng: np.random.Generator) -> Inputs:
    """Put the last quarter of the keys at the queries, all others far away on one side."""
    q, k, v = random_keys(n, rng)
    k[..., : 3 * n // 4, :] -= 30
    return q, k, v


CASES: dict[str, Callable[[int, np.random.Generator], Inputs]] = {
    "random": random_keys,
    "drifting": drifting_keys,
    "clustered": clustered_keys,
    "looking ahead": looking_ahead,
    "behind a wall": behind_a_wall,
}


@dataclass
class Timed:
    """One case: its two calls, and the best time of each so far, in seconds."""

    name: str
    length: int
    calls: dict[str, Callable[[], Any]]
    rounds: int
    best: dict[str, float] = field(default_factory=dict)

    def run(self) -> None:
        """Run both calls once."""
        for key, call in self.calls.items():
            start = time.perf_counter()
            call()
            self.best[key] = min(time.perf_counter() - start, self.best.get(key, np.inf))


def zeta_case(name: str, inputs: Inputs, rounds: int, **options: Any) -> Timed:
    """Time the numba backend."""
    grad_out = np.ones_like(inputs[2])

    def forward() -> None:
        zeta_ops.zeta_attention(*inputs, GAMMA, top_k=WINDOW, backend="numba", **options)

    def both() -> None:
        _, pullback = zeta_ops.zeta_attention_vjp(*inputs, GAMMA, top_k=WINDOW, backend="numba", **options)
        pullback(grad_out)

    return Timed(name, inputs[0].shape[2], {"forward": forward, "forward+backward": both}, rounds)


def dense_case(n: int, rounds: int) -> Timed:
    """Time torch's causal scaled-dot-product attention with heads of the same width."""
    q, k, v = (torch.randn(1, HEADS, n, DIM, requires_grad=True) for _ in range(3))
    attend = torch.nn.functional.scaled_dot_product_attention

    def forward() -> None:
        with torch.no_grad():
            attend(q, k, v, is_causal=True)

    def both() -> None:
        attend(q, k, v, is_causal=True).sum().backward()

    return Timed(DENSE, n, {"forward": forward, "forward+backward": both}, rounds)


VARIANTS: dict[str, dict[str, Any]] = {
    "three curves of 64, re-ranked": {"num_curves": 3, "window": 64},
    "history token": {"history_mean": True},
    "local window of 32": {"local_window": 32},
}


def worst_error(inputs: Inputs, sample: int, rng: np.random.Generator) -> float:
    """Largest deviation from the definition in float64, on a sample of queries of one head."""
    q, k, v = (x[0, 0] for x in inputs)
    out = zeta_ops.zeta_attention(*inputs, GAMMA, top_k=WINDOW, backend="numba")[0, 0]
    q_codes, k_codes = (morton_encode(x, bits=10, bounds=None, num_curves=1, curve=0) for x in (q, k))
    worst = 0.0
    for i in rng.integers(0, len(q), sample):
        attended = [curve_window(q_codes[i], k_codes[: i + 1], WINDOW)]
        exact, _ = attend_forward(*(x.astype(np.float64) for x in (q[i : i + 1], k, v)), GAMMA, attended, None)
        worst = max(worst, float(np.abs(out[i] - exact[0]).max()))
    return worst


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, default=16384, help="tokens, where dense attention is compared")
    parser.add_argument("--longest", type=int, default=262144, help="tokens, up to which growth is measured")
    parser.add_argument("--rounds", type=int, default=6, help="runs of each case (dense: at most 3)")
    parser.add_argument("--output", type=Path, default=RESULTS / "cpu_speed.json", help="where the JSON goes")
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    set_num_threads(torch.get_num_threads())
    n, rounds = arguments.length, arguments.rounds
    cases = [zeta_case(RANDOM, random_keys(n, rng), rounds), dense_case(n, min(3, rounds))]
    errors = {}
    for name, make in CASES.items():
        inputs = make(n, rng)
        errors[name] = worst_error(inputs, 64, rng)
        if make is not random_keys:
            cases.append(zeta_case(name, inputs, rounds))
    inputs = random_keys(n, rng)
    cases += [zeta_case(name, inputs, rounds, **options) for name, options in VARIANTS.items()]
    lengths = [n]
    while 2 * lengths[-1] <= arguments.longest:
        lengths.append(2 * lengths[-1])
        cases.append(zeta_case(RANDOM, random_keys(lengths[-1], rng), rounds))
    for turn in range(rounds):
        for number, case in enumerate(cases):
            print(f"\rround {turn + 1} of {rounds}, case {number + 1} of {len(cases)} ", end="", flush=True)
            if turn < case.rounds:
                case.run()
    best = {(case.name, case.length): case.best for case in cases}
    ratios = {"dense / zeta": ratio(best[DENSE, n], best[RANDOM, n])}
    ratios |= {f"{case.name} / random": ratio(case.best, best[RANDOM, n]) for case in cases if case.length == n}
    for short, long in pairwise(lengths):
        ratios[f"{long} tokens / {short}"] = ratio(best[RANDOM, long], best[RANDOM, short])
    del ratios[f"{RANDOM} / random"], ratios[f"{DENSE} / random"]
    print_tables(cases, ratios, max(errors.values()))
    result = {
        **describe(),
        "setting": {
            "heads": HEADS, "dv": DIM, "dk": 3, "window": WINDOW, "dtype": "float32", "threads": get_num_threads(),
            "figure": f"best of {rounds} rounds, dense best of {min(3, rounds)}",
        },
        "rows": [{"case": case.name, "length": case.length, "seconds": case.best} for case in cases],
        "ratios": ratios,
        "worst_error": errors,
    }  # fmt: skip
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")


def ratio(a: dict[str, float], b: dict[str, float]) -> dict[str, float]:
    """Divide times."""
    return {key: a[key] / b[key] for key in a}


def print_tables(cases: list[Timed], ratios: dict[str, dict[str, float]], error: float) -> None:
    """Print times and ratios."""
    print(f"\n\n{'':40s}{'tokens':>8s}{'fwd ms':>12s}{'fwd+bwd ms':>12s}")
    for case in cases:
        print(f"{case.name:40s}{case.length:8d}" + "".join(f"{1e3 * s:12.1f}" for s in case.best.values()))
    print(f"\n{'ratio':48s}{'fwd':>12s}{'fwd+bwd':>12s}")
    for name, values in ratios.items():
        print(f"{name:48s}" + "".join(f"{value:12.2f}" for value in values.values()))
    print(f"\nlargest error against the definition in float64: {error:.1e}")


if __name__ == "__main__":
    main()
