"""Dense attention's time, to compare with: measured where it is feasible, extrapolated where not."""

from __future__ import annotations

import importlib
import math
import time
from collections.abc import Callable
from importlib import util
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["numpy_attention", "time_dense"]

Array = npt.NDArray[Any]

MAX_SECONDS = 2.0  # of a run that is measured
QUERY_BLOCK = 256  # queries of NumPy's attention that meet all their keys at once, which bounds memory


def time_dense(contexts: list[int], width: int, max_seconds: float = MAX_SECONDS) -> dict[str, Any]:
    """Time causal softmax attention with one head of `width`: torch's if it is installed, else NumPy's.

    The first context is measured, and each next one as long as a run should not take more than `max_seconds`. From
    there on the last measurement grows with the square of the context.
    """
    by, make = _dense_attention()
    seconds: list[float] = []
    measured: list[bool] = []
    for number, context in enumerate(contexts):
        expected = seconds[-1] * (context / contexts[number - 1]) ** 2 if seconds else 0.0
        measured.append(all(measured) and expected <= max_seconds)
        seconds.append(_best_time(make(context, width), max_seconds) if measured[-1] else expected)
    return {"by": by, "width": width, "contexts": contexts, "seconds": seconds, "measured": measured}


def numpy_attention(q: Array, k: Array, v: Array) -> Array:
    """Compute causal `softmax(q @ k.T / sqrt(d)) @ v` for `q, k (n, d)` and `v (n, dv)`, block by block."""
    out = np.empty_like(v)
    scale = q.dtype.type(1 / math.sqrt(q.shape[1]))
    for start in range(0, len(q), QUERY_BLOCK):
        stop = min(start + QUERY_BLOCK, len(q))
        scores = (q[start:stop] * scale) @ k[:stop].T
        scores[np.triu_indices(stop - start, start + 1, stop)] = -np.inf
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        out[start:stop] = weights @ v[:stop] / weights.sum(axis=1, keepdims=True)
    return out


def _dense_attention() -> tuple[str, Callable[[int, int], Callable[[], Any]]]:
    if util.find_spec("torch") is None:
        return f"NumPy {np.__version__}", _numpy_run
    torch = importlib.import_module("torch")

    def torch_run(length: int, width: int) -> Callable[[], Any]:
        q, k, v = torch.randn(3, 1, 1, length, width)
        return lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)

    return f"torch {torch.__version__}", torch_run


def _numpy_run(length: int, width: int) -> Callable[[], Any]:
    q, k, v = np.random.default_rng(0).standard_normal((3, length, width), dtype=np.float32)
    return lambda: numpy_attention(q, k, v)


def _best_time(work: Callable[[], Any], max_seconds: float) -> float:
    """Least of up to three times, of which no new one begins after half of `max_seconds`."""
    times: list[float] = []
    while not times or (len(times) < 3 and sum(times) < max_seconds / 2):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)
