"""Attention, forward and backward: what is launched, in which order, over which memory."""

from __future__ import annotations

from math import prod
from types import ModuleType

from zeta_ops.backends import ArraySpec
from zeta_ops.backends.cupy import given, history, lists, local, local_tiles, selection
from zeta_ops.backends.cupy.args import Args
from zeta_ops.backends.cupy.selection import Runner, launch_blocks, launch_threads, sizes_of
from zeta_ops.backends.cupy.sources import GROUP, TILE_THREADS, has_tiles
from zeta_ops.backends.scalars import level_count
from zeta_ops.options import Problem, Shapes

__all__ = ["backward", "backward_workspace", "forward", "forward_workspace", "given_backward", "gradient_sums"]

SLOT_BLOCK = 1024  # slots of an extent, which are threads of `extents_kernel`
EXTENTS = 33  # of as many slots: one of all and one of each 32
SLOT_REGION = 32 * SLOT_BLOCK  # slots of a wide extent
FEW_REGIONS = 2  # in rows of more there are wide extents too: see `kernels/extents.cuh`
EXTENT_BYTES = 16  # `Extent` in `kernels/extents.cuh`
TAIL_BYTES = 16  # `QueryTail` in `kernels/tile_tails.cuh`
GAMMA_THREADS = 1024


def forward_workspace(problem: Problem) -> dict[str, ArraySpec]:
    """List the arrays of a forward pass, by the names of their pointers in `Args`."""
    if lists.is_listed(problem):
        specs = lists.workspace(problem)
        specs = {name: spec for name, spec in specs.items() if name not in lists.residual_specs(problem)}
        if has_tiles(problem) and problem.options.search != "exact":
            specs["distances"] = ArraySpec((*problem.normalizer_shape, problem.options.top_k), "float32")
    else:
        specs = selection.workspace(problem)
    return specs | history.forward_workspace(problem) if problem.options.history_mean else specs


def forward(problem: Problem, args: Args, run: Runner, *, tiled: bool) -> None:
    """Launch a forward pass, on tensor cores if `tiled`."""
    listed = lists.is_listed(problem)
    if listed:
        lists.find(problem, args, run, ascending=False)
    else:
        selection.select(problem, args, run)
    args.prior = 0
    for part in _first_parts(problem, tiled=tiled):
        part.forward(problem, args, run)
        args.prior = 1
    if listed:
        given.forward(problem, args, run, tiled=tiled)
    elif tiled:
        launch_blocks(run, "tile_fwd_kernel", _slot_tiles(problem, GROUP), TILE_THREADS, args)
    else:
        launch_threads(run, "attend_fwd_kernel", 32 * prod(problem.normalizer_shape), args)


def backward_workspace(problem: Problem) -> dict[str, ArraySpec]:
    """List the arrays of a backward pass."""
    parts = _first_parts(problem, tiled=False)
    listed = lists.is_listed(problem)
    specs = given.workspace(problem, problem.options.top_k) if listed else _keys_workspace(problem)
    specs |= selection.sequences(problem)
    specs |= gradient_sums(problem, carried=bool(parts))
    if parts:
        specs["pulls"] = ArraySpec((*problem.normalizer_shape, 3 + 2 * problem.key_dim), problem.sum_dtype)
    return specs | history.backward_workspace(problem) if problem.options.history_mean else specs


def _keys_workspace(problem: Problem) -> dict[str, ArraySpec]:
    """List the arrays of the pass from the keys to the queries that select them."""
    heads, upper, sums = problem.batch * problem.kv_heads, sizes_of(problem).upper_entries, problem.sum_dtype
    extents = _slot_tiles(problem, SLOT_BLOCK) * EXTENTS + _slot_tiles(problem, SLOT_REGION)
    return {
        "extents": ArraySpec((extents, EXTENT_BYTES), "uint8"),
        "tails": ArraySpec((*problem.normalizer_shape, TAIL_BYTES * has_tiles(problem)), "uint8"),
        "level_k": ArraySpec((heads, upper, problem.key_dim), sums),
        "level_v": ArraySpec((heads, upper, problem.value_dim), sums),
    }


