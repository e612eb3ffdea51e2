"""Attention on DTensors: every rank attends to its own items of the batch and its own heads.

A call on DTensors is the same call on each rank's parts, which need nothing of each other's: q, k and v stay where they
are as long as they are split alike, along a batch axis or the heads. What is split otherwise, such as the sequence, is
redistributed first, which costs communication. Only gamma's gradient is a sum over ranks.

DTensor's rules for single ops (`register_sharding`) do not serve here: they have no form for a result that is a list of
tensors, as the forward op's residuals are, and one computed for some options would be taken for others.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from zeta_ops.options import Problem, Shapes

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor, Placement

__all__ = ["cauchy_attention", "causal_topk", "is_sharded", "zeta_attention"]

SomeShapes = TypeVar("SomeShapes", bound=Shapes)


def is_sharded(*values: Any) -> bool:
    """Whether one of the values is a DTensor, which can only exist where somebody has imported its module."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and any(isinstance(value, module.DTensor) for value in values)


@dataclass(frozen=True)
class Split:
    """How a call is split over a mesh.

    Attributes
    ----------
    axes : tuple of (int or None)
        For each dimension of the mesh the axis of `q`, `k` and `v` that it splits: an axis of the batch, that of the
        heads, or None where all its ranks compute the same.
    heads_axis : int
        The axis of the heads.
    """

    mesh: DeviceMesh
    axes: tuple[int | None, ...]
    heads_axis: int

    @property
    def placements(self) -> tuple[Placement, ...]:
        """Where the parts of `q`, `k`, `v` and all results lie."""
        from torch.distributed.tensor import Replicate, Shard

        return tuple(Replicate() if axis is None else Shard(axis) for axis in self.axes)

    def part(self, x: DTensor) -> Tensor:
        """Take this rank's part of an array `(..., heads, length, n)`."""
        return x.redistribute(self.mesh, self.placements).to_local(grad_placements=self.placements)

    def gamma_part(self, gamma: Any) -> Any:
        """Take the gamma of this rank's heads; its gradient is a sum over the ranks that share it."""
        from torch.distributed.tensor import Partial, Replicate, Shard

        if not isinstance(gamma, Tensor):
            return gamma
        by_head = [gamma.ndim == 1 and axis == self.heads_axis for axis in self.axes]
        placements = [Shard(0) if split else Replicate() for split in by_head]
        gradients = [
            Shard(0) if split else Replicate() if axis is None else Partial()
            for split, axis in zip(by_head, self.axes, strict=True)
        ]
        part: DTensor = gamma.redistribute(self.mesh, placements)  # type: ignore[attr-defined]
        return part.to_local(grad_placements=gradients)

    def whole(self, x: Any) -> Any:
        """Take all of an array that no rank can do without."""
        from torch.distributed.tensor import Replicate

        return None if x is None else x.redistribute(self.mesh, [Replicate()] * self.mesh.ndim).to_local()

    def join(self, part: Tensor, shape: Sequence[int]) -> DTensor:
        """Make the DTensor of all ranks' parts of a result, which are contiguous."""
        from torch.distributed.tensor import DTensor

        strides = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
        return DTensor.from_local(part, self.mesh, self.placements, shape=torch.Size(shape), stride=strides)


def zeta_attention(
    attend: Callable[..., tuple[Tensor, Tensor]],
    problem: Problem,
    q: Any,
    k: Any,
    v: Any,
    gamma: Any,
    cu_seqlens: Any,
    backend: str | None,
) -> tuple[Tensor, Tensor]:
    """Call `attend`, the function on plain tensors, on this rank's parts."""
    split = _split_of(problem, q=q, k=k, v=v, gamma=gamma, cu_seqlens=cu_seqlens)
    parts = split.part(q), split.part(k), split.part(v)
    rest = split.gamma_part(gamma), split.whole(cu_seqlens)
    out, normalizer = attend(_of_part(problem, *parts[:2]), *parts, *rest, backend, True)
    return split.join(out, (*q.shape[:-1], v.shape[-1])), split.join(normalizer, q.shape[:-1])


def cauchy_attention(
    attend: Callable[..., Tensor],
    shapes: Shapes,
    q: Any,
    k: Any,
    v: Any,
    indices: Any,
    gamma: Any,
    backend: str | None,
) -> Tensor:
    """Call `attend`, the function on plain tensors, on this rank's parts."""
    if indices.ndim != q.ndim:
        raise ValueError(f"indices must have the {q.ndim} dimensions of q if both are DTensors; got {indices.ndim}")
    split = _split_of(shapes, q=q, k=k, v=v, indices=indices, gamma=gamma)
    parts = split.part(q), split.part(k), split.part(v)
    out = attend(_of_part(shapes, *parts[:2]), *parts, split.part(indices), split.gamma_part(gamma), backend)
    return split.join(out, (*q.shape[:-1], v.shape[-1]))


def causal_topk(
    select: Callable[..., Tensor], problem: Problem, q: Any, k: Any, cu_seqlens: Any, backend: str | None
) -> Tensor:
    """Call `select`, the function on plain tensors, on this rank's parts."""
    split = _split_of(problem, q=q, k=k, cu_seqlens=cu_seqlens)
    parts = split.part(q.detach()), split.part(k.detach())
    indices = select(_of_part(problem, *parts), *parts, split.whole(cu_seqlens), backend)
    return split.join(indices, (*q.shape[:-1], problem.options.top_k))


def _of_part(shapes: SomeShapes, q: Tensor, k: Tensor) -> SomeShapes:
    return replace(shapes, batch=math.prod(q.shape[:-3]), q_heads=q.shape[-3], kv_heads=k.shape[-3])


def _split_of(shapes: Shapes, *, gamma: Any = 1.0, cu_seqlens: Any = None, **arrays: Any) -> Split:
    """Choose how to split a call: as one of q, k and v already is, if that is by batch or by heads.

    A dimension of the mesh that splits another axis is given the heads or else the batch, if that divides evenly.
    """
    _check_kinds(gamma=gamma, cu_seqlens=cu_seqlens, **arrays)
    mesh = arrays["q"].device_mesh
    batch = tuple(arrays["q"].shape[:-3])
    heads_axis, kv_heads = len(batch), shapes.kv_heads
    axes: list[int | None] = []
    for dimension in range(mesh.ndim):
        ranks = mesh.size(dimension)
        placements = [x.placements[dimension] for name, x in arrays.items() if name != "indices"]
        split_now = [placement.dim for placement in placements if placement.is_shard()]
        possible = [axis for axis, size in enumerate(batch) if size > 1 and (axis in split_now or size % ranks == 0)]
        if kv_heads % ranks == 0:
            possible.insert(0, heads_axis)
        kept = [axis for axis in split_now if axis in possible]
        axis = (kept or possible)[0] if split_now and possible else None
        if axis == heads_axis:
            kv_heads //= ranks
        axes.append(axis)
    return Split(mesh, tuple(axes), heads_axis)


def _check_kinds(**values: Any) -> None:
    """All tensors are DTensors on one mesh: whether a plain one stands for a part or for the whole cannot be known."""
    tensors: dict[str, Any] = {name: value for name, value in values.items() if isinstance(value, Tensor)}
    plain = [name for name, value in tensors.items() if not is_sharded(value)]
    if plain:
        raise TypeError(f"{plain[0]} must be a DTensor, as other arguments are; got {type(tensors[plain[0]]).__name__}")
    mesh = tensors["q"].device_mesh
    for name, value in tensors.items():
        if value.device_mesh != mesh:
            raise ValueError(f"{name} must be on the mesh of q, {mesh}; got {value.device_mesh}")
