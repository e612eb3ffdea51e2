"""The local window as a part of attention, for any values: what is launched; `kernels/local.cuh` says how."""

from __future__ import annotations

from math import prod

from zeta_ops.backends.cupy.args import Args
from zeta_ops.backends.cupy.selection import Runner, launch_threads
from zeta_ops.options import Problem

__all__ = ["backward_at_keys", "backward_at_queries", "forward"]


def forward(problem: Problem, args: Args, run: Runner) -> None:
    """Launch a part of every query's forward pass."""
    launch_threads(run, "local_fwd_kernel", 32 * prod(problem.normalizer_shape), args)


def backward_at_queries(problem: Problem, args: Args, run: Runner) -> None:
    """Launch a part of every query's gradients."""
    launch_threads(run, "local_bwd_queries_kernel", 32 * prod(problem.normalizer_shape), args)


def backward_at_keys(problem: Problem, args: Args, run: Runner) -> None:
    """Launch a part of the gradients of all keys and values, when D is known."""
    launch_threads(run, "local_bwd_keys_kernel", 32 * prod(problem.k_shape[:-1]), args)
