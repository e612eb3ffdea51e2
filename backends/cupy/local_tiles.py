"""The local window on tensor cores, as a part of attention: what is launched; `kernels/local_tiles.cuh` says how."""

from __future__ import annotations

from zeta_ops.backends.cupy.args import Args
from zeta_ops.backends.cupy.selection import Runner, num_sequences
from zeta_ops.options import Problem

__all__ = ["backward_at_keys", "backward_at_queries", "forward"]

TILE = 16  # queries or keys


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
    """Launch a warp for each tile of each head; as many warps a block as `kernels/tensor.cuh` says."""
    tiles = problem.batch * heads * (length // TILE + num_sequences(problem))
    warps = 4 if problem.value_dim <= 64 else 2 if problem.value_dim <= 128 else 1
    if tiles > 0:
        run.launch(kernel, -(-tiles // warps), 32 * warps, args)
