"""What is timed: ZETA attention and its peers, each as a forward call and as one with backward."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from torch.nn.functional import scaled_dot_product_attention

import zeta_ops
from benchmarks.speed.inputs import draw, uniform
from benchmarks.speed.plan import (
    CPU_DENSE,
    CUDNN,
    DIM,
    FLASH,
    FLEX,
    GAMMA,
    NUMBA_CUDA,
    PLAIN,
    VARIANTS,
    ZETA,
    Group,
    Plan,
)

__all__ = ["Contender", "contenders_of", "sliding_window"]

BLOCK, LOCAL = 128, 256  # of FlexAttention: the side of a block of its mask, and how many keys a query sees


@dataclass
class Contender:
    """One kind of attention on one kind of input.

    Attributes
    ----------
    inputs : list of (tuple of Tensor, Tensor)
        Arguments, which need gradients, and the gradient of the output. Calls take them in turn, so that none finds
        its arguments in the cache.
    """

    name: str
    kind: str
    variant: str | None
    attend: Callable[..., Tensor]
    inputs: list[tuple[tuple[Tensor, ...], Tensor]]
    rounds: int

    def run(self, direction: str, turn: int) -> None:
        """Call once; nothing waits for a device."""
        arguments, grad_out = self.inputs[turn % len(self.inputs)]
        if direction == "forward":
            with torch.no_grad():
                self.attend(*arguments)
        else:
            torch.autograd.grad(self.attend(*arguments), arguments, grad_out)


def sliding_window(length: int, device: str) -> BlockMask:
    """Mask of FlexAttention by which a query sees itself and the `LOCAL - 1` keys before it.

    Made of blocks: for a query block i the blocks i - 2 and i are seen in part, the one between them fully. What
    `create_block_mask` does instead takes memory for all pairs.
    """

    def mask(_batch: Any, _head: Any, q: Tensor, k: Tensor) -> Tensor:
        return (q >= k) & (q - k < LOCAL)

    assert length % BLOCK == 0 and LOCAL == 2 * BLOCK
    blocks = length // BLOCK
    number = torch.arange(blocks, device=device, dtype=torch.int32)
    partial, full = (torch.zeros(1, 1, blocks, blocks, device=device, dtype=torch.int32) for _ in range(2))
    partial[..., 0] = (number - 2).clamp(min=0)
    partial[0, 0, :2, 0] = number[:2]
    if blocks > 1:
        partial[..., 1] = number
        full[..., 0] = (number - 1).clamp(min=0)
    counts = torch.where(number >= 2, 2, 1).to(torch.int32)[None, None]
    full_counts = (number >= 1).to(torch.int32)[None, None]
    return BlockMask.from_kv_blocks(
        counts, partial, full_counts, full, BLOCK_SIZE=BLOCK, mask_mod=mask, seq_lengths=(length, length)
    )


def _dense(backend: SDPBackend) -> Callable[..., Tensor]:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            return scaled_dot_product_attention(q, k, v, is_causal=True)

    return attend


def _flex(length: int, device: str) -> Callable[..., Tensor]:
    mask = sliding_window(length, device)
    torch.compiler.reset()  # every length is compiled for itself
    compiled = torch.compile(flex_attention, dynamic=False)
    return lambda q, k, v: compiled(q, k, v, block_mask=mask)


def _on_any_backend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return scaled_dot_product_attention(q, k, v, is_causal=True)


def _peer(name: str, length: int, device: str) -> Callable[..., Tensor]:
    if name == FLEX:
        return _flex(length, device)
    if name == CPU_DENSE:
        return _on_any_backend
    return _dense({FLASH: SDPBackend.FLASH_ATTENTION, CUDNN: SDPBackend.CUDNN_ATTENTION}[name])


def _zeta(variant: str, backend: str) -> Callable[..., Tensor]:
    options = VARIANTS[variant]
    return lambda q, k, v, gamma: zeta_ops.zeta_attention(q, k, v, gamma, backend=backend, **options)


def contenders_of(group: Group, plan: Plan, device: str) -> list[Contender]:
    """Make all that take turns at one length, with their inputs; those of one kind of keys share them."""
    dtype = getattr(torch, plan.value_dtype)
    cache = torch.cuda.get_device_properties(device).L2_cache_size if device == "cuda" else 0
    made: dict[str, Any] = {}

    def rotated(key: str, draw_once: Callable[[], tuple[Tensor, ...]]) -> Any:
        if key not in made:
            made[key] = []
            held = 0
            while not made[key] or held < 2 * cache:
                arguments = tuple(x.requires_grad_() for x in draw_once())
                grad_out = uniform(group.heads, group.length, DIM, device, dtype)
                made[key].append((arguments, grad_out))
                held += sum(x.numel() * x.element_size() for x in (*arguments, grad_out))
        return made[key]

    def ours(kind: str) -> tuple[Tensor, ...]:
        gamma = torch.full((group.heads,), GAMMA, device=device)
        return *draw(kind, group.heads, group.length, DIM, device, dtype), gamma

    def theirs() -> tuple[Tensor, ...]:
        return tuple(uniform(group.heads, group.length, DIM, device, dtype) for _ in range(3))

    found = [
        Contender(
            ZETA, kind, variant, _zeta(variant, plan.backend), rotated(kind, lambda kind=kind: ours(kind)), plan.rounds
        )
        for kind, variant in group.ours
    ]
    for name in group.peers:
        if name == NUMBA_CUDA:
            attend, inputs = _zeta(PLAIN, "numba_cuda"), rotated("random", lambda: ours("random"))
            found.append(Contender(name, "random", None, attend, inputs, plan.rounds))
            continue
        attend = _peer(name, group.length, device)
        rounds = plan.rounds if name == FLEX else plan.dense_rounds
        found.append(Contender(name, "random", None, attend, rotated("dense", theirs), rounds))
    return found
