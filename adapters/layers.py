"""What the layers of all frameworks share: options, and names, shapes and initial values of parameters."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from zeta_ops.arguments import FLOAT_DTYPES, check_bool, check_int, dtype_name, search_problem
from zeta_ops.options import MAX_KEY_DIM, Shapes

__all__ = ["MIN_GAMMA", "LayerOptions", "ParameterSpec", "check_inputs", "check_lengths", "option_names"]

MIN_GAMMA = 0.032  # gamma**2 stays above 1e-3 in float32 too: weights stay below a thousand

# Mean and variance of GELU, in its exact form, of a standard normal variable.
_GELU_MEAN = 1 / (2 * math.sqrt(math.pi))
_GELU_VARIANCE = 1 / 3 + 1 / (2 * math.pi * math.sqrt(3)) - _GELU_MEAN**2

_SELECTION = (
    "top_k", "window", "num_curves", "search", "causal", "chunk_size", "include_self", "local_window", "history_mean",
    "bits", "bounds", "deterministic",
)  # fmt: skip


class ParameterSpec(NamedTuple):
    """Shape of a parameter and the normal distribution that it starts from; all zero where `std` is 0."""

    shape: tuple[int, ...]
    std: float


@dataclass(frozen=True)
class LayerOptions:
    """Options of a `ZetaAttention` layer, the same in every framework.

    The layer maps `x (B, N, dim)` to `(B, N, dim)`: it makes values of `x`, and coordinates of queries and keys of
    `x` plus a short causal depthwise convolution of `x`; attends with `zeta_ops.zeta_attention`; and maps the heads'
    outputs back to `dim`. Queries and keys start with coordinates of mean 0 and variance 1 if `x` has unit variance,
    and are not squashed. The width of the weights is learned as `gamma = 0.032 + 0.968 * sigmoid(raw_gamma)`.

    Parameters
    ----------
    dim : int
        Features of the input and of the output.
    num_heads : int
        Query heads.
    num_kv_heads : int, optional
        Heads of keys and values, of which `num_heads` is a multiple; default `num_heads`. Less is grouped-query
        attention.
    key_dim : int
        Coordinates of queries and keys in each head, 1 to 8.
    value_dim : int, optional
        Features of the values in each head; default `dim // num_heads`.
    coordinates : {"mlp", "linear"}
        How coordinates are made: by two linear maps with GELU between them (the paper's choice), or by one.
    hidden_dim : int, optional
        Features between the two maps; default `dim`. Only with `coordinates="mlp"`.
    share_qk : bool
        Make queries and keys by the same map.
    conv_size : int
        Taps of the convolution; 0 for none. Without it a key knows nothing of the token before it, and associative
        recall is not learned.
    gamma_per_head : bool
        Learn a `gamma` for each head instead of one (the paper's choice).
    history_mean : bool
        Attend once more to the mean of all keys and values so far, which gives every past token a gradient.
    top_k, window, num_curves, search, causal, chunk_size, include_self, local_window, bits, bounds, deterministic, \
backend
        As for `zeta_ops.zeta_attention`. The convolution is causal whatever `causal` is.

    Raises
    ------
    TypeError, ValueError
        Naming the option that is wrong, what was got and what was expected.

    References
    ----------
    arXiv 2501.14577, section 3. The convolution, and coordinates without a bound, are this library's.
    """

    dim: int
    num_heads: int = 1
    num_kv_heads: int | None = None
    key_dim: int = 3
    value_dim: int | None = None
    coordinates: str = "mlp"
    hidden_dim: int | None = None
    share_qk: bool = False
    conv_size: int = 4
    gamma_per_head: bool = False
    top_k: int = 32
    window: int | None = None
    num_curves: int = 1
    search: str = "zorder"
    causal: bool = True
    chunk_size: int = 1
    include_self: bool = True
    local_window: int = 0
    history_mean: bool = True
    bits: int | None = None
    bounds: tuple[float, float] | None = None
    deterministic: bool = False
    backend: str | None = None

    def __post_init__(self) -> None:
        dim = check_int("dim", self.dim, 1)
        heads = check_int("num_heads", self.num_heads, 1)
        if self.num_kv_heads is None:
            self._fill(num_kv_heads=heads)
        if heads % check_int("num_kv_heads", self.num_kv_heads, 1) != 0:
            raise ValueError(f"num_kv_heads must divide num_heads = {heads}; got {self.num_kv_heads}")
        if check_int("key_dim", self.key_dim, 1) > MAX_KEY_DIM:
            raise ValueError(f"key_dim must be 1 to {MAX_KEY_DIM}; got {self.key_dim}")
        if self.value_dim is None:
            if dim % heads != 0:
                raise ValueError(f"value_dim must be given where num_heads = {heads} does not divide dim = {dim}")
            self._fill(value_dim=dim // heads)
        check_int("value_dim", self.value_dim, 1)
        if self.coordinates not in ("mlp", "linear"):
            raise ValueError(f"coordinates must be 'mlp' or 'linear'; got {self.coordinates!r}")
        if self.coordinates == "mlp":
            self._fill(hidden_dim=dim if self.hidden_dim is None else check_int("hidden_dim", self.hidden_dim, 1))
        elif self.hidden_dim is not None:
            raise ValueError(f"hidden_dim must be None with coordinates='linear'; got {self.hidden_dim}")
        if check_bool("share_qk", self.share_qk) and self.num_kv_heads != heads:
            raise ValueError(f"share_qk needs num_kv_heads = num_heads = {heads}; got {self.num_kv_heads}")
        check_int("conv_size", self.conv_size, 0)
        check_bool("gamma_per_head", self.gamma_per_head)
        if self.backend is not None and not isinstance(self.backend, str):
            raise TypeError(f"backend must be None or a name; got {self.backend!r}")
        nothing = Shapes(0, heads, heads, 0, 0, self.key_dim, 0, "float32", "float32")
        search_problem(nothing, None, q_offset=None, **self.selection)
        if self.bounds is not None:  # hashable, as static arguments of compiled code have to be
            self._fill(bounds=tuple(self.bounds))

    def _fill(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @property
    def selection(self) -> dict[str, Any]:
        """Options that `zeta_ops.zeta_attention` takes under the same names, without `backend`."""
        return {name: getattr(self, name) for name in _SELECTION}

    @property
    def coordinate_maps(self) -> dict[str, int]:
        """Number of heads that each map to coordinates makes, by the name of the map."""
        assert self.num_kv_heads is not None
        return {"q_proj": self.num_heads} if self.share_qk else {"q_proj": self.num_heads, "k_proj": self.num_kv_heads}

    def parameters(self) -> dict[str, ParameterSpec]:
        """Name, shape and initial distribution of every parameter.

        Weights of linear maps are `(out, in)`. The bias of the last map to coordinates is not drawn but set by
        `centring_bias`.
        """
        assert self.num_kv_heads is not None and self.value_dim is not None
        specs = {"raw_gamma": ParameterSpec((self.num_heads if self.gamma_per_head else 1,), 0)}
        variance = 1.0  # of what the coordinates are made of
        if self.conv_size:
            specs["conv.weight"] = ParameterSpec((self.dim, self.conv_size), self.conv_size**-0.5)
            variance = 2.0  # the input's and the convolution's
        for name, heads in self.coordinate_maps.items():
            width = heads * self.key_dim
            if self.hidden_dim is None:
                specs[f"{name}.out.weight"] = ParameterSpec((width, self.dim), (variance * self.dim) ** -0.5)
            else:
                hidden = self.hidden_dim
                specs[f"{name}.hidden.weight"] = ParameterSpec((hidden, self.dim), (variance * self.dim) ** -0.5)
                specs[f"{name}.hidden.bias"] = ParameterSpec((hidden,), 0)
                specs[f"{name}.out.weight"] = ParameterSpec((width, hidden), (_GELU_VARIANCE * hidden) ** -0.5)
            specs[f"{name}.out.bias"] = ParameterSpec((width,), 0)
        specs["v_proj.weight"] = ParameterSpec((self.num_kv_heads * self.value_dim, self.dim), self.dim**-0.5)
        inner = self.num_heads * self.value_dim
        specs["o_proj.weight"] = ParameterSpec((self.dim, inner), inner**-0.5)
        return specs

    def centring_bias(self, weight: Any) -> Any:
        """Make the initial bias of the last map to coordinates of its weight: it takes away what GELU's mean adds.

        Without it queries and keys would start around different points.
        """
        return weight.sum(-1) * (0 if self.hidden_dim is None else -_GELU_MEAN)


def option_names() -> tuple[str, ...]:
    """Names of all options, in the order in which every framework's layer takes them."""
    return tuple(field.name for field in fields(LayerOptions))


def check_inputs(options: LayerOptions, x: Any, cu_seqlens: Any, lengths: Any) -> None:
    """Check shapes and dtypes of a layer's inputs against its options and against each other."""
    if x.ndim != 3 or x.shape[-1] != options.dim:
        raise ValueError(f"x must have shape (batch, length, dim = {options.dim}); got {tuple(x.shape)}")
    if dtype_name(x) not in FLOAT_DTYPES:
        raise TypeError(f"x must be a float array; got {dtype_name(x)}")
    if lengths is None:
        return
    if cu_seqlens is not None:
        raise ValueError("lengths must be None where cu_seqlens packs sequences, which have no padding; got both")
    if dtype_name(lengths) not in ("int32", "int64"):
        raise TypeError(f"lengths must be int32 or int64; got {dtype_name(lengths)}")
    if tuple(lengths.shape) != (x.shape[0],):
        raise ValueError(f"lengths must have one number per batch item, ({x.shape[0]},); got {tuple(lengths.shape)}")


def check_lengths(lowest: int, highest: int, length: int) -> None:
    """Check the values of `lengths`."""
    if lowest < 0 or highest > length:
        raise ValueError(f"lengths must be 0 to the length of x, {length}; got values from {lowest} to {highest}")
