"""Everything that the demo measures, as one dictionary."""

from __future__ import annotations

import importlib
import os
import platform
import time
from collections.abc import Callable
from importlib import metadata, util
from typing import Any

import numpy as np
import numpy.typing as npt

import zeta_ops
from zeta_ops.demo.models import GAMMA, Score, attention_costs, order_0_costs, order_3_costs
from zeta_ops.demo.text import OPTIONS, suffix_points

__all__ = ["context_lengths", "measure"]

Array = npt.NDArray[Any]
Progress = Callable[[str], None]

TOP_K = 32
SAMPLE = 1024  # queries whose exact nearest keys are searched for
DENSE_LIMIT = 4096  # tokens up to which dense attention is run; its time grows with the square


def context_lengths(num_bytes: int) -> list[int]:
    """Powers of four from 1 Ki, as far as the text reaches, and its whole length."""
    lengths = [length for length in (4**n for n in range(5, 16)) if length < num_bytes]
    return [*lengths, num_bytes]


def measure(text: Array, progress: Progress) -> dict[str, Any]:
    """Predict the text at every context length; `progress` is told of each step when it is done.

    With a context of C bytes the text is cut into blocks of C and every byte is predicted from the bytes before it in
    its block. The second half of each block is scored, so that every scored byte has C/2 to C bytes before it.
    """
    symbols, numbered = np.unique(text, return_inverse=True)
    numbered = numbered.astype(np.uint8)
    attention_costs(numbered[None, :1024], len(symbols), top_k=TOP_K)
    progress("compiled")
    rows = []
    for length in context_lengths(len(text)):
        blocks = numbered[: len(text) // length * length].reshape(-1, length)
        rows.append(_at_context(blocks, len(symbols)))
        progress(f"context {length}")
    dense = _time_dense([row["context"] for row in rows], len(symbols))
    progress("dense attention")
    recall = _recall(numbered)
    progress("exact search")
    return {
        "versions": _versions(),
        "machine": {"processor": platform.machine(), "system": platform.platform(), "cores": os.cpu_count()},
        "setting": {"top_k": TOP_K, "gamma": GAMMA, "alphabet": len(symbols), "bytes": len(text), **OPTIONS},
        "rows": rows,
        "dense": dense,
        "recall": recall,
    }


def _at_context(blocks: Array, alphabet: int) -> dict[str, Any]:
    points = suffix_points(blocks)[:, None]
    values = np.zeros((*blocks.shape, alphabet), np.float32)[:, None]
    start = time.perf_counter()
    zeta_ops.zeta_attention(points, points, values, GAMMA, top_k=TOP_K, **OPTIONS)
    seconds = time.perf_counter() - start
    scores = {
        "attention": Score.of(*attention_costs(blocks, alphabet, top_k=TOP_K)),
        "order 0": Score.of(*order_0_costs(blocks, alphabet)),
        "order 3": Score.of(*order_3_costs(blocks, alphabet)),
    }
    return {
        "context": blocks.shape[1],
        "bytes": blocks.size,
        "seconds": seconds,
        "bits_per_byte": {name: score.bits for name, score in scores.items()},
        "accuracy": {name: score.accuracy for name, score in scores.items()},
    }


def _time_dense(contexts: list[int], width: int) -> dict[str, Any]:
    """Time causal softmax attention with heads of the same width: torch's if it is installed, else NumPy's.

    Up to `DENSE_LIMIT` it is measured; beyond, the last measurement grows with the square of the context.
    """
    by, make = _dense_attention()
    seconds: list[float] = []
    measured: list[bool] = []
    for length in contexts:
        measured.append(length <= DENSE_LIMIT)
        if measured[-1]:
            seconds.append(_best_of_three(make(length, width)))
        elif not seconds:
            limit = _best_of_three(make(DENSE_LIMIT, width))
            seconds.append(limit * (length / DENSE_LIMIT) ** 2)
        else:
            seconds.append(seconds[-1] * (length / contexts[len(seconds) - 1]) ** 2)
    return {"by": by, "contexts": contexts, "seconds": seconds, "measured": measured}


def _dense_attention() -> tuple[str, Callable[[int, int], Callable[[], Any]]]:
    if util.find_spec("torch") is None:
        return f"NumPy {np.__version__}", _numpy_attention
    torch = importlib.import_module("torch")

    def make(length: int, width: int) -> Callable[[], Any]:
        q, k, v = (torch.randn(1, 1, length, width) for _ in range(3))
        return lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)

    return f"torch {torch.__version__}", make


def _numpy_attention(length: int, width: int) -> Callable[[], Any]:
    rng = np.random.default_rng(0)
    q, k, v = rng.standard_normal((3, length, width), dtype=np.float32)

    def attend() -> None:
        for start in range(0, length, 256):
            scores = q[start : start + 256] @ k[: start + 256].T
            weights = np.exp(scores - scores.max(axis=1, keepdims=True))
            np.divide(np.tril(weights, start) @ v[: start + 256], weights.sum(axis=1, keepdims=True))

    return attend


def _best_of_three(work: Callable[[], Any]) -> float:
    times = []
    for _ in range(3):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def _recall(numbered: Array) -> dict[str, Any]:
    """Share of the exact search's keys and mass that curves find, for the last queries of the text."""
    points = suffix_points(numbered)[None]
    queries = points[:, -min(SAMPLE, len(numbered)) :]
    found: dict[str, Any] = {"queries": queries.shape[1]}
    choices: dict[str, dict[str, Any]] = {
        f"one curve, window {TOP_K}": {},
        f"one curve, window {2 * TOP_K}": {"window": 2 * TOP_K},
        f"three curves, window {2 * TOP_K}": {"num_curves": 3, "window": 2 * TOP_K},
    }
    for name, choice in choices.items():
        keys, mass = zeta_ops.selection_recall(queries, points, GAMMA, top_k=TOP_K, **OPTIONS, **choice)
        found[name] = {"keys": float(keys[0]), "mass": float(mass[0])}
    return found


def _versions() -> dict[str, str]:
    return {"zeta-ops": zeta_ops.__version__, "python": platform.python_version()} | {
        name: metadata.version(name) for name in ("numpy", "numba")
    }
