"""Options as text, the one kind of static argument that every part of torch carries along unchanged."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import torch

from zeta_ops.options import Options, Problem, Shapes

__all__ = ["decode", "encode", "known_problem", "known_shapes", "problem_of", "shapes_of"]


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
    """Shapes of canonical tensors `(batch, heads, length, dim)`, which may be symbolic."""
    return _shapes(q.shape, v.shape, q.dtype, v.dtype)


def problem_of(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cu_seqlens: torch.Tensor | None, options: str, q_offset: int
) -> Problem:
    """Put the problem of an op's arguments together again; shapes may be symbolic."""
    return _problem(q.shape, v.shape, q.dtype, v.dtype, _sequences(cu_seqlens), options, q_offset)


def known_shapes(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Shapes:
    """Do as `shapes_of`, from what calls before have found; sizes are numbers."""
    return _known_shapes(q.shape, v.shape, q.dtype, v.dtype)


def known_problem(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cu_seqlens: torch.Tensor | None, options: str, q_offset: int
) -> Problem:
    """Do as `problem_of`, from what calls before have found; sizes are numbers."""
    return _known_problem(q.shape, v.shape, q.dtype, v.dtype, _sequences(cu_seqlens), options, q_offset)


def _sequences(cu_seqlens: torch.Tensor | None) -> int | None:
    return None if cu_seqlens is None else cu_seqlens.shape[0] - 1


def _shapes(q: torch.Size, v: torch.Size, q_dtype: torch.dtype, v_dtype: torch.dtype) -> Shapes:
    batch, q_heads, q_len, key_dim = q
    _, kv_heads, k_len, value_dim = v
    coordinates = "float64" if q_dtype == torch.float64 else "float32"
    values = str(v_dtype).removeprefix("torch.")
    return Shapes(batch, q_heads, kv_heads, q_len, k_len, key_dim, value_dim, coordinates, values)


def _problem(
    q: torch.Size,
    v: torch.Size,
    q_dtype: torch.dtype,
    v_dtype: torch.dtype,
    sequences: int | None,
    options: str,
    q_offset: int,
) -> Problem:
    filled = replace(decode(options), q_offset=q_offset)
    return _shapes(q, v, q_dtype, v_dtype).searched(sequences, filled)


_known_shapes = lru_cache(maxsize=1024)(_shapes)
_known_problem = lru_cache(maxsize=1024)(_problem)
