"""The selection once more, in another style than the reference: Python tuples, one query at a time."""

from __future__ import annotations

import math
from typing import Any

import numpy as np


def quantised(x: float, bounds: tuple[float, float] | None) -> int:
    """27-bit integer of one float32."""
    x = np.float32(x)
    if math.isnan(x):
        return 2**27 - 1
    with np.errstate(over="ignore"):
        if bounds is None:
            pattern = int((np.float32(1) + np.float32(4) * abs(x)).view(np.uint32)) - 0x3F800000
            step = min(pattern, 2**26 - 1)
            return 2**26 + step if x >= 0 else 2**26 - 1 - step
        lo, hi = bounds
        cell = (x - np.float32(lo)) * np.float32(2**27 / (hi - lo))
    if math.isinf(cell):
        return 0 if cell < 0 else 2**27 - 1
    return min(max(math.floor(cell), 0), 2**27 - 1)


def code(point: np.ndarray, bits: int, bounds: Any, num_curves: int, curve: int) -> int:
    """Morton code of one point, by writing bits as text."""
    cells = []
    for x in point:
        u = quantised(x, bounds)
        cells.append(u >> (27 - bits) if num_curves == 1 else (u + curve * 44739242) >> (28 - bits))
    binary = [f"{cell:0{bits}b}" for cell in cells]
    return int("".join(digits[b] for b in range(bits) for digits in binary), 2)


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Squared distance with every step rounded; NaN is infinite."""
    total = a.dtype.type(0)
    with np.errstate(all="ignore"):
        for x, y in zip(a, b, strict=True):
            total = total + (x - y) * (x - y)
    return math.inf if math.isnan(total) else float(total)


def selected(q: np.ndarray, k: np.ndarray, i: int, options: dict[str, Any]) -> list[int]:
    """S(i) of one row `q (Nq, dk)`, `k (Nk, dk)` under fully given options, ascending."""
    pos = options["q_offset"] + i
    if options["causal"]:
        past = pos + 1 if options["include_self"] else pos
        chunk = options["chunk_size"]
        t = min(math.floor(past / chunk) * chunk, pos + 1 - options["local_window"])
        t = min(max(t, 0), len(k))
    else:
        t = len(k)
    if options["search"] == "exact":
        union = set(range(t))
    else:
        union = set()
        for curve in range(options["num_curves"]):
            settings = options["bits"], options["bounds"], options["num_curves"], curve
            order = sorted((code(k[j], *settings), j) for j in range(t))
            r = sum(entry[0] <= code(q[i], *settings) for entry in order)
            lo = max(r - math.ceil(options["window"] / 2), 0)
            lo = min(lo, max(0, t - options["window"]))
            union |= {j for _, j in order[lo : lo + options["window"]]}
    ranked = sorted(union, key=lambda j: (distance(q[i], k[j]), -j))
    return sorted(ranked[: options["top_k"]])
