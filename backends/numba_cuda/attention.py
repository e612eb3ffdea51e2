"""Attention, forward and backward: what is launched, in which order."""

from __future__ import annotations

from math import prod

from zeta_ops.backends.numba_cuda.attend import attend_bwd_queries_kernel, attend_fwd_kernel
from zeta_ops.backends.numba_cuda.calls import Call
from zeta_ops.backends.numba_cuda.compiling import Kernel
from zeta_ops.backends.numba_cuda.constants import STRETCH, TILE
from zeta_ops.backends.numba_cuda.extents import SCAN, extents_kernel, extents_scan_kernel
from zeta_ops.backends.numba_cuda.gamma import PARTS, gamma_bwd_kernel
from zeta_ops.backends.numba_cuda.given import given_bwd_queries_kernel, given_fwd_kernel
from zeta_ops.backends.numba_cuda.given_keys import LISTS, LOCAL, STRETCHES, given_bwd_keys_kernel, pairs_kernel
from zeta_ops.backends.numba_cuda.history import SCAN as HISTORY_SCAN
from zeta_ops.backends.numba_cuda.history import (
    history_bwd_queries_kernel,
    history_fwd_kernel,
    history_scan_kernel,
    history_sums_kernel,
)
from zeta_ops.backends.numba_cuda.history_keys import (
    history_bwd_keys_kernel,
    history_handed_sums_kernel,
    history_terms_kernel,
)
from zeta_ops.backends.numba_cuda.keys import attend_bwd_keys_kernel, clear_keys_kernel
from zeta_ops.backends.numba_cuda.parts import THREADS, made_for
from zeta_ops.backends.numba_cuda.selection import find_ranges, list_selection
from zeta_ops.backends.numba_cuda.sizes import by_ranges, count_parts, count_places, num_sequences, sizes_of
from zeta_ops.options import Problem, Shapes

__all__ = ["backward", "forward", "given_backward", "given_forward"]


def forward(call: Call, problem: Problem) -> None:
    """Launch a forward pass: part after part, the selection last."""
    made, queries = made_for(problem), prod(problem.normalizer_shape)
    # Weights of the parts so far are in one array while those with the next part are left in another.
    last, other = call.memory["normalizer"], call.memory.get("weights", call.memory["normalizer"])
    into, earlier = (last, other) if count_parts(problem) % 2 else (other, last)
    prior = 0
    if problem.options.history_mean:
        _sum_history(call, problem)
        columns = max(problem.value_dim, 1)
        call.each(history_fwd_kernel(made), problem.batch * problem.q_heads * sizes_of(problem).chunks * columns,
                  normalizer=into)  # fmt: skip
        into, earlier, prior = earlier, into, 1
    if problem.options.local_window > 0:
        call.teams(given_fwd_kernel(made, True), queries, normalizer=into, earlier=earlier, prior=prior,
                   indices=call.memory["cu_seqlens"])  # fmt: skip
        into, earlier, prior = earlier, into, 1
    if by_ranges(problem):
        find_ranges(call, problem)
        call.teams(attend_fwd_kernel(made), queries, earlier=earlier, prior=prior)
    else:
        list_selection(call, problem)
        call.teams(given_fwd_kernel(made, False), queries, earlier=earlier, prior=prior)


def given_forward(call: Call, shapes: Shapes) -> None:
    """Launch a forward pass over given indices."""
    queries = prod(shapes.normalizer_shape)
    call.teams(given_fwd_kernel(made_for(shapes), False), queries, earlier=call.memory["normalizer"], prior=0)


def backward(call: Call, problem: Problem) -> None:
    """Launch a backward pass: at the queries part after part, then at the keys."""
    made, queries = made_for(problem), prod(problem.normalizer_shape)
    call.memory.setdefault("pulls", call.memory["delta"])
    call.memory.setdefault("sum_k", call.memory["delta"])
    call.memory.setdefault("sum_v", call.memory["delta"])
    if queries == 0:
        _launch_gamma(call, problem)
        keys = prod(problem.k_shape[:-1])
        call.each(clear_keys_kernel(problem.key_dim), keys, count=keys, dim=problem.value_dim,
                  grad_v=call.memory["grad_v_elements"])  # fmt: skip
        return
    prior = 0
    if problem.options.history_mean:
        _sum_history(call, problem)
        call.each(history_bwd_queries_kernel(made), problem.batch * problem.q_heads * sizes_of(problem).chunks)
        prior = 1
    if problem.options.local_window > 0:
        call.teams(given_bwd_queries_kernel(made, True), queries, prior=prior, indices=call.memory["cu_seqlens"])
        prior = 1
    if by_ranges(problem):
        call.teams(attend_bwd_queries_kernel(made), queries, prior=prior)
    else:
        call.teams(given_bwd_queries_kernel(made, False), queries, prior=prior)
    _launch_gamma(call, problem)
    carried = _parts_at_keys(call, problem)
    if by_ranges(problem):
        _ranges_at_keys(call, problem, carried)
    else:
        _lists_at_keys(call, problem, problem.options.top_k, carried)


