"""The kinds of array that the shared tests run on, and the list of what they run: `TARGETS`.

A test makes NumPy arrays and gets NumPy arrays back; `calls.py` converts on the way, by the functions of a kind here.
To run the shared tests on one more backend or kind of array, add a target.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import Array

from zeta_ops import registry
from zeta_ops.registry import BACKENDS, BackendEntry

__all__ = ["KINDS", "NUMPY", "TARGETS", "Kind", "Pullback", "Target"]

Pullback = Callable[[Array], tuple[Array, ...]]


class Kind:
    """NumPy arrays, and what every other kind overrides."""

    name = "numpy"
    most_examples: int | None = None  # of each property; None is what the profile says
    on_gpu = False
    differentiates = False  # by itself; else the functions that end in _vjp are called

    def __str__(self) -> str:
        return self.name

    def missing(self) -> str | None:
        """Say why arrays of this kind cannot be made here."""
        return None if importlib.util.find_spec(self.name) else f"{self.name} is not installed"

    def precision(self, wide: bool) -> AbstractContextManager[Any]:
        """Context in which arrays and results may have 64 bits, if `wide`."""
        return nullcontext()

    def array(self, x: Array) -> Any:
        """Make an array of this kind, in the same layout of memory where it can have that."""
        return x

    def numpy(self, x: Any) -> Array:
        """Make a NumPy array of a result."""
        return x

    def differentiate(self, function: Callable[..., Any], inputs: list[Any]) -> tuple[Any, Callable[[Any], Any]]:
        """Call a function of arrays of this kind; return its output and what pulls a gradient of it back."""
        raise NotImplementedError


class Torch(Kind):
    """Tensors, differentiated by autograd."""

    name = "torch"
    most_examples = 20
    differentiates = True

    def array(self, x: Array) -> Any:
        import torch

        if not (x.flags.writeable and x.flags.aligned and all(step >= 0 for step in x.strides)):
            x = x.copy(order="K")
        if x.dtype.name == "bfloat16":
            return torch.from_numpy(x.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(x)

    def numpy(self, x: Any) -> Array:
        import ml_dtypes
        import torch

        x = x.detach()
        return x.view(torch.int16).numpy().view(ml_dtypes.bfloat16) if x.dtype == torch.bfloat16 else x.numpy()

    def differentiate(self, function: Callable[..., Any], inputs: list[Any]) -> tuple[Any, Callable[[Any], Any]]:
        import torch

        inputs = [x.detach().requires_grad_() for x in inputs]
        out = function(*inputs)
        return out, lambda grad_out: torch.autograd.grad(out, inputs, grad_out, retain_graph=True)


class Jax(Kind):
    """JAX arrays, differentiated by `jax.vjp`; every new shape is compiled, so that fewer are tried."""

    name = "jax"
    most_examples = 6
    differentiates = True

    def precision(self, wide: bool) -> AbstractContextManager[Any]:
        import jax

        return jax.enable_x64(wide)

    def array(self, x: Array) -> Any:
        import jax.numpy as jnp

        return jnp.array(x)

    def numpy(self, x: Any) -> Array:
        return np.array(x)

    def differentiate(self, function: Callable[..., Any], inputs: list[Any]) -> tuple[Any, Callable[[Any], Any]]:
        import jax

        return jax.vjp(function, *inputs)


class Cupy(Kind):
    """CuPy arrays."""

    name = "cupy"
    most_examples = 20
    on_gpu = True

    def missing(self) -> str | None:
        if importlib.util.find_spec("cupy") is None:
            return "cupy is not installed"
        import cupy

        try:
            cupy.cuda.runtime.getDeviceCount()
        except cupy.cuda.runtime.CUDARuntimeError as error:
            return f"cupy sees no CUDA device: {error}"
        return None

    def array(self, x: Array) -> Any:
        import cupy

        return cupy.asarray(x, order="K")

    def numpy(self, x: Any) -> Array:
        import cupy

        return cupy.asnumpy(x)


class CudaTorch(Torch):
    """Tensors on a GPU, with the strides of what they are made of."""

    most_examples = 10
    on_gpu = True
    device = "cuda"

    def missing(self) -> str | None:
        if (reason := super().missing()) is not None:
            return reason
        import torch

        return None if torch.cuda.is_available() else "torch sees no CUDA device"

    def array(self, x: Array) -> Any:
        import torch

        x = super().array(x)
        once = x[tuple(slice(0, 1) if stride == 0 else slice(None) for stride in x.stride())]
        moved = torch.empty_strided(once.shape, once.stride(), dtype=x.dtype, device=self.device)
        return moved.copy_(once).expand(x.shape)

    def numpy(self, x: Any) -> Array:
        return super().numpy(x.cpu())


class CudaJax(Jax):
    """JAX arrays on a GPU."""

    most_examples = 4
    on_gpu = True

    def missing(self) -> str | None:
        if (reason := super().missing()) is not None:
            return reason
        import jax

        try:
            jax.devices("gpu")
        except RuntimeError as error:
            return f"jax sees no GPU: {error}"
        return None

    def array(self, x: Array) -> Any:
        import jax

        return jax.device_put(x, jax.devices("gpu")[0])


class NumbaCuda(Kind):
    """Device arrays of Numba, which has no bfloat16."""

    name = "numba_cuda"
    on_gpu = True

    def missing(self) -> str | None:
        if (reason := super().missing()) is not None:
            return reason
        from numba import cuda

        return None if cuda.is_available() else "numba sees no CUDA device"

    def array(self, x: Array) -> Any:
        from numba import cuda

        if x.dtype.name == "bfloat16":
            pytest.skip("Numba has no bfloat16")
        # Copied: Numba wants strides of axes of length 1 in order too. NumPy's `ascontiguousarray` has no 0-d arrays.
        return cuda.to_device(np.array(x, order="C"))

    def numpy(self, x: Any) -> Array:
        return x.copy_to_host()


@dataclass(frozen=True)
class Target:
    """A backend, and the kind of arrays that it is called with."""

    backend: str
    kind: Kind

    @property
    def one_order(self) -> bool:
        """Whether a sum has one order, whatever stands around its terms, so that what must not matter changes no bit.

        Tiles of neighbours in code order share work, and additions to memory come in any order.
        """
        return self.backend not in ("cupy", "cuda_host", "numba_cuda", "numba_cuda_sim")

    def __str__(self) -> str:
        return self.backend if self.kind.name == "numpy" else f"{self.backend}-{self.kind.name}"


class Simulated(Kind):
    """NumPy arrays for Numba's CUDA kernels, which are Python in the simulator."""

    most_examples = 2


