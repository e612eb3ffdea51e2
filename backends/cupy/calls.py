"""The operations of a device backend, on whatever executes kernels: addresses go into `Args`, steps are launched."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from zeta_ops.backends import ArraySpec, DeviceArray
from zeta_ops.backends.cupy import attention, given, lists, selection
from zeta_ops.backends.cupy.args import Args
from zeta_ops.backends.cupy.memory import item_bytes, place
from zeta_ops.backends.cupy.selection import Runner
from zeta_ops.backends.cupy.sources import Configuration, has_tiles
from zeta_ops.backends.radix_sort import Sort
from zeta_ops.options import Problem, Shapes

__all__ = [
    "attention_backward",
    "attention_forward",
    "cauchy_backward",
    "cauchy_forward",
    "causal_topk",
    "largest_sort",
    "residual_specs",
    "workspace_specs",
]


def residual_specs(problem: Problem) -> tuple[ArraySpec, ...]:
    """List what the forward pass leaves: a list of the selection, or where the windows lie."""
    return tuple(_residuals(problem).values())


def _residuals(problem: Problem) -> dict[str, ArraySpec]:
    """List the residuals by the names of their pointers in `Args`."""
    return lists.residual_specs(problem) if lists.is_listed(problem) else selection.selection_specs(problem)


def workspace_specs(operation: str, shapes: Shapes, width: int = 0) -> dict[str, ArraySpec]:
    """List the arrays of an operation's workspace."""
    if operation == "given_forward":
        return {}
    if operation == "given_backward":
        return {**attention.gradient_sums(shapes, carried=False), **given.workspace(shapes, width)}
    assert isinstance(shapes, Problem)
    if operation == "select":
        return lists.workspace(shapes)
    if operation == "search_forward":
        return attention.forward_workspace(shapes)
    return attention.backward_workspace(shapes)


def largest_sort(operation: str, shapes: Shapes, width: int = 0) -> Sort:
    """Say what the largest sort of an operation sorts; of 0 keys where nothing is sorted."""
    if operation == "given_backward":
        return Sort(given.count_places(shapes, width), given.PAIR_KEYS)
    if not isinstance(shapes, Problem):
        return Sort(0)
    if operation == "search_backward":
        listed = lists.is_listed(shapes)
        return Sort(given.count_places(shapes, shapes.options.top_k) if listed else 0, given.PAIR_KEYS)
    return Sort(0) if shapes.options.search == "exact" else selection.sorted_together(shapes)


def morton_configuration(coordinate_dtype: str, key_dim: int) -> Configuration:
    """Find for what kernels of codes alone are compiled."""
    return Configuration(coordinate_dtype, "float32", key_dim, 1, 0)


def morton_encode(
    x: DeviceArray,
    codes: DeviceArray,
    *,
    bits: int,
    bounds: tuple[float, float] | None,
    num_curves: int,
    curve: int,
    run: Runner,
) -> None:
    """Encode points `(n, dk)`."""
    args = _code_args(codes, bits)
    args.q, args.num_curves, args.curve = x.address, num_curves, curve
    selection.fill_bounds(bounds, args)
    selection.launch_threads(run, "morton_encode_kernel", args.entries, args)


def morton_decode(codes: DeviceArray, cells: DeviceArray, *, bits: int, run: Runner) -> None:
    """Decode to cells `(n, dims)`."""
    args = _code_args(codes, bits)
    args.out = cells.address
    selection.launch_threads(run, "morton_decode_kernel", args.entries, args)


def _code_args(codes: DeviceArray, bits: int) -> Args:
    args = Args()
    args.codes, args.entries, args.width, args.bits = codes.address, codes.shape[0], item_bytes(codes.dtype), bits
    return args


def causal_topk(
    problem: Problem,
    q: DeviceArray,
    k: DeviceArray,
    cu_seqlens: DeviceArray | None,
    indices: DeviceArray,
    *,
    workspace: int,
    run: Runner,
) -> None:
    """Write the selection of every query."""
    args = _args(problem, "select", workspace, {"q": q, "k": k, "cu_seqlens": cu_seqlens, "indices": indices})
    lists.find(problem, args, run, ascending=True)


def attention_forward(
    problem: Problem,
    q: DeviceArray,
    k: DeviceArray,
    v: DeviceArray,
    gamma: DeviceArray,
    cu_seqlens: DeviceArray | None,
    out: DeviceArray,
    normalizer: DeviceArray,
    residuals: tuple[DeviceArray, ...],
    *,
    workspace: int,
    run: Runner,
) -> None:
    """Attend over the selection."""
    arrays = {"q": q, "k": k, "v": v, "gamma": gamma, "cu_seqlens": cu_seqlens, "out": out, "normalizer": normalizer}
    args = _args(problem, "search_forward", workspace, {**arrays, **_kept(problem, residuals)})
    attention.forward(problem, args, run, tiled=_tiled(problem, v))


