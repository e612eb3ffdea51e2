"""Problems of real size on a device, what a call makes of them, and the same computed by the `numba` backend."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from cases import Array, points
from torch import Tensor

import zeta_ops

__all__ = [
    "NAMES",
    "OPTIONS",
    "OPTION_IDS",
    "Problem",
    "draw",
    "on_cpu",
    "reference",
    "reference_selection",
    "results",
    "selection",
]

NAMES = ("out", "gradient of q", "gradient of k", "gradient of v", "gradient of gamma")
OPTIONS: list[dict[str, Any]] = [
    {"top_k": 32},
    {"top_k": 64, "history_mean": True},
    {"top_k": 32, "window": 64, "num_curves": 3},
    {"top_k": 16, "num_curves": 2, "local_window": 32, "history_mean": True},
    {"top_k": 32, "chunk_size": 512, "include_self": False},
    {"top_k": 32, "causal": False},
    {"top_k": 32, "bounds": (-3.0, 3.0), "bits": 16},
]
OPTION_IDS = [", ".join(f"{name}={value}" for name, value in options.items()) for options in OPTIONS]


@dataclass(frozen=True)
class Problem:
    """Arguments of a call and a gradient of its output."""

    q: Tensor
    k: Tensor
    v: Tensor
    gamma: Tensor
    grad_out: Tensor
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def arguments(self) -> tuple[Tensor, ...]:
        return self.q, self.k, self.v, self.gamma


def draw(
    device: str,
    length: int,
    *,
    heads: int = 4,
    kv_heads: int | None = None,
    key_dim: int = 3,
    dim: int = 64,
    dtype: torch.dtype = torch.bfloat16,
    kind: str = "random",
    seed: int = 0,
    **options: Any,
) -> Problem:
    """Draw a problem of a batch of one; the same for the same seed, on every device."""
    rng = np.random.default_rng(seed)
    kv_heads = kv_heads or heads
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    q, k = (points(kind, (1, h, length, key_dim), rng) for h in (heads, kv_heads))
    v, grad_out = (rng.standard_normal((1, h, length, dim), dtype=np.float32) for h in (kv_heads, heads))
    tensors = [torch.from_numpy(x).to(device) for x in (q, k, v, grad_out)]
    gamma = torch.linspace(0.3, 0.7, heads, dtype=wide, device=device)
    return Problem(tensors[0].to(wide), tensors[1].to(wide), tensors[2].to(dtype), gamma, tensors[3].to(dtype), options)


def results(problem: Problem, **more: Any) -> dict[str, Tensor]:
    """Output and gradients; nothing waits for the device."""
    leaves = tuple(x.detach().requires_grad_() for x in problem.arguments)
    out = zeta_ops.zeta_attention(*leaves, **problem.options, **more)
    return dict(zip(NAMES, (out.detach(), *torch.autograd.grad(out, leaves, problem.grad_out)), strict=True))


def selection(problem: Problem) -> Tensor:
    """The selected positions."""
    options = {name: value for name, value in problem.options.items() if name != "history_mean"}
    return zeta_ops.causal_topk(problem.q, problem.k, **options)


def on_cpu(x: Tensor) -> Array:
    """A float64 array, or an array of integers, of a tensor."""
    return (x.detach().double() if x.is_floating_point() else x).cpu().numpy()


def _arrays(problem: Problem) -> tuple[Array, ...]:
    """Arguments as NumPy arrays: points as they are, so that the selection stays, values in float64."""
    q, k, gamma = (x.detach().cpu().numpy() for x in (problem.q, problem.k, problem.gamma))
    return q, k, on_cpu(problem.v), gamma


def reference(problem: Problem) -> dict[str, Array]:
    """Output and gradients by the `numba` backend with sums in float64."""
    out, pullback = zeta_ops.zeta_attention_vjp(*_arrays(problem), backend="numba", **_given(problem.options))
    return dict(zip(NAMES, (out, *pullback(on_cpu(problem.grad_out))), strict=True))


def reference_selection(problem: Problem) -> Array:
    """The positions that the `numba` backend selects."""
    options = {name: value for name, value in problem.options.items() if name != "history_mean"}
    return zeta_ops.causal_topk(*_arrays(problem)[:2], backend="numba", **_given(options))


def _given(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value.cpu().numpy() if isinstance(value, Tensor) else value for name, value in options.items()}
