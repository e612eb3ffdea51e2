"""Selections as lists of keys: of several curves, of unions that are cut, of exact searches, and for the caller.

Attention follows such a list as it follows given indices.
"""

from __future__ import annotations

from zeta_ops.backends import ArraySpec
from zeta_ops.backends.cupy import selection
from zeta_ops.backends.cupy.args import Args
from zeta_ops.backends.cupy.selection import Runner, launch_blocks
from zeta_ops.options import Problem

__all__ = ["find", "is_listed", "residual_specs", "workspace"]

_TURNS = 16  # queries of a warp, `TURNS` in `kernels/candidates.cuh`
_WARPS = 4  # of a block, `CHOOSING_WARPS` there


def is_listed(problem: Problem) -> bool:
    """Whether attention follows a list instead of ranges of entries."""
    options = problem.options
    return options.search == "exact" or options.num_curves > 1 or options.reranks


def residual_specs(problem: Problem) -> dict[str, ArraySpec]:
    """List what a forward pass leaves: the lists, and queries and keys in code order where they have one."""
    specs = {"indices": ArraySpec((*problem.normalizer_shape, problem.options.top_k), "int32")}
    if problem.options.search != "exact":
        specs["query_order"] = ArraySpec(problem.normalizer_shape, "int32")
        specs["key_order"] = ArraySpec(problem.k_shape[:-1], "int32")
    return specs


def workspace(problem: Problem) -> dict[str, ArraySpec]:
    """List the arrays that it takes to make lists."""
    if problem.options.search == "exact":
        return selection.sequences(problem)
    heads, entries = problem.batch * problem.kv_heads, selection.sizes_of(problem).entries
    curves = problem.options.num_curves
    return {
        **selection.workspace(problem),
        **selection.entry_specs(problem),
        "query_order": ArraySpec(problem.normalizer_shape, "int32"),
        **{f"ranges.{curve}": ArraySpec((*problem.normalizer_shape, 2), "int32") for curve in range(curves)},
        "sorted_places": ArraySpec((curves - 1, heads, problem.k_len), "int32"),
        **{f"earlier.{curve}": ArraySpec((heads, entries, curve), "int32") for curve in range(1, curves)},
    }


def find(problem: Problem, args: Args, run: Runner, *, ascending: bool) -> None:
    """Launch a search: it writes `indices (batch, q_heads, q_len, top_k)`."""
    if problem.options.search == "exact":
        selection.select_exactly(problem, args, run)
        return
    selection.select(problem, args, run)
    warps = problem.batch * problem.kv_heads * -(-problem.q_len * problem.group_size // _TURNS)
    launch_blocks(run, "list_kernel" if ascending else "choose_kernel", -(-warps // _WARPS), 32 * _WARPS, args)
