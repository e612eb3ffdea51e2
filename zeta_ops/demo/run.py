"""Everything that the demo measures, as one dictionary."""

from __future__ import annotations

import datetime
import os
import platform
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import zeta_ops
from zeta_ops.demo.dense import time_dense
from zeta_ops.demo.models import GAMMA, Score, attend, attention_costs, one_hot, order_0_costs, order_3_costs
from zeta_ops.demo.text import OPTIONS, overlapping_blocks, suffix_points

__all__ = ["context_lengths", "measure", "num_scored", "steps"]

Array = npt.NDArray[Any]

TOP_K = 32
SAMPLE = 1024  # queries whose exact nearest keys are searched for
PROTOCOL = (
    "The same last bytes of the text are scored at every context C, each with C/2 to C bytes before it in its block: "
    "blocks of C begin C/2 apart and their second halves are scored; the whole text is one block. Every model sees "
    "the earlier bytes of the block only, and its counts start afresh in each."
)


def context_lengths(num_bytes: int) -> list[int]:
    """Powers of four from 1 Ki, as far as the text reaches, and its whole length."""
    lengths = [length for length in (4**n for n in range(5, 16)) if length < num_bytes]
    return [*lengths, num_bytes]


def num_scored(num_bytes: int) -> int:
    """How many bytes at the text's end are scored: at most half of it, in whole second halves of every context."""
    half = num_bytes // 2
    shorter = context_lengths(num_bytes)[:-1]
    return half // (shorter[-1] // 2) * (shorter[-1] // 2) if shorter else half


def steps(num_bytes: int) -> list[str]:
    """Names of the steps of `measure`, in order."""
    contexts = [f"context {length:,}" for length in context_lengths(num_bytes)]
    return ["compiling", *contexts, "dense attention", "exact search"]


def measure(text: Array, source: str, command: str, begin: Callable[[], None]) -> dict[str, Any]:
    """Predict the text at every context length, as `PROTOCOL` says; `begin` is called when each of `steps` begins."""
    symbols, inverse = np.unique(text, return_inverse=True)
    numbered = inverse.astype(np.uint8)
    scored = num_scored(len(text))
    begin()
    _at_context(numbered[None, :1024], 512, len(symbols))
    rows = []
    for length in context_lengths(len(text)):
        begin()
        rows.append(_at_context(*overlapping_blocks(numbered, length, scored), len(symbols)))
    begin()
    dense = time_dense([row["context"] for row in rows], len(symbols))
    begin()
    recall = _recall(numbered)
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": command,
        "versions": _versions(),
        "machine": {"processor": _processor(), "system": platform.platform(), "cores": os.cpu_count()},
        "text": {"source": source, "bytes": len(text), "alphabet": len(symbols), "scored": scored},
        "protocol": PROTOCOL,
        "options": {"top_k": TOP_K, "gamma": GAMMA, **OPTIONS},
        "rows": rows,
        "dense": dense,
        "recall": recall,
    }


def _at_context(blocks: Array, end: int, alphabet: int) -> dict[str, Any]:
    points, values = suffix_points(blocks), one_hot(blocks, alphabet)
    start = time.perf_counter()
    weights = attend(points, values, top_k=TOP_K)
    seconds = time.perf_counter() - start
    del values  # as large as the weights
    scores = {
        "attention": Score.of(*attention_costs(blocks, weights), end),
        "order 3": Score.of(*order_3_costs(blocks, alphabet), end),
        "order 0": Score.of(*order_0_costs(blocks, alphabet), end),
    }
    return {
        "context": blocks.shape[1],
        "blocks": len(blocks),
        "seconds": seconds,
        "microseconds_per_token": 1e6 * seconds / blocks.size,
        "bits_per_byte": {name: score.bits for name, score in scores.items()},
        "accuracy": {name: score.accuracy for name, score in scores.items()},
    }


def _recall(numbered: Array) -> dict[str, Any]:
    """Share of the exact search's keys and mass that curves find, for the last queries of the text."""
    points = suffix_points(numbered)[None]
    queries = points[:, -min(SAMPLE, len(numbered)) :]
    shares = []
    for curves, window in ((1, TOP_K), (1, 2 * TOP_K), (3, TOP_K), (3, 2 * TOP_K)):
        found = zeta_ops.selection_recall(
            queries, points, GAMMA, top_k=TOP_K, num_curves=curves, window=window, **OPTIONS
        )
        shares.append({"curves": curves, "window": window, "keys": float(found.keys[0]), "mass": float(found.mass[0])})
    return {"queries": queries.shape[1], "shares": shares}


def _versions() -> dict[str, str]:
    return {"zeta-ops": zeta_ops.__version__, "python": platform.python_version()} | {
        name: metadata.version(name) for name in ("numpy", "numba")
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
