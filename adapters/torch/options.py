"""Options as text, the one kind of static argument that every part of torch carries along unchanged."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import torch

from zeta_ops.arguments import dtype_name
from zeta_ops.options import Options, Problem, Shapes

__all__ = ["decode", "encode", "problem_of", "shapes_of"]


def encode(options: Options) -> str:
    """Write options, in the order of their fields, without `q_offset`, which depends on shapes and may be symbolic.

    Spelled out, because torch.compile traces this and neither `json` nor `dataclasses.asdict`.
    """
    o = options
    lo, hi = ("", "") if o.bounds is None else (str(o.bounds[0]), str(o.bounds[1]))
    before = f"{o.top_k} {o.window} {o.num_curves} {o.search} {o.causal} {o.chunk_size} {o.include_self}"
    return f"{before} {o.local_window} {o.history_mean} {o.bits} {o.deterministic} {lo} {hi}".rstrip()


@lru_cache(maxsize=256)
def decode(text: str) -> Options:
    """Read what `encode` wrote."""
    fields = text.split()
    numbers = [int(fields[place]) for place in (0, 1, 2, 5, 7, 9)]
    top_k, window, num_curves, chunk_size, local_window, bits = numbers
    causal, include_self, history_mean, deterministic = (fields[place] == "True" for place in (4, 6, 8, 10))
    return Options(
        top_k=top_k,
        window=window,
        num_curves=num_curves,
        search=fields[3],
        causal=causal,
        chunk_size=chunk_size,
        include_self=include_self,
        local_window=local_window,
        history_mean=history_mean,
        bits=bits,
        bounds=(float(fields[11]), float(fields[12])) if len(fields) > 11 else None,
        q_offset=0,
        deterministic=deterministic,
    )


def shapes_of(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Shapes:
    """Shapes of canonical tensors `(batch, heads, length, dim)`."""
    batch, q_heads, q_len, key_dim = q.shape
    _, kv_heads, k_len, value_dim = v.shape
    coordinates = "float64" if q.dtype == torch.float64 else "float32"
    return Shapes(batch, q_heads, kv_heads, q_len, k_len, key_dim, value_dim, coordinates, dtype_name(v))


def problem_of(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cu_seqlens: torch.Tensor | None, options: str, q_offset: int
) -> Problem:
    """Put the problem of an op's arguments together again."""
    sequences = None if cu_seqlens is None else cu_seqlens.shape[0] - 1
    filled = replace(decode(options), q_offset=q_offset)
    return Problem(**vars(shapes_of(q, k, v)), num_sequences=sequences, options=filled)
