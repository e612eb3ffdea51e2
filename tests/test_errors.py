"""Every bad input raises an error that names the argument, what was got and what was expected."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import zeta_ops

F32 = np.float32
Q = np.zeros((2, 4, 10, 3), F32)
K = np.zeros((2, 2, 10, 3), F32)
V = np.zeros((2, 2, 10, 8), F32)
ONE = np.zeros((1, 4, 10, 3), F32), np.zeros((1, 2, 10, 3), F32), np.zeros((1, 2, 10, 8), F32)
INDICES = np.zeros((2, 4, 10, 5), np.int32)


def attend(**changes: Any) -> Callable[[], Any]:
    """A call of zeta_attention with some arguments changed."""
    arguments = {"q": Q, "k": K, "v": V, "gamma": 1.0, **changes}
    return lambda: zeta_ops.zeta_attention(**arguments)


def packed(borders: Any, **changes: Any) -> Callable[[], Any]:
    q, k, v = ONE
    return attend(**{"q": q, "k": k, "v": v, "cu_seqlens": borders, **changes})


BAD = {
    "a list": (attend(q=[[1.0]]), TypeError, ["q", "numpy", "list"]),
    "no array": (attend(k=None), TypeError, ["k", "NoneType"]),
    "integers": (attend(q=Q.astype(np.int32)), TypeError, ["q", "float32", "int32"]),
    "complex": (attend(v=V.astype(np.complex64)), TypeError, ["v", "complex64"]),
    "big-endian": (attend(v=V.astype(">f4")), TypeError, ["v", ">f4"]),
    "float64 and float32": (attend(q=Q.astype(np.float64)), TypeError, ["q", "k", "float64", "float32"]),
    "two dimensions": (attend(q=Q[0, 0]), ValueError, ["q", "3 dimensions", "(10, 3)"]),
    "other batch": (attend(k=K[:1]), ValueError, ["k", "(2,)", "(1,)"]),
    "other dk": (attend(k=K[..., :2]), ValueError, ["k", "dk = 3", "2"]),
    "dk too large": (
        attend(q=np.zeros((1, 1, 2, 9), F32), k=np.zeros((1, 1, 2, 9), F32)), ValueError, ["1 to 8", "9"]
    ),
    "dk zero": (attend(q=Q[..., :0], k=K[..., :0]), ValueError, ["1 to 8", "0"]),
    "unequal lengths of k and v": (attend(v=V[..., :9, :]), ValueError, ["v", "(2, 2, 10", "(2, 2, 9, 8)"]),
    "heads that do not divide": (attend(q=Q[:, :3]), ValueError, ["q", "3 heads", "2 heads"]),
    "no heads": (attend(q=Q[:, :0], k=K[:, :0], v=V[:, :0]), ValueError, ["at least one head"]),
    "gamma zero": (attend(gamma=0.0), ValueError, ["gamma", "positive", "0.0"]),
    "gamma negative": (attend(gamma=np.array([1, -1, 1, 1], F32)), ValueError, ["gamma", "positive", "-1"]),
    "gamma nan": (attend(gamma=float("nan")), ValueError, ["gamma", "nan"]),
    "gamma infinite": (attend(gamma=float("inf")), ValueError, ["gamma", "inf"]),
    "gamma of other heads": (attend(gamma=np.ones(3, F32)), ValueError, ["gamma", "(4,)", "(3,)"]),
    "gamma a string": (attend(gamma="1"), TypeError, ["gamma", "str"]),
    "gamma integers": (attend(gamma=np.ones(4, np.int64)), TypeError, ["gamma", "int64"]),
    "gamma True": (attend(gamma=True), TypeError, ["gamma", "bool"]),
    "top_k zero": (attend(top_k=0), ValueError, ["top_k", "at least 1", "0"]),
    "top_k a float": (attend(top_k=8.0), TypeError, ["top_k", "integer", "8.0"]),
    "top_k True": (attend(top_k=True), TypeError, ["top_k", "integer", "True"]),
    "top_k huge": (attend(top_k=2**40), ValueError, ["top_k", "32 bits"]),
    "window below top_k": (attend(top_k=8, window=7), ValueError, ["window", "top_k = 8", "7"]),
    "window zero": (attend(window=0, num_curves=2), ValueError, ["window", "at least 1"]),
    "no curves": (attend(num_curves=0), ValueError, ["num_curves", "0"]),
    "four curves": (attend(num_curves=4), ValueError, ["num_curves", "1, 2 or 3", "4"]),
    "unknown search": (attend(search="hilbert"), ValueError, ["search", "'zorder'", "'hilbert'"]),
    "causal a number": (attend(causal=1), TypeError, ["causal", "True or False", "1"]),
    "chunk_size zero": (attend(chunk_size=0), ValueError, ["chunk_size", "at least 1", "0"]),
    "include_self a string": (attend(include_self="no"), TypeError, ["include_self", "'no'"]),
    "local_window negative": (attend(local_window=-1), ValueError, ["local_window", "at least 0", "-1"]),
    "local_window without causality": (attend(causal=False, local_window=2), ValueError, ["local_window", "causal"]),
    "too many bits": (attend(bits=22), ValueError, ["bits", "at most 21", "22"]),
    "bits zero": (attend(bits=0), ValueError, ["bits", "at least 1"]),
    "bounds upside down": (attend(bounds=(1, 0)), ValueError, ["bounds", "lo < hi", "(1.0, 0.0)"]),
    "bounds infinite": (attend(bounds=(0, float("inf"))), ValueError, ["bounds", "finite"]),
    "bounds one number": (attend(bounds=1.0), TypeError, ["bounds", "(lo, hi)", "1.0"]),
    "bounds too narrow": (attend(bounds=(0, 1e-40)), ValueError, ["bounds", "1e-30"]),
    "q_offset a float": (attend(q_offset=1.5), TypeError, ["q_offset", "integer"]),
    "unknown backend": (attend(backend="cudnn"), ValueError, ["backend", "'numba'", "'cudnn'"]),
    "unknown option": (attend(topk=3), TypeError, ["topk"]),
    "cu_seqlens int64": (packed(np.array([0, 10])), TypeError, ["cu_seqlens", "int32", "int64"]),
    "cu_seqlens a list": (packed([0, 10]), TypeError, ["cu_seqlens", "list"]),
    "cu_seqlens of two dimensions": (packed(np.zeros((1, 2), np.int32)), ValueError, ["cu_seqlens", "(1, 2)"]),
    "cu_seqlens short": (packed(np.array([0, 9], np.int32)), ValueError, ["cu_seqlens", "10", "[0, 9]"]),
    "cu_seqlens late": (packed(np.array([1, 10], np.int32)), ValueError, ["cu_seqlens", "from 0"]),
    "cu_seqlens descending": (packed(np.array([0, 7, 5, 10], np.int32)), ValueError, ["cu_seqlens", "ascend"]),
    "packing a batch": (
        attend(cu_seqlens=np.array([0, 10], np.int32)), ValueError, ["q", "batch of one", "cu_seqlens", "2"]
    ),
    "packing unequal lengths": (
        packed(np.array([0, 10], np.int32), q=ONE[0][:, :, :5]), ValueError, ["q and k", "equal lengths", "5 and 10"]
    ),
    "indices int64": (
        lambda: zeta_ops.cauchy_attention(Q, K, V, INDICES.astype(np.int64)), TypeError, ["indices", "int32", "int64"]
    ),
    "indices of other queries": (
        lambda: zeta_ops.cauchy_attention(Q, K, V, INDICES[:, :, :9]), ValueError, ["indices", "10", "(2, 4, 9, 5)"]
    ),
    "indices too large": (
        lambda: zeta_ops.cauchy_attention(Q, K, V, INDICES + np.int32(10)), ValueError, ["indices", "[-1, 10)"]
    ),
    "indices too small": (
        lambda: zeta_ops.cauchy_attention(Q, K, V, INDICES - np.int32(2)), ValueError, ["indices", "[-2, -2]"]
    ),
    "curve out of range": (lambda: zeta_ops.morton_encode(Q, curve=1), ValueError, ["curve", "num_curves = 1", "1"]),
    "points without coordinates": (lambda: zeta_ops.morton_encode(np.zeros((), F32)), ValueError, ["x", "1 to 8"]),
    "codes that are signed": (lambda: zeta_ops.morton_decode(INDICES, dims=3), TypeError, ["codes", "uint32", "int32"]),
    "codes too narrow": (
        lambda: zeta_ops.morton_decode(np.zeros(3, np.uint32), dims=3, bits=16), TypeError, ["codes", "uint64", "48"]
    ),
    "too many dims": (lambda: zeta_ops.morton_decode(np.zeros(3, np.uint64), dims=9), ValueError, ["dims", "9"]),
    "gradient of another dtype": (
        lambda: zeta_ops.zeta_attention_vjp(Q, K, V)[1](np.zeros((2, 4, 10, 8))), TypeError, ["grad_out", "float32"]
    ),
    "gradient of another shape": (
        lambda: zeta_ops.zeta_attention_vjp(Q, K, V)[1](V), ValueError, ["grad_out", "(2, 4, 10, 8)", "(2, 2, 10, 8)"]
    ),
}  # fmt: skip


@pytest.mark.parametrize(("call", "error", "words"), BAD.values(), ids=BAD)
def test_bad_input(call: Callable[[], Any], error: type[Exception], words: list[str]) -> None:
    with pytest.raises(error) as raised:
        call()
    for word in words:
        assert word in str(raised.value)


def test_backend_of_another_platform_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from zeta_ops import registry

    elsewhere = registry.BackendEntry("numba", "zeta_ops.backends.numba", ("cuda",), "")
    monkeypatch.setattr(registry, "BACKENDS", (elsewhere, registry.BACKENDS[1]))
    with pytest.raises(ValueError, match="'numba' computes on cuda; got arrays on 'cpu'"):
        zeta_ops.zeta_attention(Q, K, V, backend="numba")


def test_unavailable_backend_says_why(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    from zeta_ops import registry

    missing = registry.BackendEntry("missing", "zeta_ops.backends.missing", ("cpu",), "")
    monkeypatch.setattr(registry, "BACKENDS", (missing, registry.BACKENDS[1]))
    with pytest.raises(ValueError, match=r"'missing' is not available: .*No module named"):
        zeta_ops.zeta_attention(Q, K, V, backend="missing")
    zeta_ops.zeta_attention(Q, K, V)  # takes the next one, and says so
    assert "'missing' is not available" in caplog.text
    assert "No module named" in str(zeta_ops.available_backends()["missing"])


def test_arrays_of_several_kinds_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import collections

    from zeta_ops import registry

    other = registry.ArrayKind("deque", "collections", ("deque",), dict)
    monkeypatch.setattr(registry, "ARRAY_KINDS", (*registry.ARRAY_KINDS, other))
    with pytest.raises(TypeError, match="one kind; got q: numpy, k: deque"):
        zeta_ops.causal_topk(Q, collections.deque())
