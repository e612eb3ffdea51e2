"""The public functions on PyTorch tensors: differentiable, compilable, mapped by vmap, sharded by DTensor.

Arguments come here with valid shapes, dtypes and options. `ops` defines the private ops, `autograd` their derivatives,
`sharding` calls on DTensors.
"""

from __future__ import annotations

from typing import Any, NoReturn

import numpy.typing as npt
import torch
from torch import Tensor

from zeta_ops.adapters.numpy import recall_of
from zeta_ops.adapters.torch import autograd, direct, ops, sharding
from zeta_ops.adapters.torch.devices import DEVICES
from zeta_ops.adapters.torch.memory import as_array, numpy_dtype, torch_dtype
from zeta_ops.adapters.torch.options import encode
from zeta_ops.arguments import check_cu_seqlens, check_gamma, check_index_range, dtype_name, is_number
from zeta_ops.options import Problem, Shapes
from zeta_ops.registry import pick_backend


def morton_encode(
    x: Tensor, *, bits: int, bounds: tuple[float, float] | None, num_curves: int, curve: int, backend: str | None
) -> Tensor:
    """See `zeta_ops.morton_encode`. Not differentiable, not compiled."""
    _check_devices(backend, x=x)
    chosen, device = pick_backend(backend, x.device.type, "torch"), DEVICES[x.device.type]
    points = x.detach().reshape(-1, x.shape[-1])
    codes = device.morton_encode(chosen, points, bits=bits, bounds=bounds, num_curves=num_curves, curve=curve)
    return codes.reshape(x.shape[:-1])


def morton_decode(codes: Tensor, *, dims: int, bits: int, backend: str | None) -> Tensor:
    """See `zeta_ops.morton_decode`."""
    _check_devices(backend, codes=codes)
    chosen, device = pick_backend(backend, codes.device.type, "torch"), DEVICES[codes.device.type]
    return device.morton_decode(chosen, codes.reshape(-1), dims=dims, bits=bits).reshape(*codes.shape, dims)


def causal_topk(problem: Problem, q: Tensor, k: Tensor, cu_seqlens: Tensor | None, backend: str | None) -> Tensor:
    """See `zeta_ops.causal_topk`."""
    if sharding.is_sharded(q, k, cu_seqlens):
        return sharding.causal_topk(causal_topk, problem, q, k, cu_seqlens, backend)
    _check_devices(backend, q=q, k=k, cu_seqlens=cu_seqlens)
    if cu_seqlens is not None:
        _check_sequences(cu_seqlens, problem)
    options = problem.options
    indices = ops.select(
        *_points(problem, q.detach(), k.detach()), cu_seqlens, encode(options), options.q_offset, backend
    )
    return indices.reshape(*q.shape[:-1], options.top_k)


def selection_recall(
    problem: Problem,
    q: Tensor,
    k: Tensor,
    gamma: float | Tensor,
    cu_seqlens: Tensor | None,
    backend: str | None,
) -> tuple[Tensor, Tensor]:
    """See `zeta_ops.selection_recall`. Measured on the CPU, in float64, from copies of what is on another device."""
    _check_devices(backend, q=q, k=k, gamma=gamma, cu_seqlens=cu_seqlens)

    def select(problem: Problem) -> Any:
        return _on_cpu(causal_topk(problem, q, k, cu_seqlens, backend))

    width = _on_cpu(gamma) if isinstance(gamma, Tensor) else gamma
    found = recall_of(select, problem, _on_cpu(q), _on_cpu(k), width)
    keys, mass = (torch.from_numpy(share).to(q.device) for share in found)
    return keys, mass


def zeta_attention(
    problem: Problem,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gamma: float | Tensor,
    cu_seqlens: Tensor | None,
    backend: str | None,
    return_normalizer: bool,
) -> Any:
    """See `zeta_ops.zeta_attention`.

    Under autocast `v` is cast to the autocast dtype and `q`, `k`, `gamma` are not, since a 16-bit coordinate would move
    the codes. The values of `cu_seqlens` are not checked while a graph is traced.
    """
    plain = direct.is_plain(q, k, v, gamma if isinstance(gamma, Tensor) else None, cu_seqlens)
    if not plain and sharding.is_sharded(q, k, v, gamma, cu_seqlens):
        parts = problem, q, k, v, gamma, cu_seqlens, backend
        found = sharding.zeta_attention(zeta_attention, *parts)
        return found if return_normalizer else found[0]
    if not plain:
        _check_memory(q=q, k=k, v=v, gamma=gamma, cu_seqlens=cu_seqlens)
    chosen = _check_backend(backend, q, v)
    if cu_seqlens is not None:
        _check_sequences(cu_seqlens, problem)
    values = _autocast(v)
    if values is not v and plain:
        problem = direct.with_dtype_of(values, problem)
    out, normalizer = autograd.attend_with_search(
        problem,
        *_points(problem, q, k),
        values if v.ndim == 4 else values.reshape(problem.v_shape),
        _gamma_per_head(gamma, problem, q),
        cu_seqlens,
        backend,
        plain=chosen if plain else None,
        with_normalizer=return_normalizer,
    )
    if q.ndim != 4:  # else canonical already
        out = out.reshape(*q.shape[:-1], v.shape[-1])
    if not return_normalizer:
        return out
    assert normalizer is not None
    return out, normalizer.reshape(q.shape[:-1])


