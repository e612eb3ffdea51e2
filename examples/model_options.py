"""The small causal language model of the examples: its options, and the names and initial values of its parameters."""

from __future__ import annotations

from dataclasses import dataclass

from zeta_ops.adapters.layers import LayerOptions

__all__ = ["ModelOptions"]


@dataclass(frozen=True)
class ModelOptions:
    """Options of the model, the same in PyTorch and JAX.

    Token embeddings; `num_layers` blocks, each of which adds attention and an MLP to its input, both of the normalised
    input (RMSNorm); a last norm; and logits by the embeddings again. There is no position embedding: the
    convolution before queries and keys tells a token what stands before it.

    Parameters
    ----------
    vocab_size : int
        Number of tokens.
    num_layers : int
        Number of blocks.
    layer : LayerOptions
        Options of every attention layer. Standard attention takes `dim`, `num_heads` and `conv_size` of it.
    attention : {"zeta", "standard"}
        Which attention: ZETA's, or scaled dot products with softmax over all earlier tokens.
    mlp_dim : int
        Width of the MLPs' hidden layer; 0 for blocks without MLP.
    """

    vocab_size: int
    num_layers: int
    layer: LayerOptions
    attention: str = "zeta"
    mlp_dim: int = 0

    def __post_init__(self) -> None:
        for name, least in (("vocab_size", 1), ("num_layers", 0), ("mlp_dim", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise ValueError(f"{name} must be an integer of at least {least}; got {value!r}")
        if self.attention not in ("zeta", "standard"):
            raise ValueError(f"attention must be 'zeta' or 'standard'; got {self.attention!r}")
        if self.attention == "standard" and self.layer.dim % self.layer.num_heads != 0:
            raise ValueError(f"num_heads must divide dim = {self.layer.dim}; got {self.layer.num_heads}")
