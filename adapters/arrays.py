"""The public functions on arrays without automatic differentiation: NumPy's and CuPy's.

Each function gets arguments whose shapes, dtypes and options are valid, brings the arrays into canonical form, with
`q`, `k` and `gamma` in the coordinate dtype, and calls the backend. What differs between kinds of array is in the
subclasses of `ArrayAdapter`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from zeta_ops.arguments import dtype_name
from zeta_ops.options import Problem, Shapes

__all__ = ["ArrayAdapter", "Pullback"]

Array = Any  # of the adapter's kind
Pullback = Callable[[Array], tuple[Array, Array, Array, Array]]


class ArrayAdapter(ABC):
    """The public functions on one kind of array.

    Attributes
    ----------
    module : module
        What makes arrays of this kind.
    kind : str
        Name of the kind for users.
    """

    module: Any
    kind: str

    @abstractmethod
    def pick(self, name: str | None) -> Any:
        """Choose the backend."""

    def is_array(self, x: object) -> bool:
        """Whether `x` is an array of this kind."""
        return isinstance(x, self.module.ndarray)

    @abstractmethod
    def device_of(self, x: Array) -> AbstractContextManager[Any]:
        """Make the device of an array the one where arrays are made and kernels run."""

    @abstractmethod
    def check_devices(self, **arrays: Any) -> None:
        """Check that all arrays, given by name among other arguments, are on one device."""

    @abstractmethod
    def check_values(
        self, shapes: Shapes, *, gamma: Any = 1.0, cu_seqlens: Array | None = None, indices: Array | None = None
    ) -> None:
        """Check what only values can show, where reading them costs no synchronisation."""

    @abstractmethod
    def compute(self, backend: Any, operation: str, shapes: Shapes, arguments: Sequence[Any]) -> list[Array]:
        """Run an operation on canonical arrays and return what it writes (see `operations`)."""

    @abstractmethod
    def morton_encode(
        self,
        x: Array,
        *,
        bits: int,
        bounds: tuple[float, float] | None,
        num_curves: int,
        curve: int,
        backend: str | None,
    ) -> Array:
        """See `zeta_ops.morton_encode`."""

    @abstractmethod
    def morton_decode(self, codes: Array, *, dims: int, bits: int, backend: str | None) -> Array:
        """See `zeta_ops.morton_decode`."""

    @abstractmethod
    def selection_recall(
        self,
        problem: Problem,
        q: Array,
        k: Array,
        gamma: float | Array,
        cu_seqlens: Array | None,
        backend: str | None,
    ) -> tuple[Array, Array]:
        """See `zeta_ops.selection_recall`."""

    def causal_topk(self, problem: Problem, q: Array, k: Array, cu_seqlens: Array | None, backend: str | None) -> Array:
        """See `zeta_ops.causal_topk`."""
        self.check_devices(q=q, k=k, cu_seqlens=cu_seqlens)
        chosen = self.pick(backend)
        self.check_values(problem, cu_seqlens=cu_seqlens)
        with self.device_of(q):
            points = self._points(problem, q, k)
            (indices,) = self.compute(chosen, "select", problem, [*points, cu_seqlens])
        return indices.reshape(*q.shape[:-1], problem.options.top_k)

    def zeta_attention(
        self,
        problem: Problem,
        q: Array,
        k: Array,
        v: Array,
        gamma: float | Array,
        cu_seqlens: Array | None,
        backend: str | None,
        return_normalizer: bool,
    ) -> Any:
        """See `zeta_ops.zeta_attention`."""
        out, normalizer = self._search(problem, q, k, v, gamma, cu_seqlens, backend).forward()
        return (out, normalizer) if return_normalizer else out

    def zeta_attention_vjp(
        self,
        problem: Problem,
        q: Array,
        k: Array,
        v: Array,
        gamma: float | Array,
        cu_seqlens: Array | None,
        backend: str | None,
    ) -> tuple[Array, Pullback]:
        """See `zeta_ops.zeta_attention_vjp`."""
        call = self._search(problem, q, k, v, gamma, cu_seqlens, backend)
        out, _ = call.forward()
        return out, call.pullback

    def cauchy_attention(
        self, shapes: Shapes, q: Array, k: Array, v: Array, indices: Array, gamma: float | Array, backend: str | None
    ) -> Array:
        """See `zeta_ops.cauchy_attention`."""
        return self._given(shapes, q, k, v, indices, gamma, backend).forward()[0]

    def cauchy_attention_vjp(
        self, shapes: Shapes, q: Array, k: Array, v: Array, indices: Array, gamma: float | Array, backend: str | None
    ) -> tuple[Array, Pullback]:
        """See `zeta_ops.cauchy_attention_vjp`."""
        call = self._given(shapes, q, k, v, indices, gamma, backend)
        out, _ = call.forward()
        return out, call.pullback

    def _search(
        self,
        problem: Problem,
        q: Array,
        k: Array,
        v: Array,
        gamma: float | Array,
        cu_seqlens: Array | None,
        backend: str | None,
    ) -> _Call:
        self.check_devices(q=q, k=k, v=v, gamma=gamma, cu_seqlens=cu_seqlens)
        chosen = self.pick(backend)
        self.check_values(problem, gamma=gamma, cu_seqlens=cu_seqlens)
        with self.device_of(q):
            canonical = [*self._points(problem, q, k), v.reshape(problem.v_shape), self._per_head(gamma, problem)]
        return _Call(self, chosen, "search", problem, (q, k, v, gamma), [*canonical, cu_seqlens])

    def _given(
        self, shapes: Shapes, q: Array, k: Array, v: Array, indices: Array, gamma: float | Array, backend: str | None
    ) -> _Call:
        self.check_devices(q=q, k=k, v=v, indices=indices, gamma=gamma)
        chosen = self.pick(backend)
        self.check_values(shapes, gamma=gamma, indices=indices)
        with self.device_of(q):
            given = indices.reshape(*shapes.normalizer_shape, indices.shape[-1])
            canonical = [*self._points(shapes, q, k), v.reshape(shapes.v_shape), given, self._per_head(gamma, shapes)]
        return _Call(self, chosen, "given", shapes, (q, k, v, gamma), canonical)

    def _points(self, shapes: Shapes, q: Array, k: Array) -> list[Array]:
        dtype = shapes.coordinate_dtype
        return [
            q.reshape(shapes.q_shape).astype(dtype, copy=False),
            k.reshape(shapes.k_shape).astype(dtype, copy=False),
        ]

    def _per_head(self, gamma: float | Array, shapes: Shapes) -> Array:
        """Bring gamma to `(q_heads,)` in the coordinate dtype."""
        per_head = self.module.empty(shapes.q_heads, shapes.coordinate_dtype)
        per_head[...] = gamma
        return per_head


class _Call:
    """A call of attention: what it was given, and what its forward pass leaves for the backward pass.

    Parameters
    ----------
    name : str
        "search" or "given".
    inputs : tuple
        `q`, `k`, `v` and `gamma` as the user gave them.
    arguments : list of arrays
        The canonical arguments of the forward pass.
    """

    def __init__(
        self,
        adapter: ArrayAdapter,
        backend: Any,
        name: str,
        shapes: Shapes,
        inputs: tuple[Array, Array, Array, Any],
        arguments: list[Any],
    ) -> None:
        self.adapter, self.backend, self.name, self.shapes = adapter, backend, name, shapes
        self.inputs, self.arguments = inputs, arguments
        self.kept: list[Array] = []

    def forward(self) -> tuple[Array, Array]:
        q, _, v, _ = self.inputs
        with self.adapter.device_of(q):
            out, *self.kept = self.adapter.compute(self.backend, f"{self.name}_forward", self.shapes, self.arguments)
        return out.reshape(*q.shape[:-1], v.shape[-1]), self.kept[0].reshape(q.shape[:-1])

    def pullback(self, grad_out: Array) -> tuple[Array, Array, Array, Array]:
        q, k, v, gamma = self.inputs
        self._check(grad_out)
        with self.adapter.device_of(q):
            arguments = [grad_out.reshape(self.shapes.out_shape), *self.arguments, *self.kept]
            *gradients, per_head = self.adapter.compute(self.backend, f"{self.name}_backward", self.shapes, arguments)
            grad_q, grad_k, grad_v = (
                gradient.reshape(x.shape).astype(x.dtype, copy=False)
                for gradient, x in zip(gradients, (q, k, v), strict=True)
            )
            grad_gamma = per_head if getattr(gamma, "shape", ()) else per_head.sum()
            dtype = gamma.dtype if self.adapter.is_array(gamma) else per_head.dtype
            return grad_q, grad_k, grad_v, self.adapter.module.asarray(grad_gamma, dtype)

    def _check(self, grad_out: Any) -> None:
        q, _, v, _ = self.inputs
        is_array = self.adapter.is_array(grad_out)
        if not is_array or grad_out.dtype != v.dtype:
            got = dtype_name(grad_out) if is_array else type(grad_out).__name__
            raise TypeError(f"grad_out must be a {self.adapter.kind} array of {v.dtype}, as the output; got {got}")
        shape = (*q.shape[:-1], v.shape[-1])
        if tuple(grad_out.shape) != shape:
            raise ValueError(f"grad_out must have the output's shape {shape}; got {tuple(grad_out.shape)}")
        self.adapter.check_devices(q=q, grad_out=grad_out)