def gradient_sums(shapes: Shapes, *, carried: bool) -> dict[str, ArraySpec]:
    """List the sums that gradients are made of.

    Those of keys and values are needed where several parts follow one another (`carried`); they are the gradients
    themselves where the dtypes agree.
    """
    sums = shapes.sum_dtype
    specs = {
        "delta": ArraySpec(shapes.normalizer_shape, sums),
        "squares": ArraySpec(shapes.normalizer_shape, sums),
    }
    if carried and shapes.coordinate_dtype != sums:
        specs["sum_k"] = ArraySpec(shapes.k_shape, sums)
    if carried and shapes.value_dtype != sums:
        specs["sum_v"] = ArraySpec(shapes.v_shape, sums)
    return specs


def backward(problem: Problem, args: Args, run: Runner, *, tiled: bool) -> None:
    """Launch a backward pass, on tensor cores if `tiled`."""
    queries = prod(problem.normalizer_shape)
    selection.find_sequences(args, run)
    args.prior = args.carried = 0
    for part in _first_parts(problem, tiled=tiled):
        part.backward_at_queries(problem, args, run)
        args.prior = 1
    listed = lists.is_listed(problem)
    if listed:
        given.backward_at_queries(problem, args, run, tiled=tiled)
    elif tiled:
        launch_blocks(run, "tile_bwd_queries_kernel", _slot_tiles(problem, GROUP), TILE_THREADS, args)
    else:
        launch_threads(run, "attend_bwd_queries_kernel", 32 * queries, args)
    run.launch("gamma_bwd_kernel", problem.q_heads, GAMMA_THREADS, args)
    if queries == 0:
        launch_threads(run, "clear_keys_kernel", prod(problem.k_shape[:-1]), args)
        return
    for part in _first_parts(problem, tiled=tiled):
        part.backward_at_keys(problem, args, run)
        args.carried = 1
    if listed:
        given.backward_at_keys(problem, args, run, tiled=tiled)
    else:
        _keys_backward(problem, args, run, tiled)


def given_backward(shapes: Shapes, args: Args, run: Runner, *, tiled: bool) -> None:
    """Launch the backward pass of attention over given indices alone."""
    args.prior = args.carried = 0
    given.backward_at_queries(shapes, args, run, tiled=tiled)
    run.launch("gamma_bwd_kernel", shapes.q_heads, GAMMA_THREADS, args)
    given.backward_at_keys(shapes, args, run, tiled=tiled)


def _first_parts(problem: Problem, *, tiled: bool) -> list[ModuleType]:
    """List the parts of attention before the selection, in order."""
    options = problem.options
    window = local_tiles if tiled else local
    return [history] * options.history_mean + [window] * (options.local_window > 0)


def _keys_backward(problem: Problem, args: Args, run: Runner, tiled: bool) -> None:
    """Launch the pass over keys, the levels above 0 before it."""
    launch_blocks(run, "extents_kernel", _slot_tiles(problem, SLOT_BLOCK), SLOT_BLOCK, args)
    if problem.q_len * problem.group_size > FEW_REGIONS * SLOT_REGION:
        launch_threads(run, "wide_extents_kernel", 32 * _slot_tiles(problem, SLOT_REGION), args)
    for level in (1, 0):
        args.level, args.last = level, level == 0
        if tiled:
            launch_blocks(run, "tile_bwd_keys_kernel", _entry_tiles(problem, level, GROUP), TILE_THREADS, args)
        else:
            launch_threads(run, "attend_bwd_keys_kernel", 32 * _entry_tiles(problem, level, 1), args)
    args.level = 0


def _slot_tiles(problem: Problem, size: int) -> int:
    """Count tiles of slots, such that each row has its own; see `kernels/tiles.cuh`."""
    of_head = problem.q_len * problem.group_size // size + sizes_of(problem).sequences
    return problem.batch * problem.kv_heads * of_head


def _entry_tiles(problem: Problem, level: int, size: int) -> int:
    """Count tiles of entries of level 0, or of all levels above it; see `kernels/tiles.cuh`."""
    levels = [0] if level == 0 else range(1, level_count(problem.k_len, problem.options.window))
    of_head = sum((problem.k_len >> level) // size + sizes_of(problem).sequences for level in levels)
    return problem.batch * problem.kv_heads * of_head
