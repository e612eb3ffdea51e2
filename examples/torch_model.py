"""The small causal language model in PyTorch."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from examples.model_options import ModelOptions
from zeta_ops.adapters.layers import LayerOptions
from zeta_ops.adapters.torch.layers import CausalConvolution, ZetaAttention

__all__ = ["CausalLM", "StandardAttention"]


class CausalLM(nn.Module):
    """A language model: tokens `(batch, length)` to logits `(batch, length, vocab_size)`."""

    def __init__(self, options: ModelOptions) -> None:
        super().__init__()
        dim = options.layer.dim
        self.embedding = nn.Embedding(options.vocab_size, dim)
        self.blocks = nn.ModuleList(_Block(options) for _ in range(options.num_layers))
        self.norm = nn.RMSNorm(dim, eps=1e-6)
        nn.init.normal_(self.embedding.weight, std=dim**-0.5)

    def forward(self, tokens: Tensor) -> Tensor:
        """Give the logits of each next token."""
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        return functional.linear(self.norm(x), self.embedding.weight)


class StandardAttention(nn.Module):
    """Softmax attention over all earlier tokens, behind the same short convolution as ZETA attention."""

    def __init__(self, options: LayerOptions) -> None:
        super().__init__()
        dim, self.num_heads = options.dim, options.num_heads
        self.conv = CausalConvolution(dim, options.conv_size) if options.conv_size else None
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(dim, dim, bias=False) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """Map `x (batch, length, dim)` to the same shape."""
        mixed = x if self.conv is None else x + self.conv(x)
        q, k, v = (
            y.unflatten(2, (self.num_heads, -1)).transpose(1, 2)
            for y in (self.q_proj(mixed), self.k_proj(mixed), self.v_proj(x))
        )
        out = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(out.transpose(1, 2).flatten(2))


class _Block(nn.Module):
    def __init__(self, options: ModelOptions) -> None:
        super().__init__()
        layer, dim = options.layer, options.layer.dim
        self.attention_norm = nn.RMSNorm(dim, eps=1e-6)
        self.attention = ZetaAttention(**vars(layer)) if options.attention == "zeta" else StandardAttention(layer)
        self.mlp = _MLP(dim, options.mlp_dim) if options.mlp_dim else None

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x))
        return x if self.mlp is None else x + self.mlp(x)


class _MLP(nn.Module):
    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(dim, eps=1e-6)
        self.hidden = nn.Linear(dim, hidden_dim)
        self.out = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(functional.gelu(self.hidden(self.norm(x))))