def attention_backward(
    problem: Problem,
    grad_out: DeviceArray,
    q: DeviceArray,
    k: DeviceArray,
    v: DeviceArray,
    gamma: DeviceArray,
    cu_seqlens: DeviceArray | None,
    normalizer: DeviceArray,
    residuals: tuple[DeviceArray, ...],
    grad_q: DeviceArray,
    grad_k: DeviceArray,
    grad_v: DeviceArray,
    grad_gamma: DeviceArray,
    *,
    workspace: int,
    run: Runner,
) -> None:
    """Differentiate `attention_forward`."""
    inputs = {"q": q, "k": k, "v": v, "gamma": gamma, "cu_seqlens": cu_seqlens, "grad_out": grad_out}
    written = {"grad_q": grad_q, "grad_k": grad_k, "grad_v": grad_v, "grad_gamma": grad_gamma}
    arrays = {**inputs, "normalizer": normalizer, **written, **_kept(problem, residuals)}
    args = _args(problem, "search_backward", workspace, arrays)
    attention.backward(problem, args, run, tiled=_tiled(problem, v, grad_out))


def cauchy_forward(
    shapes: Shapes,
    q: DeviceArray,
    k: DeviceArray,
    v: DeviceArray,
    indices: DeviceArray,
    gamma: DeviceArray,
    out: DeviceArray,
    normalizer: DeviceArray,
    *,
    workspace: int,
    run: Runner,
) -> None:
    """Attend over given indices."""
    arrays = {"q": q, "k": k, "v": v, "indices": indices, "gamma": gamma, "out": out, "normalizer": normalizer}
    args = _args(shapes, "given_forward", workspace, arrays, indices.shape[-1])
    given.forward(shapes, args, run, tiled=_tiled(shapes, v))


def cauchy_backward(
    shapes: Shapes,
    grad_out: DeviceArray,
    q: DeviceArray,
    k: DeviceArray,
    v: DeviceArray,
    indices: DeviceArray,
    gamma: DeviceArray,
    normalizer: DeviceArray,
    grad_q: DeviceArray,
    grad_k: DeviceArray,
    grad_v: DeviceArray,
    grad_gamma: DeviceArray,
    *,
    workspace: int,
    run: Runner,
) -> None:
    """Differentiate `cauchy_forward`."""
    inputs = {"q": q, "k": k, "v": v, "indices": indices, "gamma": gamma, "grad_out": grad_out}
    written = {"grad_q": grad_q, "grad_k": grad_k, "grad_v": grad_v, "grad_gamma": grad_gamma}
    arrays = {**inputs, "normalizer": normalizer, **written}
    args = _args(shapes, "given_backward", workspace, arrays, indices.shape[-1])
    attention.given_backward(shapes, args, run, tiled=_tiled(shapes, v, grad_out))


def _tiled(shapes: Shapes, *rows: DeviceArray) -> bool:
    """Whether tensor cores serve: they read 16 bytes at once, which have to be aligned.

    Steps from row to row are counted with an int; by kernels that gather rows, over all heads that read one key head.
    """
    return has_tiles(shapes) and all(
        x.address % 16 == 0
        and all(stride % 8 == 0 for stride in x.strides[:-1])
        and abs(x.strides[-2]) < 2**30
        and abs(x.strides[-2]) * x.shape[-2] + abs(x.strides[-3]) * shapes.group_size < 2**34
        for x in rows
    )


def _kept(problem: Problem, residuals: tuple[DeviceArray, ...]) -> dict[str, DeviceArray]:
    """Name the residuals by their pointers in `Args`."""
    return dict(zip(_residuals(problem), residuals, strict=True))


@lru_cache(maxsize=256)
def _plan(operation: str, shapes: Shapes, width: int) -> tuple[Args, tuple[tuple[str, int], ...]]:
    """Prepare what all calls of one shape share: sizes and options, and offsets of the workspace's arrays."""
    args = Args()
    for name in ("batch", "q_heads", "kv_heads", "q_len", "k_len", "value_dim"):
        setattr(args, name, getattr(shapes, name))
    args.group, args.width = shapes.group_size, width
    if isinstance(shapes, Problem):
        selection.fill_sizes(shapes, args)
    return args, tuple(place(workspace_specs(operation, shapes, width)).items())


def _args(
    shapes: Shapes, operation: str, workspace: int, arrays: Mapping[str, DeviceArray | None], width: int = 0
) -> Args:
    """Fill in what every operation has: sizes, strides, and the addresses of arrays and workspace by name."""
    template, offsets = _plan(operation, shapes, width)
    args = Args.from_buffer_copy(template)
    for name, offset in offsets:
        _set_address(args, name, workspace + offset)
    for name, array in arrays.items():
        if array is None:
            continue
        _set_address(args, name, array.address)
        if name in _STRIDES:
            for field, stride in zip(_STRIDES[name], array.strides, strict=False):
                setattr(args, field, stride)
    for sums, gradient in (("sum_k", "grad_k"), ("sum_v", "grad_v")):
        if gradient in arrays and not getattr(args, sums):
            setattr(args, sums, getattr(args, gradient))
    return args


# Fields for the strides of batch, heads and tokens; the last axis is contiguous.
_STRIDES = {
    array: tuple(f"{prefix}_{axis}" for axis in ("batch_stride", "head_stride", "stride"))
    for array, prefix in (("q", "q"), ("k", "k"), ("v", "v"), ("grad_out", "g"))
}


def _set_address(args: Args, name: str, address: int) -> None:
    field, _, curve = name.partition(".")
    if curve:
        getattr(args, field)[int(curve)] = address
    else:
        setattr(args, field, address)