def cauchy_attention(
    shapes: Shapes,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    indices: Tensor,
    gamma: float | Tensor,
    backend: str | None,
) -> Tensor:
    """See `zeta_ops.cauchy_attention`. The values of `indices` are not checked while a graph is traced."""
    plain = direct.is_plain(q, k, v, gamma if isinstance(gamma, Tensor) else None, indices)
    if not plain and sharding.is_sharded(q, k, v, indices, gamma):
        return sharding.cauchy_attention(cauchy_attention, shapes, q, k, v, indices, gamma, backend)
    if not plain:
        _check_memory(q=q, k=k, v=v, gamma=gamma, indices=indices)
    chosen = _check_backend(backend, q, v)
    if indices.numel() > 0 and _values_are_known(indices):
        check_index_range(int(indices.min()), int(indices.max()), shapes.k_len)
    values = _autocast(v)
    if values is not v and plain:
        shapes = direct.with_dtype_of(values, shapes)
    out = autograd.attend_to_given(
        shapes,
        *_points(shapes, q, k),
        values if v.ndim == 4 else values.reshape(shapes.v_shape),
        indices.reshape(*shapes.normalizer_shape, indices.shape[-1]),
        _gamma_per_head(gamma, shapes, q),
        backend,
        plain=chosen if plain else None,
    )
    return out if q.ndim == 4 else out.reshape(*q.shape[:-1], v.shape[-1])


def zeta_attention_vjp(*_: Any) -> NoReturn:
    """Refuse: tensors have automatic differentiation."""
    raise TypeError(
        "q must be a NumPy or CuPy array; got a tensor, which zeta_ops.zeta_attention and backward() differentiate"
    )


def cauchy_attention_vjp(*_: Any) -> NoReturn:
    """Refuse: tensors have automatic differentiation."""
    raise TypeError(
        "q must be a NumPy or CuPy array; got a tensor, which zeta_ops.cauchy_attention and backward() differentiate"
    )


def _points(shapes: Shapes, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """Bring queries and keys into canonical form, in the coordinate dtype."""
    dtype = torch_dtype(shapes.coordinate_dtype)
    if q.ndim != 4:  # else they are canonical already
        q, k = q.reshape(shapes.q_shape), k.reshape(shapes.k_shape)
    return q if q.dtype == dtype else q.to(dtype), k if k.dtype == dtype else k.to(dtype)


def _on_cpu(x: Tensor) -> npt.NDArray[Any]:
    """Copy a tensor to an array of NumPy."""
    on_cpu = x.detach().cpu()  # may be a copy that nobody else holds
    return as_array(on_cpu).copy()


def _gamma_per_head(gamma: float | Tensor, shapes: Shapes, q: Tensor) -> Tensor:
    dtype = torch_dtype(shapes.coordinate_dtype)
    if isinstance(gamma, Tensor):
        if _values_are_known(gamma):
            for extreme in gamma.detach().aminmax():
                check_gamma(float(extreme), shapes.coordinate_dtype)
        if gamma.dtype == dtype and gamma.ndim == 1 and gamma.is_contiguous():
            return gamma
        return gamma.to(dtype).expand(shapes.q_heads).contiguous()
    assert is_number(gamma)
    return torch.full((shapes.q_heads,), float(gamma), dtype=dtype, device=q.device)


def _autocast(v: Tensor) -> Tensor:
    device = v.device.type
    if v.dtype != torch.float64 and torch.is_autocast_enabled(device):
        return v.to(torch.get_autocast_dtype(device))
    return v


def _values_are_known(tensor: Tensor) -> bool:
    """Whether reading values costs no synchronisation and is possible: on a CPU, outside of tracing."""
    if tensor.is_cuda or torch.compiler.is_compiling() or torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        return False
    return tensor.device.type == "cpu" and type(tensor) in (Tensor, torch.nn.Parameter)


def _check_devices(backend: str | None, **tensors: Any) -> None:
    _check_memory(**tensors)
    _check_backend(backend, next(iter(tensors.values())), tensors.get("v"))


def _check_memory(**tensors: Any) -> None:
    """Check that all tensors are dense and plain ones on one device."""
    name, first = next(iter(tensors.items()))
    for x in tensors.values():
        if isinstance(x, Tensor) and (x.device != first.device or x.layout != torch.strided):
            _refuse_memory(tensors)
    if first.device.type == "meta":
        raise ValueError(f"{name} must hold data; got a tensor on the device 'meta'")
    if sharding.is_sharded(*tensors.values()):
        name = next(name for name, x in tensors.items() if sharding.is_sharded(x))
        raise TypeError(f"{name} must be a plain tensor here; got a DTensor: pass its to_local() or full_tensor()")


def _check_backend(backend: str | None, like: Tensor, v: Tensor | None) -> Any:
    """Find the backend for the device of a tensor, and check that it takes the values; None while a graph is traced."""
    device = like.device.type
    # The ops pick the backend too, out of sight of the tracer.
    chosen = None if torch.compiler.is_compiling() else pick_backend(backend, device, "torch")
    if v is not None and device == "cpu":
        numpy_dtype(dtype_name(v))
    return chosen


def _refuse_memory(tensors: dict[str, Any]) -> NoReturn:
    devices = {name: x.device for name, x in tensors.items() if isinstance(x, Tensor)}
    if len(set(devices.values())) > 1:
        found = ", ".join(f"{name}: {device}" for name, device in devices.items())
        raise ValueError(f"all tensors must be on one device; got {found}")
    tensors = {name: tensors[name] for name in devices}
    name, x = next((name, x) for name, x in tensors.items() if x.layout != torch.strided)
    raise TypeError(f"{name} must be a dense tensor; got layout {x.layout}")


def _check_sequences(cu_seqlens: Tensor, problem: Problem) -> None:
    if _values_are_known(cu_seqlens):
        check_cu_seqlens(cu_seqlens.tolist(), problem.k_len)
