"""Attention over given indices: what is launched, over which memory. Selections that are lists are followed by it.

The backward pass stands at the keys with pairs of a key and who names it. On tensor cores queries come as tiles of 16,
and pairs are brought to their keys by counting them, see `kernels/tile_pairs.cuh`; without, they are pairs of a key and
a query that are sorted, see `kernels/given_pairs.cuh`.
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

PAIR_KEYS = "uint32"  # dtype of keys in pairs that are sorted
_STRETCH = 1024  # `STRETCH` in `kernels/given_pairs.cuh`
_KEYS_OF_WARP = 8  # likewise
_TILE = 16  # queries of a tile, keys of a group
_TILE_WARPS = 2  # of a block, `GIVEN_WARPS` in `kernels/tile_pairs.cuh`
_HEAVY = 2048  # runs of a group, `HEAVY` likewise
_WIDEST = 32 * 2047  # indices of a query: `TilePair` likewise
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


def _tiles(shapes: Shapes) -> int:
    """Count tiles of queries: those of a tile read the same key head."""
    return shapes.batch * shapes.kv_heads * -(-shapes.q_len * shapes.group_size // _TILE)


def _groups(shapes: Shapes) -> int:
    """Count groups of keys, which are of one head."""
    return shapes.batch * shapes.kv_heads * -(-shapes.k_len // _TILE)


def _heavy_parts(places: int) -> int:
    """Bound the parts of heavy groups: at most twice as many as of whole ones."""
    return 2 * places // _HEAVY


def record_bytes(key_dim: int) -> int:
    """Size of `GivenRecord` in `kernels/tile_pairs.cuh`."""
    return -(-4 * (key_dim + 4) // 16) * 16


def workspace(shapes: Shapes, width: int) -> dict[str, ArraySpec]:
    """List the arrays that a backward pass needs beside its sums, by the names of their pointers in `Args`."""
    places, sums, tiles = count_places(shapes, width), shapes.sum_dtype, _tiles(shapes) * has_tiles(shapes)
    room = -(-max(places, tiles * _TILE * width) // 64) * 64  # nothing lies between arrays of this size
    parts = max(places // _STRETCH, _TILE * _heavy_parts(places) * has_tiles(shapes))
    specs = {
        "pair_keys": ArraySpec((room,), PAIR_KEYS),
        "pair_queries": ArraySpec((room,), "int32"),
        "sorted_pair_keys": ArraySpec((room,), PAIR_KEYS),
        "sorted_pair_queries": ArraySpec((room,), "int32"),
        "pair_starts": ArraySpec(shapes.k_shape[:-1], "int32"),
        "stretch_k": ArraySpec((parts, shapes.key_dim), sums),
        "stretch_v": ArraySpec((parts, shapes.value_dim), sums),
    }
    if not has_tiles(shapes):
        return specs
    return {
        **specs,
        "tile_counts": ArraySpec((tiles,), "int32"),
        "group_counts": ArraySpec((_groups(shapes) + 1, 4), "int32"),
        "heavy_parts": ArraySpec((_heavy_parts(places), 2), "int32"),
        "key_places": ArraySpec(shapes.k_shape[:-1], "int32"),
        "records": ArraySpec((tiles * _TILE, record_bytes(shapes.key_dim)), "uint8"),
    }


def forward(shapes: Shapes, args: Args, run: Runner, *, tiled: bool) -> None:
    """Launch a forward pass over `indices`, as the last part of attention, on tensor cores if `tiled`."""
    _launch_on_queries(shapes, "given_fwd_kernel", args, run, tiled=tiled)


def backward_at_queries(shapes: Shapes, args: Args, run: Runner, *, tiled: bool) -> None:
    """Launch what completes the gradients of the queries."""
    tiled = tiled and args.width <= _WIDEST
    if tiled:
        args.tile_pairs, args.group_runs = args.pair_keys, args.sorted_pair_keys  # with the arrays behind them
        if not args.key_order:
            args.key_places = 0  # keys stand in their own order
        launch_threads(run, "key_places_kernel", max(prod(shapes.k_shape[:-1]), _groups(shapes) + 1), args)
    _launch_on_queries(shapes, "given_bwd_queries_kernel", args, run, tiled=tiled)


def backward_at_keys(shapes: Shapes, args: Args, run: Runner, *, tiled: bool) -> None:
    """Launch what completes the gradients of keys and values, after `backward_at_queries`."""
    keys, places = prod(shapes.k_shape[:-1]), count_places(shapes, args.width)
    if keys == 0:
        return
    if tiled and args.width <= _WIDEST:
        groups = _groups(shapes)
        launch_threads(run, "group_starts_kernel", groups, args)
        launch_threads(run, "list_runs_kernel", 32 * _tiles(shapes), args)
        _launch_warps(run, "tile_given_bwd_keys_kernel", groups + _heavy_parts(places), args)
        _launch_warps(run, "tile_given_bwd_heavy_kernel", groups, args)
        return
    args.token_bits = _token_bits(shapes)
    if places > 0:
        launch_threads(run, "given_pairs_kernel", -(-places // 4), args)
        unsorted, into = (args.pair_keys, args.pair_queries), (args.sorted_pair_keys, args.sorted_pair_queries)
        run.sort_pairs(*unsorted, *into, places, args.token_bits, PAIR_KEYS)
        launch_threads(run, "given_bwd_stretches_kernel", 32 * (places // _STRETCH), args)
    launch_threads(run, "given_starts_kernel", keys, args)
    launch_threads(run, "given_bwd_keys_kernel", 32 * -(-keys // _KEYS_OF_WARP), args)


def _launch_on_queries(shapes: Shapes, kernel: str, args: Args, run: Runner, *, tiled: bool) -> None:
    """Launch a kernel, or its version for tensor cores: a warp takes a query or a tile."""
    if tiled:
        _launch_warps(run, f"tile_{kernel}", _tiles(shapes), args)
    else:
        launch_threads(run, kernel, 32 * prod(shapes.normalizer_shape), args)


def _launch_warps(run: Runner, kernel: str, warps: int, args: Args) -> None:
    launch_blocks(run, kernel, -(-warps // _TILE_WARPS), 32 * _TILE_WARPS, args)