class Host(Kind):
    """NumPy arrays for the CUDA kernels on a CPU: every configuration of them has to be compiled."""

    most_examples = 5


def few(kind: Kind, most_examples: int) -> Kind:
    """Draw fewer examples of a kind, for a backend that compiles long for each new dtype or dimension."""
    kind.most_examples = most_examples
    return kind


NUMPY = Kind()
SIMULATED = os.environ.get("NUMBA_ENABLE_CUDASIM") == "1"  # has to be set before Numba is imported
if all(entry.name != "cuda_host" for entry in registry.BACKENDS):  # only tests know it
    sys.path.append(str(Path(__file__).parent / "backends"))
    host = BackendEntry("cuda_host", "cuda_host", ("cpu",), "CUDA kernels on a CPU, for tests", ("numpy",))
    registry.BACKENDS = (*registry.BACKENDS, host)
    if SIMULATED:
        simulated = BackendEntry("numba_cuda_sim", "numba_cuda_sim", ("cpu",), "Numba's CUDA simulator", ("numpy",))
        registry.BACKENDS = (*registry.BACKENDS, simulated)
TARGETS = (
    *(Target(entry.name, NUMPY) for entry in BACKENDS if "cpu" in entry.platforms),
    Target("cuda_host", Host()),
    Target("numba", Torch()),
    Target("numba", Jax()),
    Target("cupy", Cupy()),
    Target("cupy", CudaTorch()),
    Target("cupy", CudaJax()),
    Target("numba_cuda", few(CudaTorch(), 5)),
    Target("numba_cuda", few(Cupy(), 2)),
    Target("numba_cuda", few(CudaJax(), 2)),
    Target("numba_cuda", few(NumbaCuda(), 3)),
    *((Target("numba_cuda_sim", Simulated()),) if SIMULATED else ()),
)
KINDS = tuple({target.kind.name: target.kind for target in TARGETS if not target.kind.on_gpu}.values())
