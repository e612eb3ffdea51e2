"""Speed of the CPU backend against dense attention: forward, and forward with backward.

    python benchmarks/cpu_speed.py

Selection and attention together, from q, k, v. Both sides run in turn in one process on the same threads; a
figure is the median of several runs. The result is checked against the definition in the same run. It writes
a table to the terminal and JSON to benchmarks/results/cpu_speed.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
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


def median_seconds(work: Callable[[], Any], repeats: int) -> float:
    """Median time of several calls, after one to warm up."""
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def time_zeta(inputs: Inputs, repeats: int, **options: Any) -> dict[str, float]:
    """Time forward alone and forward with backward."""
    grad_out = np.ones_like(inputs[2])

    def both() -> None:
        _, pullback = zeta_ops.zeta_attention_vjp(*inputs, GAMMA, top_k=WINDOW, backend="numba", **options)
        pullback(grad_out)

    forward = median_seconds(
        lambda: zeta_ops.zeta_attention(*inputs, GAMMA, top_k=WINDOW, backend="numba", **options), repeats
    )
    return {"forward": forward, "forward+backward": median_seconds(both, repeats)}


def time_dense(n: int, repeats: int) -> dict[str, float]:
    """Time torch's causal scaled-dot-product attention with heads of the same width."""
    q, k, v = (torch.randn(1, HEADS, n, DIM, requires_grad=True) for _ in range(3))
    attend = torch.nn.functional.scaled_dot_product_attention

    def both() -> None:
        attend(q, k, v, is_causal=True).sum().backward()

    with torch.no_grad():
        forward = median_seconds(lambda: attend(q, k, v, is_causal=True), repeats)
    return {"forward": forward, "forward+backward": median_seconds(both, repeats)}


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
    parser.add_argument("--repeats", type=int, default=7, help="runs per figure (dense: 3)")
    parser.add_argument("--output", type=Path, default=RESULTS / "cpu_speed.json", help="where the JSON goes")
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    set_num_threads(torch.get_num_threads())
    n, repeats = arguments.length, arguments.repeats
    rows: list[dict[str, Any]] = []

    def add(name: str, length: int, seconds: dict[str, float]) -> dict[str, float]:
        rows.append({"case": name, "length": length, "seconds": seconds})
        print(f"{name:34s} {length:8d}" + "".join(f"{1e3 * s:12.1f}" for s in seconds.values()), flush=True)
        return seconds

    print(f"{'':34s} {'tokens':>8s}{'fwd ms':>12s}{'fwd+bwd ms':>12s}")
    inputs = random_keys(n, rng)
    zeta = add("zeta, random keys", n, time_zeta(inputs, repeats))
    dense = add("dense, torch", n, time_dense(n, 3))
    errors = {"random": worst_error(inputs, 64, rng)}
    ratios: dict[str, Any] = {"dense / zeta": {key: dense[key] / zeta[key] for key in zeta}}
    for name, make in CASES.items():
        if name == "random":
            continue
        inputs = make(n, rng)
        seconds = add(f"zeta, {name}", n, time_zeta(inputs, repeats))
        ratios[f"{name} / random"] = {key: seconds[key] / zeta[key] for key in zeta}
        errors[name] = worst_error(inputs, 64, rng)
    inputs = random_keys(n, rng)
    options = {
        "three curves of 64, re-ranked": {"num_curves": 3, "window": 64},
        "history token": {"history_mean": True},
        "local window of 32": {"local_window": 32},
    }
    for name, choice in options.items():
        seconds = add(f"zeta, {name}", n, time_zeta(inputs, repeats, **choice))
        ratios[f"{name} / one curve"] = {key: seconds[key] / zeta[key] for key in zeta}
    length, last = n, zeta
    while 2 * length <= arguments.longest:
        length *= 2
        seconds = add("zeta, random keys", length, time_zeta(random_keys(length, rng), 3))
        ratios[f"{length} / {length // 2}"] = {key: seconds[key] / last[key] for key in zeta}
        last = seconds
    print(f"\n{'ratio':44s}{'fwd':>8s}{'fwd+bwd':>12s}")
    for name, ratio in ratios.items():
        print(f"{name:44s}{ratio['forward']:8.2f}{ratio['forward+backward']:12.2f}")
    print(f"\nlargest error against the definition in float64: {max(errors.values()):.1e}")
    result = {
        **describe(),
        "setting": {
            "heads": HEADS, "dv": DIM, "dk": 3, "window": WINDOW, "dtype": "float32", "threads": get_num_threads()
        },
        "rows": rows,
        "ratios": ratios,
        "worst_error": errors,
    }  # fmt: skip
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
