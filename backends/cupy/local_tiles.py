"""The local window on tensor cores, as a part of attention: what is launched; `kernels/local_tiles.cuh` says how."""

from __future__ import annotations

from zeta_ops.backends.cupy.args import Args
from zeta_ops.backends.cupy.selection import Runner, launch_blocks, num_sequences
from zeta_ops.backends.cupy.sources import GROUP, TILE_THREADS
from zeta_ops.options import Problem

__all__ = ["backward_at_keys", "backward_at_queries", "forward"]


def forward(problem: Problem, args: Args, run: Runner) -> None:
    """Launch a part of every query's forward pass."""
    _launch(problem, "local_tile_fwd_kernel", problem.q_heads, problem.q_len, args, run)


def backward_at_queries(problem: Problem, args: Args, run: Runner) -> None:
    """Launch a part of every query's gradients."""
    _launch(problem, "local_tile_bwd_queries_kernel", problem.q_heads, problem.q_len, args, run)


def backward_at_keys(problem: Problem, args: Args, run: Runner) -> None:
    """Launch a part of the gradients of all keys and values, when D is known."""
    _launch(problem, "local_tile_bwd_keys_kernel", problem.kv_heads, problem.k_len, args, run)


def _launch(problem: Problem, kernel: str, heads: int, length: int, args: Args, run: Runner) -> None:
    """Launch a block for each group of queries or keys of each head."""
    blocks = problem.batch * heads * (length // GROUP + num_sequences(problem))
    launch_blocks(run, kernel, blocks, TILE_THREADS, args)
