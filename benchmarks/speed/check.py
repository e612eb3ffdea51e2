"""The results that are timed are right: selections exactly, values and gradients by the tolerance policy.

The largest error against the definition in float64, with the same selection, is at most twice that of the plain
expression in the framework and the dtypes of the call.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

import zeta_ops
from benchmarks.speed.inputs import draw, uniform
from benchmarks.speed.plan import DIM, GAMMA, VARIANTS, Plan

__all__ = ["check", "plain_attention"]

LENGTH, HEADS = 1024, 2
NAMES = ("out", "gradient of q", "gradient of k", "gradient of v", "gradient of gamma")


def plain_attention(
    q: Tensor, k: Tensor, v: Tensor, gamma: Tensor, indices: Tensor, *, local_window: int, history_mean: bool
) -> Tensor:
    """Attend over given indices as one would write it in PyTorch, with sums of values in their own dtype."""
    length = q.shape[-2]
    position = torch.arange(length, device=q.device)[:, None]
    if local_window:
        near = position - torch.arange(local_window, device=q.device)
        indices = torch.cat([indices, near.clamp(min=-1).expand(*indices.shape[:-1], -1)], -1)
    place = indices.clamp(min=0).long()
    batch, head = (torch.arange(n, device=q.device) for n in q.shape[:2])
    rows = batch[:, None, None, None], head[:, None, None], place
    u = 1 / ((q.unsqueeze(-2) - k[rows]).square().sum(-1) + gamma[:, None, None] ** 2)
    u, values = torch.where(indices >= 0, u, 0), v[rows]
    if history_mean:
        mean_key, mean_value = k.cumsum(-2) / (position + 1), v.float().cumsum(-2) / (position + 1)
        u_mean = 1 / ((q - mean_key).square().sum(-1, keepdim=True) + gamma[:, None, None] ** 2)
        u = torch.cat([u, u_mean], -1)
        values = torch.cat([values, mean_value.to(v.dtype).unsqueeze(-2)], -2)
    weights = (u / u.sum(-1, keepdim=True)).to(v.dtype)
    return (weights.unsqueeze(-2) @ values).squeeze(-2)


def _numpy(x: Tensor) -> np.ndarray[Any, Any]:
    return (x.double() if x.is_floating_point() else x).detach().cpu().numpy()


def _errors(found: tuple[Tensor, ...], exact: tuple[Any, ...]) -> list[float]:
    return [float(np.abs(_numpy(x) - y).max()) for x, y in zip(found, exact, strict=True)]


def _unavoidable(exact: tuple[Any, ...], v: Any, grad_out: Any) -> list[float]:
    """Allow a few roundings of float32: of results, and of products that cancel in the gradients of the weights."""
    epsilon = 8 * float(np.finfo(np.float32).eps)
    products = float((np.abs(grad_out) @ np.abs(v).swapaxes(-1, -2)).max()) / GAMMA
    cancelled = [0.0, products, products, 0.0, products]
    return [epsilon * (max(1.0, float(np.abs(x).max())) + c) for x, c in zip(exact, cancelled, strict=True)]


def _check_one(kind: str, variant: str, plan: Plan, device: str) -> dict[str, Any]:
    options = VARIANTS[variant]
    dtype = getattr(torch, plan.value_dtype)
    q, k, v = draw(kind, HEADS, LENGTH, DIM, device, dtype)
    gamma = torch.full((HEADS,), GAMMA, device=device)
    grad_out = uniform(HEADS, LENGTH, DIM, device, dtype)
    arguments = [x.requires_grad_() for x in (q, k, v, gamma)]
    selecting = {name: value for name, value in options.items() if name != "history_mean"}
    indices = zeta_ops.causal_topk(q.detach(), k.detach(), backend=plan.backend, **selecting)
    arrays = [x.detach().cpu().numpy() for x in (q, k, gamma)]
    if not np.array_equal(_numpy(indices), zeta_ops.causal_topk(*arrays[:2], backend="numpy", **selecting)):
        raise SystemExit(f"{kind} keys, {variant}: the selection is not that of the definition")
    out = zeta_ops.zeta_attention(q, k, v, gamma, backend=plan.backend, **options)
    mine = (out, *torch.autograd.grad(out, arguments, grad_out))
    flags = {name: options.get(name, 0) for name in ("local_window", "history_mean")}
    out = plain_attention(q, k, v, gamma, indices, **flags)
    plain = (out, *torch.autograd.grad(out, arguments, grad_out))
    wide = arrays[0], arrays[1], _numpy(v), arrays[2]  # the same selection, sums in float64
    exact_out, pullback = zeta_ops.zeta_attention_vjp(*wide, backend="numpy", **options)
    exact = (exact_out, *pullback(_numpy(grad_out)))
    floors = _unavoidable(exact, _numpy(v), _numpy(grad_out))
    found = {}
    for name, error, of_plain, floor in zip(NAMES, _errors(mine, exact), _errors(plain, exact), floors, strict=True):
        found[name] = {"error": error, "allowed": 2 * of_plain + floor}
        if not error <= 2 * of_plain + floor:
            raise SystemExit(
                f"{kind} keys, {variant}: {name} is off by {error:.2e}, allowed {2 * of_plain + floor:.2e}"
            )
    return found


def check(plan: Plan, device: str) -> dict[str, Any]:
    """Check every kind of keys and every variant of a plan at a small length; the run ends if one is wrong."""
    return {f"{kind} keys, {variant}": _check_one(kind, variant, plan, device) for kind, variant in plan.ours}
