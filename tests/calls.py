"""Calls of the public functions that name what comes back."""

from __future__ import annotations

import numpy as np
from cases import Array, Case

import zeta_ops

__all__ = ["attend", "attend_to"]

Results = dict[str, Array]


def attend(case: Case, backend: str, grad_out: Array | None = None) -> Results:
    """Output of `zeta_attention` and the gradients of `(out * grad_out).sum()`, a random one by default."""
    arrays = case.q, case.k, case.v, case.gamma
    out, pullback = zeta_ops.zeta_attention_vjp(*arrays, backend=backend, **case.options)
    return _named(out, pullback(_random_like(out) if grad_out is None else grad_out))


def attend_to(case: Case, indices: Array, backend: str, grad_out: Array | None = None) -> Results:
    """The same of `cauchy_attention`; the options of `case` play no part."""
    arrays = case.q, case.k, case.v, indices, case.gamma
    out, pullback = zeta_ops.cauchy_attention_vjp(*arrays, backend=backend)
    return _named(out, pullback(_random_like(out) if grad_out is None else grad_out))


def _named(out: Array, gradients: tuple[Array, ...]) -> Results:
    names = (f"gradient of {name}" for name in ("q", "k", "v", "gamma"))
    return {"out": out, **dict(zip(names, gradients, strict=True))}


def _random_like(out: Array) -> Array:
    return np.random.default_rng(0).standard_normal(out.shape).astype(out.dtype)
