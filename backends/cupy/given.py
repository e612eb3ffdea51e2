"""Attention over given indices: what is launched, over which memory. Selections that are lists are followed by it.

The backward pass stands at the keys by sorting pairs of a key and a query whose indices name it; see
`kernels/given_pairs.cuh`.
"""

from __future__ import annotations

from math import prod

from zeta_ops.backends import ArraySpec
from zeta_ops.backends.cupy.args import Args
from zeta_ops.backends.cupy.selection import Runner, launch_blocks, launch_threads
from zeta_ops.backends.cupy.sources import has_tiles
from zeta_ops.options import Shapes

__all__ = [
    "PAIR_KEYS",
    "backward_at_keys",
    "backward_at_queries",
    "count_places",
    "forward",
    "record_bytes",
    "workspace",
]

PAIR_KEYS = "uint32"  # dtype of keys in pairs
_STRETCH = 1024  # `STRETCH` in `kernels/given_pairs.cuh`
_KEYS_OF_WARP = 8  # likewise
_QUERIES_OF_WARP = 8  # `GATHERING_TURNS` in `kernels/gathered.cuh`
_TILE_WARPS = 4  # of a block, `GATHERING_WARPS` likewise
_MOST_PLACES = 2**31 - 1  # the sort counts them with 32 bits
_MOST_KEYS = 2**32


def count_places(shapes: Shapes, width: int) -> int:
    """Count the places in the indices, `width` of each query.

    Raises
    ------
    ValueError
        If the backward pass cannot number so many, or so many keys.
    """
    places = prod(shapes.normalizer_shape) * width
    if places > _MOST_PLACES:
        sizes = f"{shapes.batch} batch items * {shapes.q_heads} heads * {shapes.q_len} queries * {width} keys of each"
        raise ValueError(
            f"the backward pass over listed keys takes at most {_MOST_PLACES:,} of them in one call; got {sizes}"
            f" = {places:,}; call it with fewer batch items or heads at a time"
        )
    if (shapes.batch * shapes.kv_heads) << _token_bits(shapes) > _MOST_KEYS:
        sizes = f"{shapes.batch} batch items * {shapes.kv_heads} heads * {shapes.k_len} keys"
        raise ValueError(
            f"the backward pass over listed keys numbers keys with 32 bits; got {sizes}"
            "; call it with fewer batch items or heads at a time"
        )
    return places


def _token_bits(shapes: Shapes) -> int:
    return max(1, (shapes.k_len - 1).bit_length())


def record_bytes(key_dim: int) -> int:
    """Size of `GivenRecord` in `kernels/gathered.cuh`."""
    return -(-4 * (key_dim + 2) // 16) * 16


def workspace(shapes: Shapes, width: int) -> dict[str, ArraySpec]:
    """List the arrays that a backward pass needs beside its sums, by the names of their pointers in `Args`."""
    places, sums = count_places(shapes, width), shapes.sum_dtype
    record = record_bytes(shapes.key_dim) if has_tiles(shapes) else 0
    return {
        "pair_keys": ArraySpec((places,), PAIR_KEYS),
        "pair_queries": ArraySpec((places,), "int32"),
        "sorted_pair_keys": ArraySpec((places,), PAIR_KEYS),
        "sorted_pair_queries": ArraySpec((places,), "int32"),
        "pair_starts": ArraySpec(shapes.k_shape[:-1], "int32"),
        "stretch_k": ArraySpec((places // _STRETCH, shapes.key_dim), sums),
        "stretch_v": ArraySpec((places // _STRETCH, shapes.value_dim), sums),
        "records": ArraySpec((*shapes.normalizer_shape, record), "uint8"),
    }


def forward(shapes: Shapes, args: Args, run: Runner, *, tiled: bool) -> None:
    """Launch a forward pass over `indices`, as the last part of attention, on tensor cores if `tiled`."""
    _launch(run, "given_fwd", _query_warps(shapes, tiled), args, tiled)


def backward_at_queries(shapes: Shapes, args: Args, run: Runner, *, tiled: bool) -> None:
    """Launch what completes the gradients of the queries."""
    _launch(run, "given_bwd_queries", _query_warps(shapes, tiled), args, tiled)


def backward_at_keys(shapes: Shapes, args: Args, run: Runner, *, tiled: bool) -> None:
    """Launch what completes the gradients of keys and values, after `backward_at_queries`."""
    keys, places = prod(shapes.k_shape[:-1]), count_places(shapes, args.width)
    if keys == 0:
        return
    args.token_bits = _token_bits(shapes)
    if places > 0:
        launch_threads(run, "given_pairs_kernel", -(-places // 4), args)
        unsorted, into = (args.pair_keys, args.pair_queries), (args.sorted_pair_keys, args.sorted_pair_queries)
        run.sort_pairs(*unsorted, *into, places, args.token_bits, PAIR_KEYS)
        _launch(run, "given_bwd_stretches", places // _STRETCH, args, tiled)
    launch_threads(run, "given_starts_kernel", keys, args)
    _launch(run, "given_bwd_keys", -(-keys // _KEYS_OF_WARP), args, tiled)


def _query_warps(shapes: Shapes, tiled: bool) -> int:
    """Count the warps that all queries take: on tensor cores a warp takes a few."""
    queries = prod(shapes.normalizer_shape)
    return -(-queries // _QUERIES_OF_WARP) if tiled else queries


def _launch(run: Runner, name: str, warps: int, args: Args, tiled: bool) -> None:
    """Launch a kernel on so many warps, if on any: its version for tensor cores if `tiled`."""
    if tiled:
        launch_blocks(run, f"tile_{name}_kernel", -(-warps // _TILE_WARPS), 32 * _TILE_WARPS, args)
    else:
        launch_threads(run, f"{name}_kernel", 32 * warps, args)
