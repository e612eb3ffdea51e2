"""A small call of everything that launches kernels, to be run by compute-sanitizer: `python sanitized.py`.

Every array is an allocation of its own, so that an access outside of one is outside of all.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import cupy
import numpy as np

import zeta_ops

OPTIONS: list[dict[str, Any]] = [
    {"top_k": 8},
    {"top_k": 8, "window": 16, "num_curves": 3, "history_mean": True, "deterministic": True},
    {"top_k": 8, "local_window": 4, "chunk_size": 16, "include_self": False},
    {"top_k": 8, "search": "exact", "history_mean": True},
    {"top_k": 8, "causal": False},
    {"top_k": 8, "cu_seqlens": np.array([0, 0, 1, 70, 203], np.int32), "history_mean": True},
]
SHAPES = [(203, 32, np.float16), (203, 5, np.float32)]  # values on the fast path, values on the plain one


def main() -> None:
    """Call, and wait once in the end."""
    cupy.cuda.set_allocator(None)
    rng = np.random.default_rng(0)
    for options, (length, dim, dtype) in product(OPTIONS, SHAPES):
        q, k, v = (
            cupy.asarray(rng.standard_normal((1, h, length, d), dtype=np.float32))
            for h, d in ((2, 3), (1, 3), (1, dim))
        )
        v = v.astype(dtype)
        given = {name: cupy.asarray(x) if isinstance(x, np.ndarray) else x for name, x in options.items()}
        out, pullback = zeta_ops.zeta_attention_vjp(q, k, v, 0.5, **given)
        pullback(out)
        for name in ("history_mean", "deterministic"):
            given.pop(name, None)
        indices = zeta_ops.causal_topk(q, k, **given)
        out, pullback = zeta_ops.cauchy_attention_vjp(q, k, v, indices, 0.5)
        pullback(out)
        zeta_ops.morton_decode(zeta_ops.morton_encode(q), dims=3)
    cupy.cuda.Device().synchronize()
    print("finished")


if __name__ == "__main__":
    main()
