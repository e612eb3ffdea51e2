"""Attention, forward and backward: what is launched, in which order, over which memory."""

from __future__ import annotations

from math import prod

from zeta_ops.backends import ArraySpec
from zeta_ops.backends.cupy import selection
from zeta_ops.backends.cupy.args import Args
from zeta_ops.backends.cupy.selection import Runner, launch_threads, sizes_of
from zeta_ops.backends.scalars import level_count
from zeta_ops.options import Problem, Shapes

__all__ = ["backward", "backward_workspace", "forward", "forward_workspace", "gradient_sums"]

SLOT_TILE = 32  # slots per extent
EXTENT_BYTES = 24  # `Extent` in `kernels/extents.cuh`


def forward_workspace(problem: Problem) -> dict[str, ArraySpec]:
    """List the arrays of a forward pass, by the names of their pointers in `Args`."""
    return {
        **selection.workspace(problem),
        "nearest": ArraySpec(problem.normalizer_shape, problem.coordinate_dtype),
    }


def forward(problem: Problem, args: Args, run: Runner) -> None:
    """Launch a forward pass."""
    queries = prod(problem.normalizer_shape)
    selection.find_sequences(args, run)
    args.prior = 0
    selection.select(problem, args, run)
    launch_threads(run, "attend_fwd_kernel", 32 * queries, args)


def backward_workspace(problem: Problem) -> dict[str, ArraySpec]:
    """List the arrays of a backward pass."""
    rows = problem.batch * problem.kv_heads * sizes_of(problem).sequences
    tiles = prod(problem.normalizer_shape) // SLOT_TILE + rows
    return {
        **selection.sequences(problem),
        "extents": ArraySpec((tiles, EXTENT_BYTES), "uint8"),
        **gradient_sums(problem),
    }


def gradient_sums(shapes: Shapes) -> dict[str, ArraySpec]:
    """List the sums that gradients are made of. Those of keys and values are the gradients, where the dtypes agree."""
    sums = shapes.sum_dtype
    specs = {
        "delta": ArraySpec(shapes.normalizer_shape, sums),
        "squares": ArraySpec(shapes.normalizer_shape, sums),
    }
    if shapes.coordinate_dtype != sums:
        specs["sum_k"] = ArraySpec(shapes.k_shape, sums)
    if shapes.value_dtype != sums:
        specs["sum_v"] = ArraySpec(shapes.v_shape, sums)
    return specs


def backward(problem: Problem, args: Args, run: Runner) -> None:
    """Launch a backward pass."""
    queries = prod(problem.normalizer_shape)
    selection.find_sequences(args, run)
    args.prior = args.carried = 0
    launch_threads(run, "attend_bwd_queries_kernel", 32 * queries, args)
    run.launch("gamma_bwd_kernel", problem.q_heads, selection.THREADS, args)
    if queries == 0:
        launch_threads(run, "clear_keys_kernel", prod(problem.k_shape[:-1]), args)
        return
    _keys_backward(problem, args, run)


def _keys_backward(problem: Problem, args: Args, run: Runner) -> None:
    """Launch the pass over keys: curve by curve, from the last level to the first, which completes the gradients."""
    options, sizes = problem.options, sizes_of(problem)
    heads, queries = problem.batch * problem.kv_heads, prod(problem.normalizer_shape)
    rows = heads * sizes.sequences
    for curve in range(options.num_curves):
        args.curve = curve
        launch_threads(run, "extents_kernel", 32 * (queries // SLOT_TILE + rows), args)
        launch_threads(run, "extents_scan_kernel", 32 * rows, args)
        for level in reversed(range(level_count(problem.k_len, options.window))):
            args.level = level
            args.last = level == 0 and curve == options.num_curves - 1
            entries = heads * ((problem.k_len >> level) + sizes.sequences)
            launch_threads(run, "attend_bwd_keys_kernel", 32 * entries, args)
        args.carried = 1
    args.curve = args.level = 0
