"""Settings that the tests of every framework's layers run over, and what they have in common."""

from __future__ import annotations

from typing import Any

import numpy as np
from cases import Array

DIM = 8

# Small windows, so that selections differ from token to token.
LAYERS: dict[str, dict[str, Any]] = {
    "defaults": {"top_k": 4},
    "grouped heads": {"num_heads": 4, "num_kv_heads": 2, "value_dim": 3, "top_k": 4, "gamma_per_head": True},
    "linear, shared, no convolution": {
        "num_heads": 2, "coordinates": "linear", "share_qk": True, "conv_size": 0, "top_k": 3, "history_mean": False,
    },
    "three curves and a local window": {"num_heads": 2, "top_k": 3, "num_curves": 3, "local_window": 2, "key_dim": 2},
    "chunks": {"top_k": 4, "chunk_size": 4, "include_self": False, "hidden_dim": 5},
    "exact, bounded": {"search": "exact", "top_k": 4, "bounds": (-3.0, 3.0), "bits": 12},
    "encoder": {"num_heads": 2, "top_k": 4, "causal": False},
}  # fmt: skip

LENGTHS = [11, 0, 7, 1]
BORDERS = [0, 5, 5, 6, 20]

BAD_OPTIONS: dict[str, tuple[dict[str, Any], type[Exception], list[str]]] = {
    "dim": ({"dim": 0}, ValueError, ["dim", "at least 1", "0"]),
    "dim of another type": ({"dim": 8.0}, TypeError, ["dim", "integer", "8.0"]),
    "num_heads": ({"num_heads": 0}, ValueError, ["num_heads", "at least 1"]),
    "num_kv_heads": ({"num_heads": 4, "num_kv_heads": 3}, ValueError, ["num_kv_heads", "divide", "4", "3"]),
    "key_dim": ({"key_dim": 9}, ValueError, ["key_dim", "1 to 8", "9"]),
    "value_dim": ({"num_heads": 3}, ValueError, ["value_dim", "num_heads = 3", "dim = 8"]),
    "no value_dim": ({"value_dim": 0}, ValueError, ["value_dim", "at least 1"]),
    "coordinates": ({"coordinates": "tanh"}, ValueError, ["coordinates", "'mlp' or 'linear'", "'tanh'"]),
    "hidden_dim": ({"hidden_dim": -1}, ValueError, ["hidden_dim", "at least 1", "-1"]),
    "hidden_dim of a linear map": ({"coordinates": "linear", "hidden_dim": 8}, ValueError, ["hidden_dim", "None"]),
    "share_qk": ({"share_qk": 1}, TypeError, ["share_qk", "True or False"]),
    "share_qk with grouped heads": (
        {"num_heads": 4, "num_kv_heads": 2, "share_qk": True}, ValueError, ["share_qk", "num_kv_heads", "2"],
    ),
    "conv_size": ({"conv_size": -1}, ValueError, ["conv_size", "at least 0", "-1"]),
    "gamma_per_head": ({"gamma_per_head": None}, TypeError, ["gamma_per_head", "True or False"]),
    "backend": ({"backend": 3}, TypeError, ["backend", "name", "3"]),
    "an option of the selection": ({"top_k": 4, "window": 3}, ValueError, ["window", "top_k = 4", "3"]),
    "local_window of an encoder": ({"causal": False, "local_window": 2}, ValueError, ["local_window", "causal=False"]),
}  # fmt: skip

PACKED = np.array([0, 5], np.int32)

BAD_INPUTS: dict[str, tuple[tuple[int, ...], dict[str, Any], type[Exception], list[str]]] = {
    "x of another width": ((2, 5, 7), {}, ValueError, ["x", "dim = 8", "(2, 5, 7)"]),
    "x without a batch": ((5, 8), {}, ValueError, ["x", "(5, 8)"]),
    "borders and lengths": (
        (1, 5, 8), {"cu_seqlens": PACKED, "lengths": np.array([5])}, ValueError, ["lengths", "cu_seqlens"],
    ),
    "borders": ((1, 5, 8), {"cu_seqlens": np.array([0, 4], np.int32)}, ValueError, ["cu_seqlens", "5"]),
    "borders in a batch": ((2, 5, 8), {"cu_seqlens": PACKED}, ValueError, ["cu_seqlens", "batch of one"]),
    "fractional lengths": ((1, 5, 8), {"lengths": np.array([2.0], np.float32)}, TypeError, ["lengths", "float32"]),
    "lengths for another batch": ((2, 5, 8), {"lengths": np.array([2])}, ValueError, ["lengths", "(2,)", "(1,)"]),
    "lengths too large": ((2, 5, 8), {"lengths": np.array([2, 6])}, ValueError, ["lengths", "5", "6"]),
    "lengths below zero": ((2, 5, 8), {"lengths": np.array([-1, 3])}, ValueError, ["lengths", "-1"]),
}  # fmt: skip


def layer_input(batch: int = 2, length: int = 20, seed: int = 0) -> Array:
    """Draw features of unit variance."""
    return np.random.default_rng(seed).standard_normal((batch, length, DIM)).astype(np.float32)