def given_backward(call: Call, shapes: Shapes, width: int) -> None:
    """Launch a backward pass over given indices."""
    for name in ("pulls", "sum_k", "sum_v"):
        call.memory[name] = call.memory["delta"]
    call.teams(given_bwd_queries_kernel(made_for(shapes), False), prod(shapes.normalizer_shape), prior=0)
    _launch_gamma(call, shapes)
    _lists_at_keys(call, shapes, width, 0)


def _launch_gamma(call: Call, shapes: Shapes) -> None:
    call.launch(gamma_bwd_kernel, shapes.q_heads, min(PARTS, 4 * THREADS))


def _parts_at_keys(call: Call, problem: Problem) -> int:
    """Launch what the parts before the selection hand on to keys; say whether there are any."""
    made, carried = made_for(problem), 0
    if problem.options.history_mean:
        call.each(history_terms_kernel(made), prod(problem.normalizer_shape))
        _launch_chunks(call, problem, history_handed_sums_kernel(made))
        _scan_history(call, problem, from_end=1)
        _launch_chunks(call, problem, history_bwd_keys_kernel(made))
        carried = 1
    if problem.options.local_window > 0:
        memory, keys = call.memory, prod(problem.k_shape[:-1])
        nothing = dict.fromkeys(("sorted_pair_keys", "sorted_pair_places"), memory["cu_seqlens"])
        nothing |= dict.fromkeys(("stretch_k", "stretch_v"), memory["delta"])
        call.teams(given_bwd_keys_kernel(made, LOCAL), keys, carried=carried, pairs=0, **nothing,
                   to_k=memory["sum_k"], to_v=memory["sum_v"])  # fmt: skip
        carried = 1
    return carried


def _sum_history(call: Call, problem: Problem) -> None:
    _launch_chunks(call, problem, history_sums_kernel(made_for(problem)))
    _scan_history(call, problem, from_end=0)


def _launch_chunks(call: Call, problem: Problem, kernel: Kernel) -> None:
    """Launch a thread for each column of each chunk of each key head."""
    columns = problem.key_dim + problem.value_dim
    call.each(kernel, problem.batch * problem.kv_heads * sizes_of(problem).chunks * columns)


def _scan_history(call: Call, problem: Problem, from_end: int) -> None:
    columns = problem.key_dim + problem.value_dim
    rows = problem.batch * problem.kv_heads * num_sequences(problem)
    call.launch(history_scan_kernel, rows * columns, min(HISTORY_SCAN, THREADS), columns=columns, from_end=from_end)


def _ranges_at_keys(call: Call, problem: Problem, carried: int) -> None:
    """Launch the pass over keys: all levels above 0 first, then level 0, which adds them up."""
    heads = problem.batch * problem.kv_heads
    rows = heads * num_sequences(problem)
    blocks = -(-problem.q_len * problem.group_size // (TILE * THREADS))
    call.launch(extents_kernel, rows * blocks, THREADS, blocks=blocks)
    call.launch(extents_scan_kernel, rows, min(SCAN, 2 * THREADS))
    sizes = sizes_of(problem)
    kernel = attend_bwd_keys_kernel(made_for(problem))
    call.teams(kernel, heads * sizes.upper_entries, upper=1, carried=0)
    call.teams(kernel, heads * sizes.lower_entries, upper=0, carried=carried)


def _lists_at_keys(call: Call, shapes: Shapes, width: int, carried: int) -> None:
    """Launch the pass over keys that are listed."""
    keys, places, made = prod(shapes.k_shape[:-1]), count_places(shapes, width), made_for(shapes)
    if keys == 0:
        return
    call.each(pairs_kernel, places)
    if places > 0:
        call.sort("pair_keys", "pair_places", "sorted_pair_keys", "sorted_pair_places", places, keys.bit_length())
    memory = call.memory
    call.teams(given_bwd_keys_kernel(made, STRETCHES), places // STRETCH, carried=0, pairs=places,
               to_k=memory["stretch_k"], to_v=memory["stretch_v"])  # fmt: skip
    call.teams(given_bwd_keys_kernel(made, LISTS), keys, carried=carried, pairs=places,
               to_k=memory["grad_k"], to_v=memory["grad_v"])  # fmt: skip
