"""Speed of the xla backend against the numba one, both called from JAX on the CPU: forward, and with backward.

    python benchmarks/jax_backends.py

Selection and attention together, from q, k, v. Backends take turns, round after round; a figure is the best of the
rounds. Selections have to be equal, and results close, in the same run. It prints a table and writes JSON to
benchmarks/results/jax_backends.json.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from environment import describe

import zeta_ops

HEADS, DIM, GAMMA, WINDOW = 8, 64, 0.5, 32
RESULTS = Path(__file__).resolve().parent / "results"
BACKENDS = ("numba", "xla")
CASES: dict[str, tuple[int, dict[str, Any]]] = {
    "one curve, 4 096": (4096, {}),
    "one curve, 16 384": (16384, {}),
    "one curve, 65 536": (65536, {}),
    "three curves, window 64, 16 384": (16384, {"num_curves": 3, "window": 64}),
    "exact search, 4 096": (4096, {"search": "exact"}),
}


def functions(backend: str, options: dict[str, Any]) -> dict[str, Callable[..., Any]]:
    """Compile what is timed, and the selection, which is compared."""
    settings = {"top_k": WINDOW, "backend": backend, **options}

    def forward(q: Any, k: Any, v: Any) -> Any:
        return zeta_ops.zeta_attention(q, k, v, GAMMA, **settings)

    def both(q: Any, k: Any, v: Any) -> Any:
        out, pullback = jax.vjp(forward, q, k, v)
        return out, pullback(v)

    def select(q: Any, k: Any, v: Any) -> Any:
        return zeta_ops.causal_topk(q, k, **settings)

    return {"forward": jax.jit(forward), "forward+backward": jax.jit(both), "selection": jax.jit(select)}


def measure(n: int, options: dict[str, Any], rounds: int) -> dict[str, dict[str, float]]:
    """Best times in seconds, for each backend."""
    rng = np.random.default_rng(0)
    arrays = [jax.numpy.asarray(rng.standard_normal((1, HEADS, n, d), dtype=np.float32)) for d in (3, 3, DIM)]
    calls = {backend: functions(backend, options) for backend in BACKENDS}
    mine, theirs = (calls[backend].pop("selection")(*arrays) for backend in BACKENDS)
    if not (mine == theirs).all():
        raise SystemExit("the backends' selections differ")
    results = [jax.tree.leaves(calls[backend]["forward+backward"](*arrays)) for backend in BACKENDS]
    errors = [float(abs(a - b).max() / abs(a).max()) for a, b in zip(*results, strict=True)]
    if max(errors) > 1e-5:
        raise SystemExit(f"the backends' results differ by {max(errors):.1e}")
    best = {backend: dict.fromkeys(calls[backend], np.inf) for backend in BACKENDS}
    for _ in range(rounds + 1):
        for backend in BACKENDS:
            for name, call in calls[backend].items():
                start = time.perf_counter()
                jax.block_until_ready(call(*arrays))
                best[backend][name] = min(best[backend][name], time.perf_counter() - start)
    return best


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="rounds, of which the best counts")
    parser.add_argument("--output", type=Path, default=RESULTS / "jax_backends.json", help="where the JSON goes")
    arguments = parser.parse_args()
    print(f"{'':34s}{'backend':10s}{'fwd ms':>10s}{'fwd+bwd ms':>12s}")
    seconds = {}
    for name, (n, options) in CASES.items():
        seconds[name] = measure(n, options, arguments.rounds)
        for backend, times in seconds[name].items():
            print(
                f"{name:34s}{backend:10s}{1e3 * times['forward']:10.1f}{1e3 * times['forward+backward']:12.1f}",
                flush=True,
            )
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps({**describe(), "seconds": seconds}, indent=1) + "\n")


if __name__ == "__main__":
    main()
