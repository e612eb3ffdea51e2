"""The operations as JAX functions: foreign calls that can be partitioned over devices and mapped by vmap.

Each is `custom_vmap(custom_partitioning(ffi_call))`. vmap folds the mapped axis into the heads, which are independent.
Partitioning splits the batch, and heads too where every query head has its own key head.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding, PartitionSpec

from zeta_ops.adapters.jax.ffi import BORDERS, TARGET, Call, Place, specs_of_results
from zeta_ops.arguments import dtype_name
from zeta_ops.options import Options, Shapes

__all__ = [
    "differentiated_once",
    "given_backward",
    "given_forward",
    "search_backward",
    "search_forward",
    "select",
    "shapes_of",
]

Array = jax.Array
Results = tuple[Array, ...]


def shapes_of(q: Array, k: Array, v: Array) -> Shapes:
    """Read the shapes off canonical arrays."""
    batch, q_heads, q_len, key_dim = q.shape
    _, kv_heads, k_len, value_dim = v.shape
    return Shapes(batch, q_heads, kv_heads, q_len, k_len, key_dim, value_dim, dtype_name(q), dtype_name(v))


def _call(call: Call, arguments: tuple[Array, ...]) -> Results:
    specs = specs_of_results(call)
    results = [jax.ShapeDtypeStruct(spec.shape, spec.dtype) for spec in specs]
    found = jax.ffi.ffi_call(TARGET, results)(*arguments, call=call.encode())
    return tuple(found) if call.place.platform == "cpu" else tuple(found[:-1])  # without workspace


def _fold(x: Array, mapped: bool, size: int) -> Array:
    """Fold a leading mapped axis into the heads, or repeat what is not mapped."""
    if not mapped:
        x = jnp.broadcast_to(x, (size, *x.shape))
    if x.ndim == 2:  # gamma has only heads
        return x.reshape(-1)
    return jnp.moveaxis(x, 0, 1).reshape(x.shape[1], size * x.shape[2], *x.shape[3:])


def _unfold(x: Array, size: int) -> Array:
    if x.ndim == 1:
        return x.reshape(size, -1)
    return jnp.moveaxis(x.reshape(x.shape[0], size, x.shape[1] // size, *x.shape[2:]), 1, 0)


def _mapped_and_partitioned(
    local: Callable[..., Results], borders_at: int | None, gamma_at: int | None, gamma_out: int | None
) -> Callable[..., Results]:
    """Make an operation on whole arrays of one that works on any part of the batch or heads.

    `borders_at` and `gamma_at` are the places of `cu_seqlens` and `gamma` among the arguments, `gamma_out` that of
    gamma's gradient among the results.
    """
    partitioned = custom_partitioning(local)

    def spec_of(n: int, rank: int, batch: Any, heads: Any, special: int | None) -> PartitionSpec:
        if special is not None and n == special:
            return PartitionSpec(heads)
        return PartitionSpec(batch, heads, *(None,) * (rank - 2)) if rank > 1 else PartitionSpec(None)

    def split(arguments: Any) -> tuple[Any, Any]:
        """Axes of the mesh that the batch and the heads are split over."""
        first = next(n for n, a in enumerate(arguments) if len(a.shape) > 1)
        spec = (*arguments[first].sharding.spec, None, None)
        heads = {a.shape[1] for a in arguments if len(a.shape) > 2}
        return spec[0], spec[1] if len(heads) == 1 else None

    def partition(mesh: Any, arguments: Any, results: Any) -> Any:
        batch, heads = split(arguments)
        taken = tuple(
            NamedSharding(mesh, spec_of(n, len(a.shape), batch, heads, gamma_at)) for n, a in enumerate(arguments)
        )
        given = tuple(
            NamedSharding(mesh, spec_of(n, len(r.shape), batch, heads, gamma_out)) for n, r in enumerate(results)
        )

        def run(*parts: Array) -> Results:
            found = local(*parts)
            if gamma_out is None or batch is None:
                return found
            whole = jax.lax.psum(found[gamma_out], batch)
            return *found[:gamma_out], whole, *found[gamma_out + 1 :]

        return mesh, run, given, taken

    def infer(mesh: Any, arguments: Any, results: Any) -> Any:
        batch, heads = split(arguments)
        return tuple(
            NamedSharding(mesh, spec_of(n, len(r.shape), batch, heads, gamma_out)) for n, r in enumerate(results)
        )

    partitioned.def_partition(
        partition=partition, infer_sharding_from_operands=infer, sharding_rule=_rule(gamma_at, gamma_out)
    )

    @jax.custom_batching.custom_vmap
    def op(*arguments: Array) -> Results:
        return partitioned(*arguments)

    @op.def_vmap
    def _(size: int, mapped: Any, *arguments: Array) -> Any:
        folded = []
        for n, (x, is_mapped) in enumerate(zip(arguments, mapped, strict=True)):
            if n == borders_at:
                if is_mapped:
                    raise ValueError("cu_seqlens must be the same for all items of vmap; got a mapped array")
                folded.append(x)
            else:
                folded.append(_fold(x, is_mapped, size))
        results = tuple(_unfold(x, size) for x in op(*folded))
        return results, tuple(True for _ in results)

    return differentiated_once(op)


def differentiated_once(op: Callable[..., Results]) -> Callable[..., Results]:
    """Refuse to differentiate an operation, which is the value or the derivative of a differentiable function."""

    @jax.custom_jvp
    def once(*arguments: Array) -> Results:
        return op(*arguments)

    @once.defjvp
    def _(primals: Any, tangents: Any) -> Any:
        raise TypeError("zeta_ops attention is differentiated once and in reverse mode: it has no other derivative")

    return once


def _rule(gamma_at: int | None, gamma_out: int | None) -> Callable[..., Any]:
    """Say which axes of arguments and results are split together: `b` the batch, `h` heads, every other axis alone."""
    from jax.experimental.custom_partitioning import ArrayMapping, SdyShardingRule

    def make(mesh: Any, arguments: Any, results: Any) -> Any:
        heads = {a.shape[1] for a in arguments if len(a.shape) > 2}
        together = len(heads) == 1
        alone: list[str] = []

        def factors(kind: str, n: int, shape: tuple[int, ...], special: int | None) -> Any:
            names = []
            for axis in range(len(shape)):
                if len(shape) == 1:
                    name = "h" if n == special and together else f"{kind}{n}_{axis}"
                else:
                    name = "b" if axis == 0 else "h" if axis == 1 and together else f"{kind}{n}_{axis}"
                names.append(name)
                if name not in ("b", "h"):
                    alone.append(name)
            return ArrayMapping(*names)

        taken = tuple(factors("x", n, a.shape, gamma_at) for n, a in enumerate(arguments))
        given = tuple(factors("y", n, r.shape, gamma_out) for n, r in enumerate(results))
        return SdyShardingRule(taken, given, need_replication_factors=tuple(alone))

    return make


@lru_cache(maxsize=256)
def _search(operation: str, options: Options, packed: bool, place: Place) -> Callable[..., Results]:
    borders_at = BORDERS[operation]

    def local(*arguments: Array) -> Results:
        first = 1 if operation == "search_backward" else 0
        q, k = arguments[first : first + 2]
        shapes = shapes_of(q, k, k if operation == "select" else arguments[first + 2])
        sequences = arguments[borders_at].shape[0] - 1 if packed else None
        problem = shapes.searched(sequences, options)
        return _call(Call(operation, place, problem), arguments)

    gamma_at = {"select": None, "search_forward": 3, "search_backward": 4}[operation]
    gamma_out = 3 if operation == "search_backward" else None
    return _mapped_and_partitioned(local, borders_at if packed else None, gamma_at, gamma_out)


@lru_cache(maxsize=64)
def _given(operation: str, place: Place) -> Callable[..., Results]:
    first = 1 if operation == "given_backward" else 0

    def local(*arguments: Array) -> Results:
        shapes = shapes_of(*arguments[first : first + 3])
        return _call(Call(operation, place, shapes, arguments[first + 3].shape[-1]), arguments)

    return _mapped_and_partitioned(local, None, first + 4, 3 if first else None)


def select(q: Array, k: Array, borders: Results, options: Options, place: Place) -> Array:
    """Select keys; `borders` is `(cu_seqlens,)` or empty."""
    return _search("select", options, bool(borders), place)(q, k, *borders)[0]


def search_forward(*arguments: Array, options: Options, packed: bool, place: Place) -> Results:
    """Attend over a selection; results are output, normalizer and what the backward pass needs."""
    return _search("search_forward", options, packed, place)(*arguments)


def search_backward(*arguments: Array, options: Options, packed: bool, place: Place) -> Results:
    """Differentiate `search_forward`."""
    return _search("search_backward", options, packed, place)(*arguments)


def given_forward(*arguments: Array, place: Place) -> Results:
    """Attend to given indices; results are output and normalizer."""
    return _given("given_forward", place)(*arguments)


def given_backward(*arguments: Array, place: Place) -> Results:
    """Differentiate `given_forward`."""
    return _given("given_backward", place)(*arguments)
