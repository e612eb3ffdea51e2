"""Backends: the operations on canonical arrays, one backend a file or folder, named as users name it.

A backend is a module with the functions of `Backend`. It gets arguments that are already valid and never
validates again; it imports no framework. `zeta_ops.registry` lists the backends in order of preference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from zeta_ops.options import Problem, Shapes

if __name__ == "backends":
    raise ImportError("import this package as zeta_ops.backends: a second copy would register everything twice")

__all__ = [
    "ADDRESS_UNIT",
    "INDICES",
    "STRIDED",
    "ArraySpec",
    "Backend",
    "DeviceArray",
    "DeviceBackend",
    "Execution",
    "Launch",
]

Array = Any  # a NumPy or CuPy array: whatever the backend computes on

# So many of the first arguments, `grad_out`, `q`, `k` and `v`, may have strides on a device; the others are contiguous.
STRIDED = {"select": 2, "search_forward": 3, "search_backward": 4, "given_forward": 3, "given_backward": 4}
INDICES = {"given_forward": 3, "given_backward": 4}  # place of given indices
ADDRESS_UNIT = 16  # all that kernels are chosen by in an address is whether it is a multiple of this


@dataclass(frozen=True)
class ArraySpec:
    """Shape and dtype of an array that the caller allocates."""

    shape: tuple[int, ...]
    dtype: str


class DeviceArray(NamedTuple):
    """Memory of a device: what a backend with kernels gets instead of a framework's array.

    Attributes
    ----------
    address : int
        0 where the array is empty.
    strides : tuple of int
        In elements; the last one is 1.
    """

    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str


class Execution(NamedTuple):
    """Where a call runs and the memory that it may use.

    Attributes
    ----------
    device : int
        Number of the device, which is the current one of the calling thread.
    stream : int
        Handle of the stream; all launches go there, and nothing waits for it.
    workspace : int
        Address of as many bytes as `DeviceBackend.workspace_bytes` says, a multiple of 256.
    """

    device: int
    stream: int
    workspace: int


class Backend(Protocol):
    """What a backend module offers.

    Arrays are canonical (see `zeta_ops.options.Problem`). The caller owns all memory: functions that return
    None write each output completely. `cu_seqlens (S + 1,)` int32 is None where nothing is packed.
    """

    def unavailable_reason(self) -> str | None:
        """Say why the backend cannot run here, and what to install; None if it can."""

    def morton_encode(
        self, x: Array, *, bits: int, bounds: tuple[float, float] | None, num_curves: int, curve: int
    ) -> Array:
        """Encode `x (n, dk)` to codes `(n,)`, uint32 if dk * bits <= 32, else uint64."""

    def morton_decode(self, codes: Array, *, dims: int, bits: int) -> Array:
        """Decode `codes (n,)` to integer coordinates `(n, dims)` uint32."""

    def causal_topk(self, problem: Problem, q: Array, k: Array, cu_seqlens: Array | None, indices: Array) -> None:
        """Write the selection into `indices (batch, q_heads, q_len, top_k)` int32, ascending, padded with -1."""

    def residual_specs(self, problem: Problem) -> tuple[ArraySpec, ...]:
        """List the arrays that the forward pass leaves for the backward pass.

        They depend on shapes and options only, and their first two axes are the batch and heads (of queries or of
        keys), so that a caller can fold further axes into either.
        """

    def attention_forward(
        self,
        problem: Problem,
        q: Array,
        k: Array,
        v: Array,
        gamma: Array,
        cu_seqlens: Array | None,
        out: Array,
        normalizer: Array,
        residuals: tuple[Array, ...],
    ) -> None:
        """Write `out` (dtype of `v`) and `normalizer (batch, q_heads, q_len)` (the sum dtype)."""

    def attention_backward(
        self,
        problem: Problem,
        grad_out: Array,
        q: Array,
        k: Array,
        v: Array,
        gamma: Array,
        cu_seqlens: Array | None,
        normalizer: Array,
        residuals: tuple[Array, ...],
        grad_q: Array,
        grad_k: Array,
        grad_v: Array,
        grad_gamma: Array,
    ) -> None:
        """Write the four gradients, each in the dtype of its argument."""

    def cauchy_forward(
        self, shapes: Shapes, q: Array, k: Array, v: Array, indices: Array, gamma: Array, out: Array, normalizer: Array
    ) -> None:
        """Attend over given `indices (batch, q_heads, q_len, K)` int32, -1 for nothing."""

    def cauchy_backward(
        self,
        shapes: Shapes,
        grad_out: Array,
        q: Array,
        k: Array,
        v: Array,
        indices: Array,
        gamma: Array,
        normalizer: Array,
        grad_q: Array,
        grad_k: Array,
        grad_v: Array,
        grad_gamma: Array,
    ) -> None:
        """Write the four gradients of `cauchy_forward`."""


class Launch(Protocol):
    """An operation, prepared for all calls alike. Any thread may launch it, and several at once."""

    def __call__(self, addresses: Sequence[int], stream: int) -> None:
        """Launch it on a stream; nothing waits.

        Parameters
        ----------
        addresses : sequence of int
            Of the arrays, in the order in which it was prepared, and of workspace: as many bytes as
            `DeviceBackend.workspace_bytes` says, at a multiple of 256. Those of empty arrays and of None mean nothing.
        stream : int
            Handle of the stream.
        """


class DeviceBackend(Protocol):
    """What a backend with kernels for a device offers: the operations of `Backend`, of the same meanings.

    Its arrays are `DeviceArray`. `q`, `k` and `gamma`, their gradients, and the points of `morton_encode`, are in the
    coordinate dtype. `q`, `k`, `v` and `grad_out` may have strides; all other arrays are contiguous. Borders out of
    order in `cu_seqlens` and indices out of range spoil results, never memory. The outputs of `morton_encode` and
    `morton_decode` are an argument after their input; where they run is said by `on`. All else runs in two steps: what
    calls alike have in common is prepared once, and launched over the memory of each.
    """

    def unavailable_reason(self) -> str | None:
        """Say why the backend cannot run here, and what to install; None if it can."""

    def workspace_bytes(self, operation: str, shapes: Shapes, width: int = 0) -> int:
        """Say how many bytes of workspace an operation takes.

        Parameters
        ----------
        operation : str
            "select", "search_forward", "search_backward", "given_forward" or "given_backward".
        shapes : Shapes
            A `Problem` for the operations that search.
        width : int
            Indices for each query, where they are given.
        """

    def residual_specs(self, problem: Problem) -> tuple[ArraySpec, ...]:
        """List the arrays that the forward pass leaves for the backward pass, as `Backend` does."""

    def morton_encode(
        self,
        x: DeviceArray,
        codes: DeviceArray,
        *,
        bits: int,
        bounds: tuple[float, float] | None,
        num_curves: int,
        curve: int,
        on: Execution,
    ) -> None:
        """Encode; needs no workspace."""

    def morton_decode(self, codes: DeviceArray, cells: DeviceArray, *, dims: int, bits: int, on: Execution) -> None:
        """Decode; needs no workspace."""

    def prepare(self, operation: str, shapes: Shapes, arrays: Sequence[DeviceArray | None], device: int) -> Launch:
        """Work out what all calls alike launch: those with arrays of these layouts, on this device.

        Parameters
        ----------
        operation, shapes
            As for `workspace_bytes`.
        arrays : sequence of (DeviceArray or None)
            What the operation's function of `Backend` takes, with residuals one by one. Of addresses only the
            remainder by `ADDRESS_UNIT` counts.
        device : int
            Number of the device, which is the current one of the calling thread, here and in every launch.
        """
