"""`ZetaAttention` as a PyTorch module."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from zeta_ops.adapters.layers import MIN_GAMMA, LayerOptions, check_inputs, check_lengths
from zeta_ops.adapters.torch.memory import as_array
from zeta_ops.attention import zeta_attention

__all__ = ["CausalConvolution", "ZetaAttention", "load_state_arrays", "state_arrays"]


class ZetaAttention(nn.Module):
    """A layer of ZETA attention: `x (batch, length, dim)` to the same shape.

    Coordinates of queries and keys are computed in float32 (float64 for a float64 input) whatever the dtype of the
    parameters and under autocast too: a bfloat16 coordinate, of 8 bits, would stand at another place on the curve.
    Values and the output are in the input's dtype, or autocast's.

    Parameters
    ----------
    dim, num_heads, num_kv_heads, key_dim, value_dim, coordinates, hidden_dim, share_qk, conv_size, gamma_per_head, \
top_k, window, num_curves, search, causal, chunk_size, include_self, local_window, history_mean, bits, bounds, \
deterministic, backend
        As for `zeta_ops.adapters.layers.LayerOptions`, which documents them.
    device : torch.device, optional
        Where the parameters are.
    dtype : torch.dtype, optional
        Dtype of the parameters.

    Attributes
    ----------
    options : LayerOptions
        All options, with their defaults filled in.

    Raises
    ------
    TypeError, ValueError
        Naming the option that is wrong, what was got and what was expected.

    References
    ----------
    arXiv 2501.14577, section 3.

    Examples
    --------
    >>> import torch
    >>> from zeta_ops.adapters.torch.layers import ZetaAttention
    >>> layer = ZetaAttention(64, num_heads=4, top_k=16)
    >>> layer(torch.randn(2, 100, 64)).shape
    torch.Size([2, 100, 64])
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 1,
        num_kv_heads: int | None = None,
        key_dim: int = 3,
        value_dim: int | None = None,
        coordinates: str = "mlp",
        hidden_dim: int | None = None,
        share_qk: bool = False,
        conv_size: int = 4,
        gamma_per_head: bool = False,
        top_k: int = 32,
        window: int | None = None,
        num_curves: int = 1,
        search: str = "zorder",
        causal: bool = True,
        chunk_size: int = 1,
        include_self: bool = True,
        local_window: int = 0,
        history_mean: bool = True,
        bits: int | None = None,
        bounds: tuple[float, float] | None = None,
        deterministic: bool = False,
        backend: str | None = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.options = options = LayerOptions(
            dim=dim,
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            key_dim=key_dim,
            value_dim=value_dim,
            coordinates=coordinates,
            hidden_dim=hidden_dim,
            share_qk=share_qk,
            conv_size=conv_size,
            gamma_per_head=gamma_per_head,
            top_k=top_k,
            window=window,
            num_curves=num_curves,
            search=search,
            causal=causal,
            chunk_size=chunk_size,
            include_self=include_self,
            local_window=local_window,
            history_mean=history_mean,
            bits=bits,
            bounds=bounds,
            deterministic=deterministic,
            backend=backend,
        )
        place: dict[str, Any] = {"device": device, "dtype": dtype}
        shapes = {name: spec.shape for name, spec in options.parameters().items()}
        self.conv = CausalConvolution(*shapes["conv.weight"], **place) if conv_size else None
        for name in options.coordinate_maps:
            self.add_module(name, _Coordinates(dim, options.hidden_dim, shapes[f"{name}.out.bias"][0], **place))
        self.v_proj = nn.Linear(dim, shapes["v_proj.weight"][0], bias=False, **place)
        self.o_proj = nn.Linear(shapes["o_proj.weight"][1], dim, bias=False, **place)
        self.raw_gamma = nn.Parameter(torch.empty(shapes["raw_gamma"], **place))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw initial values of all parameters: queries and keys start with coordinates of mean 0 and variance 1."""
        parameters = dict(self.named_parameters())
        for name, spec in self.options.parameters().items():
            nn.init.normal_(parameters[name], std=spec.std)
        for name in self.options.coordinate_maps:
            weight = parameters[f"{name}.out.weight"]
            parameters[f"{name}.out.bias"].copy_(self.options.centring_bias(weight))

    @property
    def gamma(self) -> Tensor:
        """Width of the weights, one or one for each head, between 0.032 and 1; float32 or float64."""
        raw = self.raw_gamma.to(_coordinate_dtype(self.raw_gamma))
        return MIN_GAMMA + (1 - MIN_GAMMA) * raw.sigmoid()

    def forward(self, x: Tensor, *, cu_seqlens: Tensor | None = None, lengths: Tensor | None = None) -> Tensor:
        """Attend within each sequence.

        Parameters
        ----------
        x : Tensor (batch, length, dim)
            Any float dtype; that of the parameters outside of autocast.
        cu_seqlens : Tensor (S + 1,), int32, optional
            Borders of S sequences that are packed in a batch of one; nothing crosses them.
        lengths : Tensor (batch,), int32 or int64, optional
            Tokens of each batch item; what follows is padding, which gives zeros and influences nothing.

        Returns
        -------
        Tensor (batch, length, dim)

        Raises
        ------
        TypeError, ValueError
            Naming the argument that is wrong, what was got and what was expected.
        """
        check_inputs(self.options, x, cu_seqlens, lengths)
        if lengths is None:
            return self._attend(x, cu_seqlens)
        _check_values(lengths, x.shape[1])
        kept = (torch.arange(x.shape[1], device=x.device) < lengths[:, None])[..., None]
        x = x.masked_fill(~kept, 0)  # before everything else, so that not even NaN reaches a parameter's gradient
        if self.options.causal:  # no token sees the padding, which comes after it
            out = self._attend(x, None)
        else:  # all items in one pack, in which each item's padding is a sequence of its own
            batch, length, dim = x.shape
            starts = length * torch.arange(batch, device=x.device)
            inner = torch.stack([starts, starts + lengths], dim=1).flatten()
            borders = torch.cat([inner, inner.new_full((1,), batch * length)]).to(torch.int32)
            out = self._attend(x.reshape(1, batch * length, dim), borders).reshape(x.shape)
        return out.masked_fill(~kept, 0)

    def extra_repr(self) -> str:
        """List the options in the text that `print` shows."""
        return ", ".join(f"{name}={value!r}" for name, value in vars(self.options).items())

    def _attend(self, x: Tensor, cu_seqlens: Tensor | None) -> Tensor:
        options = self.options
        with torch.autocast(x.device.type, enabled=False):
            points = x.to(_coordinate_dtype(x))
            if self.conv is not None:
                points = points + self.conv(points, cu_seqlens)
            found = [_split(getattr(self, name)(points), heads) for name, heads in options.coordinate_maps.items()]
        assert options.num_kv_heads is not None
        v = _split(self.v_proj(x), options.num_kv_heads)
        out = zeta_attention(
            found[0], found[-1], v, self.gamma.expand(options.num_heads),
            **options.selection, cu_seqlens=cu_seqlens, backend=options.backend,
        )  # fmt: skip
        return self.o_proj(out.transpose(1, 2).flatten(2))


class CausalConvolution(nn.Module):
    """A short depthwise convolution over the last tokens of each sequence.

    Parameters
    ----------
    dim : int
        Features, each convolved by itself.
    size : int
        Taps: the own token and those before it.
    device, dtype : optional
        Of the weight, `(dim, size)`; `weight[:, j]` belongs to the token j places before.

    Examples
    --------
    >>> import torch
    >>> from zeta_ops.adapters.torch.layers import CausalConvolution
    >>> CausalConvolution(16, 4)(torch.randn(2, 100, 16)).shape
    torch.Size([2, 100, 16])
    """

    def __init__(
        self, dim: int, size: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(dim, size, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weights that keep the variance of independent tokens."""
        nn.init.normal_(self.weight, std=self.weight.shape[1] ** -0.5)

    def forward(self, x: Tensor, cu_seqlens: Tensor | None = None) -> Tensor:
        """Convolve `x (batch, length, dim)` in its dtype; `cu_seqlens` are the borders of packed sequences."""
        weight, length = self.weight.to(x.dtype), x.shape[1]
        total = x * weight[:, 0]
        place = None if cu_seqlens is None else _place_in_sequence(cu_seqlens, length)
        for back in range(1, weight.shape[1]):
            past = functional.pad(x, (0, 0, back, 0))[:, :length]
            if place is not None:
                past = past.masked_fill((place < back)[:, None], 0)
            total = total + past * weight[:, back]
        return total


