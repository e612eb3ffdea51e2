"""The checks of a call that searches; of calls alike only the first is checked in full.

Calls are alike in the types, shapes and dtypes of their arrays and in their options. Nothing is remembered of a call
with something wrong, nor while a compiler traces, whose sizes may be symbols.
"""

from __future__ import annotations

import sys
from functools import lru_cache
from typing import Any, NamedTuple

from zeta_ops.arguments import attention_shapes, check_gamma, is_number, search_problem
from zeta_ops.options import Problem
from zeta_ops.registry import ArrayKind, array_kind, named_arrays

__all__ = ["check_search"]

_MOST_CALLS = 1024
_kinds: dict[type, ArrayKind] = {}  # of arrays that were seen in calls with nothing wrong


class _Form(NamedTuple):
    """Stands for an array."""

    shape: tuple[int, ...]
    dtype: Any

    @property
    def ndim(self) -> int:
        return len(self.shape)


def check_search(q: Any, k: Any, v: Any, gamma: Any, cu_seqlens: Any, **options: Any) -> tuple[ArrayKind, Problem]:
    """Check the arguments of `zeta_ops.zeta_attention`; find the kind of the arrays and the problem.

    Raises
    ------
    TypeError, ValueError
        Naming the argument that is wrong, what was got and what was expected.
    """
    if not _is_traced():
        known = _known(q, k, v, gamma, cu_seqlens, options)
        if known is not None:
            return known
    arrays = named_arrays(q=q, k=k, v=v, gamma=gamma, cu_seqlens=cu_seqlens)
    kind = array_kind(arrays)
    problem = search_problem(attention_shapes(q, k, v, gamma), cu_seqlens, **options)
    if _is_traced():
        return kind, problem
    if len(_kinds) < _MOST_CALLS:
        _kinds.update((type(array), kind) for array in arrays.values())
    # What is found from now on is one object, which look-ups need not compare.
    return _known(q, k, v, gamma, cu_seqlens, options) or (kind, problem)


def _known(
    q: Any, k: Any, v: Any, gamma: Any, cu_seqlens: Any, options: dict[str, Any]
) -> tuple[ArrayKind, Problem] | None:
    """Find what a call alike was found to be; None if that has to be found out, or if something is wrong."""
    kind = _kinds.get(type(q))
    if kind is None or kind is not _kinds.get(type(k)) or kind is not _kinds.get(type(v)):
        return None
    gamma_form = borders = None, None
    number = type(gamma) is float or is_number(gamma)
    if not number:
        if _kinds.get(type(gamma)) is not kind:
            return None
        gamma_form = gamma.shape, gamma.dtype
    if cu_seqlens is not None:
        if _kinds.get(type(cu_seqlens)) is not kind:
            return None
        borders = cu_seqlens.shape, cu_seqlens.dtype
    bounds = options["bounds"]
    try:
        types = None if bounds is None else tuple(map(type, bounds))  # True is no bound, and equals 1, which is one
        problem = _problem(
            q.shape, q.dtype, k.shape, k.dtype, v.shape, v.dtype, *gamma_form, *borders, types, **options
        )
        if number:
            check_gamma(float(gamma), problem.coordinate_dtype)
    except (TypeError, ValueError, OverflowError):
        return None
    return kind, problem


@lru_cache(maxsize=_MOST_CALLS, typed=True)
def _problem(
    q_shape: Any,
    q_dtype: Any,
    k_shape: Any,
    k_dtype: Any,
    v_shape: Any,
    v_dtype: Any,
    gamma_shape: Any,
    gamma_dtype: Any,
    borders_shape: Any,
    borders_dtype: Any,
    bound_types: Any,
    **options: Any,
) -> Problem:
    sizes = *q_shape, *k_shape, *v_shape
    if not all(type(size) is int for size in sizes):
        raise TypeError("a size is a symbol")
    gamma = 1.0 if gamma_shape is None else _Form(gamma_shape, gamma_dtype)
    borders = None if borders_shape is None else _Form(borders_shape, borders_dtype)
    arrays = _Form(q_shape, q_dtype), _Form(k_shape, k_dtype), _Form(v_shape, v_dtype)
    return search_problem(attention_shapes(*arrays, gamma), borders, **options)


def _is_traced() -> bool:
    """Whether torch.compile traces the call. If it does, somebody has imported torch."""
    compiler = getattr(sys.modules.get("torch"), "compiler", None)
    return compiler is not None and compiler.is_compiling()
