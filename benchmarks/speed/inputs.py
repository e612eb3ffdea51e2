"""Queries, keys and values of several kinds, drawn on the device."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.speed.plan import KEY_DIM

__all__ = ["KINDS", "draw", "uniform"]

Points = tuple[Tensor, Tensor]


def uniform(heads: int, length: int, width: int, device: str, dtype: torch.dtype = torch.float32) -> Tensor:
    """Draw Gaussian numbers `(1, heads, length, width)`."""
    return torch.randn(1, heads, length, width, device=device, dtype=dtype)


def _random(heads: int, length: int, device: str) -> Points:
    """Gaussian points."""
    return uniform(heads, length, KEY_DIM, device), uniform(heads, length, KEY_DIM, device)


def _drifting(heads: int, length: int, device: str) -> Points:
    """Draw points around one that moves through space with time, as those of real text do."""
    q, k = _random(heads, length, device)
    path = torch.linspace(-20, 20, length, device=device)[:, None]
    return q + path, k + path


def _clustered(heads: int, length: int, device: str) -> Points:
    """Draw points in 64 tight clusters."""
    centres = 3 * torch.randn(64, KEY_DIM, device=device)
    q, k = (0.05 * x + centres[torch.randint(64, x.shape[:-1], device=device)] for x in _random(heads, length, device))
    return q, k


def _looking_ahead(heads: int, length: int, device: str) -> Points:
    """Each query stands where keys will be half as late again: all it sees is far, all that is near comes later."""
    q, k = _random(heads, length, device)
    time = torch.arange(length, device=device)[:, None] / length
    return 0.01 * q + 60 * time, 0.01 * k + 40 * time


def _behind_a_wall(heads: int, length: int, device: str) -> Points:
    """Put the last quarter of the keys at the queries, all others far away on one side."""
    q, k = _random(heads, length, device)
    k[..., : 3 * length // 4, :] -= 30
    return q, k


KINDS: dict[str, Callable[[int, int, str], Points]] = {
    "random": _random,
    "drifting": _drifting,
    "clustered": _clustered,
    "looking ahead": _looking_ahead,
    "behind a wall": _behind_a_wall,
}


def draw(kind: str, heads: int, length: int, dim: int, device: str, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Draw queries and keys of a kind, and values of `dim` columns."""
    return *KINDS[kind](heads, length, device), uniform(heads, length, dim, device, dtype)
