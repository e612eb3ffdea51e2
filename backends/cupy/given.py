"""Attention over given indices: what is launched, over which memory. An exact search is followed by it.

The backward pass stands at the keys by sorting pairs of a key and a place in the indices that names it.
"""

from __future__ import annotations

from math import prod

from zeta_ops.backends import ArraySpec
from zeta_ops.backends.cupy.args import Args
from zeta_ops.backends.cupy.selection import Runner, launch_threads
from zeta_ops.options import Shapes

__all__ = ["backward_at_keys", "backward_at_queries", "count_places", "forward", "pairs"]

_STRETCH = 1024  # `STRETCH` in `kernels/given_keys.cu`
_MOST_PLACES = 2**31 - 1  # the sort counts them with 32 bits, and a pair holds its place as int32


def count_places(shapes: Shapes, width: int) -> int:
    """Count the places in the indices, `width` of each query.

    Raises
    ------
    ValueError
        If the backward pass cannot number so many.
    """
    places = prod(shapes.normalizer_shape) * width
    if places > _MOST_PLACES:
        sizes = f"{shapes.batch} batch items * {shapes.q_heads} heads * {shapes.q_len} queries * {width} keys of each"
        raise ValueError(
            f"the backward pass over listed keys takes at most {_MOST_PLACES:,} of them in one call; got {sizes}"
            f" = {places:,}; call it with fewer batch items or heads at a time"
        )
    return places


def pairs(shapes: Shapes, width: int) -> dict[str, ArraySpec]:
    """List the arrays that a backward pass needs beside its sums, by the names of their pointers in `Args`."""
    places, sums = count_places(shapes, width), shapes.sum_dtype
    return {
        "pair_keys": ArraySpec((places,), "uint64"),
        "pair_places": ArraySpec((places,), "int32"),
        "sorted_pair_keys": ArraySpec((places,), "uint64"),
        "sorted_pair_places": ArraySpec((places,), "int32"),
        "stretch_k": ArraySpec((places // _STRETCH, shapes.key_dim), sums),
        "stretch_v": ArraySpec((places // _STRETCH, shapes.value_dim), sums),
    }


def forward(shapes: Shapes, args: Args, run: Runner) -> None:
    """Launch a forward pass over `indices`, as the last part of attention."""
    launch_threads(run, "given_fwd_kernel", 32 * prod(shapes.normalizer_shape), args)


def backward_at_queries(shapes: Shapes, args: Args, run: Runner) -> None:
    """Launch what completes the gradients of the queries."""
    launch_threads(run, "given_bwd_queries_kernel", 32 * prod(shapes.normalizer_shape), args)


def backward_at_keys(shapes: Shapes, args: Args, run: Runner) -> None:
    """Launch what completes the gradients of keys and values, after `backward_at_queries`."""
    keys, places = prod(shapes.k_shape[:-1]), count_places(shapes, args.width)
    if keys == 0:
        return
    if places > 0:
        launch_threads(run, "given_pairs_kernel", places, args)
        unsorted, into = (args.pair_keys, args.pair_places), (args.sorted_pair_keys, args.sorted_pair_places)
        run.sort_pairs(*unsorted, *into, places, keys.bit_length())
        launch_threads(run, "given_bwd_stretches_kernel", 32 * (places // _STRETCH), args)
    launch_threads(run, "given_bwd_keys_kernel", 32 * keys, args)
