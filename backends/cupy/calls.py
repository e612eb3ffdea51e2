"""The operations of a device backend, on whatever executes kernels: addresses go into `Args`, steps are launched."""

from __future__ import annotations

from typing import Any

from zeta_ops.backends import ArraySpec, DeviceArray
from zeta_ops.backends.cupy import attention, selection
from zeta_ops.backends.cupy.args import Args
from zeta_ops.backends.cupy.memory import place
from zeta_ops.backends.cupy.selection import Runner
from zeta_ops.options import Problem, Shapes

__all__ = [
    "attention_backward",
    "attention_forward",
    "causal_topk",
    "residual_specs",
    "workspace_specs",
]


def residual_specs(problem: Problem) -> tuple[ArraySpec, ...]:
    """List what the forward pass leaves: indices of an exact search, else where the windows lie."""
    if problem.options.search == "exact":
        return (ArraySpec((*problem.normalizer_shape, problem.options.top_k), "int32"),)
    return tuple(selection.selection_specs(problem).values())


def workspace_specs(operation: str, shapes: Shapes, width: int = 0) -> dict[str, ArraySpec]:
    """List the arrays of an operation's workspace."""
    assert isinstance(shapes, Problem)
    if operation == "select":
        if shapes.options.search == "exact":
            return selection.sequences(shapes)
        return {**selection.workspace(shapes), **selection.selection_specs(shapes)}
    return attention.forward_workspace(shapes) if operation == "search_forward" else attention.backward_workspace(shapes)


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
    args = _args(problem, "select", workspace, q=q, k=k, cu_seqlens=cu_seqlens, indices=indices)
    selection.fill_sizes(problem, args)
    selection.find_sequences(args, run)
    if problem.options.search == "exact":
        selection.select_exactly(problem, args, run)
        return
    selection.select(problem, args, run)
    selection.list_selected(problem, args, run)


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
    args = _args(problem, "search_forward", workspace, **arrays, **_kept(problem, residuals))
    selection.fill_sizes(problem, args)
    attention.forward(problem, args, run)


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
    args = _args(problem, "search_backward", workspace, **arrays)
    selection.fill_sizes(problem, args)
    attention.backward(problem, args, run)


def _kept(problem: Problem, residuals: tuple[DeviceArray, ...]) -> dict[str, DeviceArray]:
    """Name the residuals by their pointers in `Args`."""
    if problem.options.search == "exact":
        return {"indices": residuals[0]}
    return dict(zip(selection.selection_specs(problem), residuals, strict=True))


def _args(
    shapes: Shapes, operation: str, workspace: int, width: int = 0, **arrays: DeviceArray | None
) -> Args:
    """Fill in what every operation has: sizes, strides, and the addresses of arrays and workspace by name."""
    args = Args()
    for name in ("batch", "q_heads", "kv_heads", "q_len", "k_len", "value_dim"):
        setattr(args, name, getattr(shapes, name))
    args.width = width
    for name, prefix in (("q", "q"), ("k", "k"), ("v", "v"), ("grad_out", "g")):
        array = arrays.get(name)
        if array is not None:
            batch, head, token, _ = array.strides
            for axis, stride in (("batch_stride", batch), ("head_stride", head), ("stride", token)):
                setattr(args, f"{prefix}_{axis}", stride)
    addresses = {name: array.address for name, array in arrays.items() if array is not None}
    addresses |= place(workspace_specs(operation, shapes, width), workspace)
    for sums, gradient in (("sum_k", "grad_k"), ("sum_v", "grad_v")):
        if gradient in addresses:
            addresses.setdefault(sums, addresses[gradient])
    for name, address in addresses.items():
        _set_address(args, name, address)
    return args


def _set_address(args: Any, name: str, address: int) -> None:
    field, _, curve = name.partition(".")
    if curve:
        getattr(args, field)[int(curve)] = address
    else:
        setattr(args, field, address)
