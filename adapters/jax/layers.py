"""`ZetaAttention` for JAX: options, and two pure functions of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zeta_ops.adapters.layers import MIN_GAMMA, LayerOptions, check_inputs, check_lengths
from zeta_ops.attention import zeta_attention

__all__ = ["ZetaAttention", "causal_convolution"]

Array = jax.Array
Params = Mapping[str, Array]


@dataclass(frozen=True)
class ZetaAttention(LayerOptions):
    """A layer of ZETA attention: `x (batch, length, dim)` to the same shape.

    `init` makes parameters and `apply` computes with them; both are pure functions. The layer itself is only its
    options: it is hashable and can be a static argument of `jax.jit`. Parameters are a flat dictionary with the names
    and shapes of the PyTorch layer's, so that `zeta_ops.adapters.torch.layers.state_arrays` makes them too.

    Coordinates of queries and keys are computed in float32 (float64 for a float64 input) and in full precision,
    whatever the dtype of the parameters: a bfloat16 coordinate, of 8 bits, would stand at another place on the curve.
    Values and the output are in the input's dtype.

    Parameters
    ----------
    dim, num_heads, num_kv_heads, key_dim, value_dim, coordinates, hidden_dim, share_qk, conv_size, gamma_per_head, \
top_k, window, num_curves, search, causal, chunk_size, include_self, local_window, history_mean, bits, bounds, \
deterministic, backend
        As for `zeta_ops.adapters.layers.LayerOptions`, which documents them.

    Raises
    ------
    TypeError, ValueError
        Naming the option that is wrong, what was got and what was expected.

    References
    ----------
    arXiv 2501.14577, section 3.

    Examples
    --------
    >>> import jax
    >>> from zeta_ops.adapters.jax.layers import ZetaAttention
    >>> layer = ZetaAttention(64, num_heads=4, top_k=16)
    >>> params = layer.init(jax.random.key(0))
    >>> jax.jit(layer.apply)(params, jax.random.normal(jax.random.key(1), (2, 100, 64))).shape
    (2, 100, 64)
    """

    def init(self, key: Array, dtype: Any = jnp.float32) -> dict[str, Array]:
        """Draw parameters: queries and keys start with coordinates of mean 0 and variance 1.

        Parameters
        ----------
        key : Array
            Of `jax.random.key`.
        dtype : dtype
            Of all parameters.

        Returns
        -------
        dict of str to Array
        """
        specs = self.parameters()
        keys = jax.random.split(key, len(specs))
        params = {
            name: (spec.std * jax.random.normal(each, spec.shape)).astype(dtype)
            for each, (name, spec) in zip(keys, specs.items(), strict=True)
        }
        for name in self.coordinate_maps:
            params[f"{name}.out.bias"] = self.centring_bias(params[f"{name}.out.weight"])
        return params

    def gamma(self, params: Params) -> Array:
        """Width of the weights, one or one for each head, between 0.032 and 1; float32 or float64."""
        raw = params["raw_gamma"]
        return MIN_GAMMA + (1 - MIN_GAMMA) * jax.nn.sigmoid(raw.astype(_coordinate_dtype(raw)))

    def apply(
        self, params: Params, x: Array, *, cu_seqlens: Array | None = None, lengths: Array | None = None
    ) -> Array:
        """Attend within each sequence.

        Parameters
        ----------
        params : mapping of str to Array
            As `init` returns.
        x : Array (batch, length, dim)
            Any float dtype; usually that of the parameters.
        cu_seqlens : Array (S + 1,), int32, optional
            Borders of S sequences that are packed in a batch of one; nothing crosses them.
        lengths : Array (batch,), int32 or int64, optional
            Tokens of each batch item; what follows is padding, which gives zeros and influences nothing. The values of
            traced lengths are not checked.

        Returns
        -------
        Array (batch, length, dim)

        Raises
        ------
        TypeError, ValueError
            Naming the argument that is wrong, what was got and what was expected.
        """
        check_inputs(self, x, cu_seqlens, lengths)
        if lengths is None:
            return self._attend(params, x, cu_seqlens)
        batch, length, dim = x.shape
        if batch > 0 and not isinstance(lengths, jax.core.Tracer):
            values = np.asarray(lengths)
            check_lengths(int(values.min()), int(values.max()), length)
        kept = (jnp.arange(length) < lengths[:, None])[..., None]
        x = jnp.where(kept, x, 0)  # before everything else, so that not even NaN reaches a parameter's gradient
        if self.causal:  # no token sees the padding, which comes after it
            out = self._attend(params, x, None)
        else:  # all items in one pack, in which each item's padding is a sequence of its own
            starts = length * jnp.arange(batch)
            inner = jnp.stack([starts, starts + lengths], axis=1).reshape(-1)
            borders = jnp.append(inner, batch * length).astype(jnp.int32)
            out = self._attend(params, x.reshape(1, batch * length, dim), borders).reshape(x.shape)
        return jnp.where(kept, out, 0)

    def _attend(self, params: Params, x: Array, cu_seqlens: Array | None) -> Array:
        assert self.num_kv_heads is not None
        points = x.astype(_coordinate_dtype(x))
        if self.conv_size:
            points = points + causal_convolution(points, params["conv.weight"], cu_seqlens)
        found = [_split(self._coordinates(params, name, points), heads) for name, heads in self.coordinate_maps.items()]
        v = _split(x @ params["v_proj.weight"].astype(x.dtype).T, self.num_kv_heads)
        gamma = jnp.broadcast_to(self.gamma(params), (self.num_heads,))
        out = zeta_attention(
            found[0], found[-1], v, gamma, **self.selection, cu_seqlens=cu_seqlens, backend=self.backend
        )
        weight = params["o_proj.weight"].astype(x.dtype)
        return jnp.moveaxis(out, 1, 2).reshape(*x.shape[:2], weight.shape[1]) @ weight.T

    def _coordinates(self, params: Params, name: str, points: Array) -> Array:
        def linear(x: Array, part: str) -> Array:
            weight, bias = (params[f"{name}.{part}.{which}"].astype(x.dtype) for which in ("weight", "bias"))
            return jnp.matmul(x, weight.T, precision=jax.lax.Precision.HIGHEST) + bias

        if self.hidden_dim is not None:
            points = jax.nn.gelu(linear(points, "hidden"), approximate=False)
        return linear(points, "out")


def causal_convolution(x: Array, weight: Array, cu_seqlens: Array | None = None) -> Array:
    """Convolve the last tokens of each sequence, each feature by itself.

    Parameters
    ----------
    x : Array (batch, length, dim)
    weight : Array (dim, size)
        `weight[:, j]` belongs to the token j places before. Used in the dtype of `x`.
    cu_seqlens : Array (S + 1,), int32, optional
        Borders of packed sequences.

    Returns
    -------
    Array (batch, length, dim)

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from zeta_ops.adapters.jax.layers import causal_convolution
    >>> causal_convolution(jnp.ones((1, 4, 1)), jnp.ones((1, 3))).ravel()
    Array([1., 2., 3., 3.], dtype=float32)
    """
    weight, length = weight.astype(x.dtype), x.shape[1]
    total = x * weight[:, 0]
    place = None if cu_seqlens is None else _place_in_sequence(cu_seqlens, length)
    for back in range(1, weight.shape[1]):
        past = jnp.pad(x, ((0, 0), (back, 0), (0, 0)))[:, :length]
        if place is not None:
            past = jnp.where((place < back)[:, None], 0, past)
        total = total + past * weight[:, back]
    return total


def _coordinate_dtype(x: Array) -> Any:
    return jnp.promote_types(x.dtype, jnp.float32)


def _split(x: Array, heads: int) -> Array:
    """Make `(batch, heads, length, width)` of `(batch, length, heads * width)`."""
    return jnp.moveaxis(x.reshape(*x.shape[:2], heads, x.shape[2] // heads), 2, 1)


def _place_in_sequence(cu_seqlens: Array, length: int) -> Array:
    """Count each token's place in its own packed sequence, `(length,)`."""
    tokens = jnp.arange(length, dtype=cu_seqlens.dtype)
    return tokens - cu_seqlens[jnp.searchsorted(cu_seqlens, tokens, side="right") - 1]