class _Coordinates(nn.Module):
    """Map features to coordinates, in the dtype of the features."""

    def __init__(self, dim: int, hidden_dim: int | None, width: int, device: Any, dtype: Any) -> None:
        super().__init__()
        self.hidden = None if hidden_dim is None else _LinearInDtypeOfInput(dim, hidden_dim, device=device, dtype=dtype)
        self.out = _LinearInDtypeOfInput(hidden_dim or dim, width, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(x if self.hidden is None else functional.gelu(self.hidden(x)))


class _LinearInDtypeOfInput(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight.to(x.dtype), self.bias.to(x.dtype))


def _coordinate_dtype(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _split(x: Tensor, heads: int) -> Tensor:
    """Make `(batch, heads, length, width)` of `(batch, length, heads * width)`."""
    return x.unflatten(2, (heads, x.shape[2] // heads)).transpose(1, 2)


def _place_in_sequence(cu_seqlens: Tensor, length: int) -> Tensor:
    """Count each token's place in its own packed sequence, `(length,)`."""
    tokens = torch.arange(length, device=cu_seqlens.device)
    return tokens - cu_seqlens[torch.searchsorted(cu_seqlens, tokens, right=True) - 1]


def _check_values(lengths: Tensor, length: int) -> None:
    known = lengths.device.type == "cpu" and not torch.compiler.is_compiling()  # where reading them costs nothing
    if known and lengths.numel() > 0 and not torch._C._functorch.is_functorch_wrapped_tensor(lengths):
        check_lengths(int(lengths.min()), int(lengths.max()), length)


def state_arrays(module: nn.Module) -> dict[str, npt.NDArray[Any]]:
    """Copy a module's parameters into NumPy arrays by name, which are also the parameters of its JAX twin.

    Parameters
    ----------
    module : nn.Module
        A `ZetaAttention`, or any module of float parameters. Tied parameters are there once, under their first name.

    Returns
    -------
    dict of str to array
        bfloat16 parameters need the package `ml_dtypes`.

    Examples
    --------
    >>> from zeta_ops.adapters.torch.layers import ZetaAttention, state_arrays
    >>> state_arrays(ZetaAttention(8, conv_size=4))["conv.weight"].shape
    (8, 4)
    """
    return {name: as_array(value.detach().cpu()).copy() for name, value in module.named_parameters()}


def load_state_arrays(module: nn.Module, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Copy NumPy arrays, such as a JAX twin's parameters, into the parameters of a module.

    Parameters
    ----------
    module : nn.Module
        The module whose parameters are overwritten; they keep their device and dtype.
    arrays : mapping of str to array
        As `state_arrays` returns, or `{name: np.asarray(value)}` of JAX parameters.

    Raises
    ------
    ValueError
        If a name is missing or unknown, or if a shape differs.

    Examples
    --------
    >>> from zeta_ops.adapters.torch.layers import ZetaAttention, load_state_arrays, state_arrays
    >>> one, other = ZetaAttention(8), ZetaAttention(8)
    >>> load_state_arrays(other, state_arrays(one))
    """
    parameters = dict(module.named_parameters())
    if parameters.keys() != arrays.keys():
        missing, unknown = sorted(parameters.keys() - arrays.keys()), sorted(arrays.keys() - parameters.keys())
        raise ValueError(f"arrays must have the names of the module's parameters; missing {missing}, unknown {unknown}")
    for name, parameter in parameters.items():
        if tuple(arrays[name].shape) != tuple(parameter.shape):
            raise ValueError(f"{name} must have shape {tuple(parameter.shape)}; got {tuple(arrays[name].shape)}")
    with torch.no_grad():
        for name, parameter in parameters.items():
            # float32 holds every 16-bit number, for which torch reads no arrays of ml_dtypes' types
            array = arrays[name]
            wide = np.asarray(array, np.float32 if array.dtype.itemsize < 4 else array.dtype)
            parameter.copy_(torch.tensor(wide))
