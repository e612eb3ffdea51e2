"""The history token as a part of attention: what is launched, over which memory; `kernels/history.cuh` says how."""

from __future__ import annotations

from math import prod

from zeta_ops.backends import ArraySpec
from zeta_ops.backends.cupy.args import Args
from zeta_ops.backends.cupy.selection import Runner, history_chunks, num_sequences
from zeta_ops.options import Problem

__all__ = ["backward_at_keys", "backward_at_queries", "backward_workspace", "forward", "forward_workspace"]

SCAN_THREADS = 1024
WARPS = 4  # of a block, but for the scan: `HISTORY_WARPS` in `kernels/history.cuh`


def forward_workspace(problem: Problem) -> dict[str, ArraySpec]:
    """List the arrays of the forward pass, by the names of their pointers in `Args`."""
    columns = problem.key_dim + problem.value_dim
    return {"history_sums": ArraySpec((problem.batch * problem.kv_heads, history_chunks(problem), columns), "float64")}


def backward_workspace(problem: Problem) -> dict[str, ArraySpec]:
    """List the arrays of the backward pass."""
    terms = ArraySpec((*problem.normalizer_shape, 2 + problem.key_dim), problem.sum_dtype)
    return {**forward_workspace(problem), "history_terms": terms}


def forward(problem: Problem, args: Args, run: Runner) -> None:
    """Launch the first part of every query's forward pass."""
    _launch(problem, "history_sums_kernel", problem.kv_heads, args, run)
    _scan(problem, args, run, from_end=False)
    _launch(problem, "history_fwd_kernel", problem.q_heads, args, run)


def backward_at_queries(problem: Problem, args: Args, run: Runner) -> None:
    """Launch the first part of every query's gradients."""
    _launch(problem, "history_sums_kernel", problem.kv_heads, args, run)
    _scan(problem, args, run, from_end=False)
    _launch(problem, "history_bwd_queries_kernel", problem.q_heads, args, run)


def backward_at_keys(problem: Problem, args: Args, run: Runner) -> None:
    """Launch the first part of the gradients of all keys and values, when D is known."""
    _launch(problem, "history_handed_sums_kernel", problem.kv_heads, args, run)
    _scan(problem, args, run, from_end=True)
    _launch(problem, "history_bwd_keys_kernel", problem.kv_heads, args, run)


def _launch(problem: Problem, kernel: str, heads: int, args: Args, run: Runner) -> None:
    """Launch a warp for each chunk of each head."""
    warps = problem.batch * heads * history_chunks(problem)
    if warps > 0:
        run.launch(kernel, -(-warps // WARPS), 32 * WARPS, args)


def _scan(problem: Problem, args: Args, run: Runner, *, from_end: bool) -> None:
    rows = problem.batch * problem.kv_heads * num_sequences(problem)
    panels = -(-(problem.key_dim + problem.value_dim) // 32)
    args.from_end = from_end
    if prod((rows, panels)) > 0:
        run.launch("history_scan_kernel", rows * panels, SCAN_THREADS, args)
