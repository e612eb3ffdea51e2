"""The small causal language model in JAX: two pure functions of parameters named like those of the PyTorch model."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from examples.model_options import ModelOptions
from zeta_ops.adapters.jax.layers import ZetaAttention, causal_convolution
from zeta_ops.adapters.layers import LayerOptions

__all__ = ["apply", "init", "standard_attention"]

Array = jax.Array
Params = Mapping[str, Array]


def init(key: Array, options: ModelOptions) -> dict[str, Array]:
    """Draw parameters, as a flat dictionary with the names of the PyTorch model's."""
    dim = options.layer.dim
    key, embedding_key = jax.random.split(key)
    params = {
        "embedding.weight": dim**-0.5 * jax.random.normal(embedding_key, (options.vocab_size, dim)),
        "norm.weight": jnp.ones(dim),
    }
    for n, block_key in enumerate(jax.random.split(key, options.num_layers)):
        attention_key, hidden_key, out_key = jax.random.split(block_key, 3)
        block = {"attention_norm.weight": jnp.ones(dim)}
        attention = (
            _zeta(options).init(attention_key)
            if options.attention == "zeta"
            else _init_standard(attention_key, options.layer)
        )
        block |= {f"attention.{name}": value for name, value in attention.items()}
        if options.mlp_dim:
            hidden = options.mlp_dim
            block |= {
                "mlp.norm.weight": jnp.ones(dim),
                "mlp.hidden.weight": dim**-0.5 * jax.random.normal(hidden_key, (hidden, dim)),
                "mlp.hidden.bias": jnp.zeros(hidden),
                "mlp.out.weight": hidden**-0.5 * jax.random.normal(out_key, (dim, hidden)),
                "mlp.out.bias": jnp.zeros(dim),
            }
        params |= {f"blocks.{n}.{name}": value for name, value in block.items()}
    return params


def apply(params: Params, tokens: Array, options: ModelOptions) -> Array:
    """Give the logits `(batch, length, vocab_size)` of each next token of `tokens (batch, length)`."""
    x = params["embedding.weight"][tokens]
    for n in range(options.num_layers):
        block = _part(params, f"blocks.{n}.")
        attention, normalised = _part(block, "attention."), _rms_norm(x, block["attention_norm.weight"])
        if options.attention == "zeta":
            x = x + _zeta(options).apply(attention, normalised)
        else:
            x = x + standard_attention(attention, normalised, options.layer)
        if options.mlp_dim:
            hidden = _rms_norm(x, block["mlp.norm.weight"]) @ block["mlp.hidden.weight"].T + block["mlp.hidden.bias"]
            x = x + jax.nn.gelu(hidden, approximate=False) @ block["mlp.out.weight"].T + block["mlp.out.bias"]
    return _rms_norm(x, params["norm.weight"]) @ params["embedding.weight"].T


def standard_attention(params: Params, x: Array, options: LayerOptions) -> Array:
    """Softmax attention over all earlier tokens, behind the same short convolution as ZETA attention."""
    mixed = x + causal_convolution(x, params["conv.weight"]) if options.conv_size else x
    batch, length, dim = x.shape
    q, k, v = (  # (batch, length, heads, width)
        (y @ params[f"{name}.weight"].T).reshape(batch, length, options.num_heads, dim // options.num_heads)
        for name, y in (("q_proj", mixed), ("k_proj", mixed), ("v_proj", x))
    )
    out = jax.nn.dot_product_attention(q, k, v, is_causal=True)
    return out.reshape(batch, length, dim) @ params["o_proj.weight"].T


def _init_standard(key: Array, options: LayerOptions) -> dict[str, Array]:
    names = "q_proj", "k_proj", "v_proj", "o_proj"
    dim, keys = options.dim, jax.random.split(key, len(names) + 1)
    params = {
        f"{name}.weight": dim**-0.5 * jax.random.normal(each, (dim, dim))
        for name, each in zip(names, keys[1:], strict=True)
    }
    if options.conv_size:
        size = options.conv_size
        params["conv.weight"] = size**-0.5 * jax.random.normal(keys[0], (dim, size))
    return params


def _zeta(options: ModelOptions) -> ZetaAttention:
    return ZetaAttention(**vars(options.layer))


def _part(params: Params, prefix: str) -> dict[str, Array]:
    return {name.removeprefix(prefix): value for name, value in params.items() if name.startswith(prefix)}


def _rms_norm(x: Array, weight: Array) -> Array:
    return x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-6) * weight
