"""Every bad input raises an error that names the argument, what was got and what was expected."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from checks import assert_same_bits
from kinds import KINDS, NUMPY, Kind

import zeta_ops
from zeta_ops import registry
from zeta_ops.backends import Backend

F32 = np.float32
Q = np.zeros((2, 4, 10, 3), F32)
K = np.zeros((2, 2, 10, 3), F32)
V = np.zeros((2, 2, 10, 8), F32)
ONE = np.zeros((1, 4, 10, 3), F32), np.zeros((1, 2, 10, 3), F32), np.zeros((1, 2, 10, 8), F32)
INDICES = np.zeros((2, 4, 10, 5), np.int32)


Call = Callable[[Kind], Any]  # with the arrays of one kind


def call(name: str, **arguments: Any) -> Call:
    """A call of a public function, whose arrays are made of NumPy's."""

    def of_kind(kind: Kind) -> Any:
        made = {key: kind.array(x) if isinstance(x, np.ndarray) else x for key, x in arguments.items()}
        return getattr(zeta_ops, name)(**made)

    return of_kind


def attend(**changes: Any) -> Call:
    """A call of zeta_attention with some arguments changed."""
    return call("zeta_attention", **{"q": Q, "k": K, "v": V, "gamma": 1.0, **changes})


def attend_to(indices: Any, **changes: Any) -> Call:
    return call("cauchy_attention", **{"q": Q, "k": K, "v": V, "indices": indices, **changes})


def encode(x: Any = Q, **options: Any) -> Call:
    return call("morton_encode", x=x, **options)


def decode(codes: Any, **options: Any) -> Call:
    return call("morton_decode", codes=codes, **options)


def packed(borders: Any, **changes: Any) -> Call:
    q, k, v = ONE
    return attend(**{"q": q, "k": k, "v": v, "cu_seqlens": borders, **changes})


BAD = {
    "a list": (attend(q=[[1.0]]), TypeError, ["q", "numpy", "list"]),
    "no array": (attend(k=None), TypeError, ["k", "NoneType"]),
    "integers": (attend(q=Q.astype(np.int32)), TypeError, ["q", "float32", "int32"]),
    "complex": (attend(v=V.astype(np.complex64)), TypeError, ["v", "complex64"]),
    "float64 and float32": (attend(q=Q.astype(np.float64)), TypeError, ["q", "k", "float64", "float32"]),
    "values of two dimensions": (attend(v=V[0, 0]), ValueError, ["v", "3 dimensions", "(10, 8)"]),
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
    "gamma whose square underflows": (attend(gamma=1e-30), ValueError, ["gamma", "2**-63", "float32", "1e-30"]),
    "gamma whose square overflows": (
        attend(gamma=np.array([1, 1, 1, 1e25], F32)), ValueError, ["gamma", "2**63", "float32", "e+24"]
    ),
    "gamma of key heads": (attend(gamma=np.ones(2, F32)), ValueError, ["gamma", "(4,)", "(2,)"]),
    "gamma of two dimensions": (attend(gamma=np.ones((1, 4), F32)), ValueError, ["gamma", "(4,)", "(1, 4)"]),
    "gamma a list": (attend(gamma=[1.0]), TypeError, ["gamma", "list"]),
    "gamma complex": (attend(gamma=1j), TypeError, ["gamma", "complex"]),
    "gamma of nan": (attend(gamma=np.array([1, 1, np.nan, 1], F32)), ValueError, ["gamma", "nan"]),
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
    "num_curves a float": (attend(num_curves=2.0), TypeError, ["num_curves", "integer", "2.0"]),
    "window a float": (attend(window=64.0), TypeError, ["window", "integer", "64.0"]),
    "window below top_k, exactly": (attend(top_k=8, window=7, search="exact"), ValueError, ["window", "top_k = 8"]),
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
    "bounds of three": (attend(bounds=(0, 1, 2)), TypeError, ["bounds", "(lo, hi)", "(0, 1, 2)"]),
    "bounds too wide": (attend(bounds=(-1e38, 1e38)), ValueError, ["bounds", "1e38"]),
    "bounds beyond float32": (attend(bounds=(1e39, 1.0000001e39)), ValueError, ["bounds"]),
    "bounds too narrow": (attend(bounds=(0, 1e-40)), ValueError, ["bounds", "1e-30"]),
    "q_offset a float": (attend(q_offset=1.5), TypeError, ["q_offset", "integer"]),
    "q_offset huge": (attend(q_offset=2**31), ValueError, ["q_offset", "32 bits", str(2**31)]),
    "history_mean a number": (attend(history_mean=1), TypeError, ["history_mean", "True or False", "1"]),
    "deterministic None": (attend(deterministic=None), TypeError, ["deterministic", "True or False", "None"]),
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
    "cu_seqlens empty": (packed(np.zeros(0, np.int32)), ValueError, ["cu_seqlens", "(0,)"]),
    "cu_seqlens beyond the end": (packed(np.array([0, 11], np.int32)), ValueError, ["cu_seqlens", "10", "11"]),
    "indices int64": (attend_to(INDICES.astype(np.int64)), TypeError, ["indices", "int32", "int64"]),
    "indices a list": (attend_to([[[[0]]]]), TypeError, ["indices", "list"]),
    "indices of other queries": (attend_to(INDICES[:, :, :9]), ValueError, ["indices", "10", "(2, 4, 9, 5)"]),
    "indices of other heads": (attend_to(INDICES[:, :2]), ValueError, ["indices", "4", "(2, 2, 10, 5)"]),
    "indices of two dimensions": (attend_to(INDICES[0, 0]), ValueError, ["indices", "3 dimensions", "(10, 5)"]),
    "indices too large": (attend_to(INDICES + np.int32(10)), ValueError, ["indices", "[-1, 10)", "10"]),
    "indices too small": (attend_to(INDICES - np.int32(2)), ValueError, ["indices", "[-2, -2]"]),
    "indices without keys": (
        attend_to(INDICES, k=K[:, :, :0], v=V[:, :, :0]), ValueError, ["indices", "[-1, 0)", "[0, 0]"]
    ),
    "given keys and a bad gamma": (attend_to(INDICES, gamma=-1.0), ValueError, ["gamma", "positive", "-1.0"]),
    "given keys and an unknown backend": (attend_to(INDICES, backend="c"), ValueError, ["backend", "'c'"]),
    "points a list": (encode([1.0]), TypeError, ["x", "list"]),
    "points that are integers": (encode(INDICES), TypeError, ["x", "float32", "int32"]),
    "points without coordinates": (encode(np.zeros((), F32)), ValueError, ["x", "1 to 8", "()"]),
    "points of nine coordinates": (encode(np.zeros((2, 9), F32)), ValueError, ["x", "1 to 8", "(2, 9)"]),
    "curve out of range": (encode(curve=1), ValueError, ["curve", "num_curves = 1", "1"]),
    "curve negative": (encode(curve=-1, num_curves=2), ValueError, ["curve", "at least 0", "-1"]),
    "curve a float": (encode(curve=0.0), TypeError, ["curve", "integer", "0.0"]),
    "four curves of codes": (encode(num_curves=4), ValueError, ["num_curves", "4"]),
    "codes of too many bits": (encode(bits=22), ValueError, ["bits", "at most 21", "22"]),
    "codes in bad bounds": (encode(bounds=(2, 2)), ValueError, ["bounds", "lo < hi", "(2.0, 2.0)"]),
    "codes that are signed": (decode(INDICES, dims=3), TypeError, ["codes", "uint32", "int32"]),
    "codes a list": (decode([1], dims=3), TypeError, ["codes", "list"]),
    "codes too narrow": (decode(np.zeros(3, np.uint32), dims=3, bits=16), TypeError, ["codes", "uint64", "48"]),
    "too many dims": (decode(np.zeros(3, np.uint64), dims=9), ValueError, ["dims", "1 to 8", "9"]),
    "no dims": (decode(np.zeros(3, np.uint64), dims=0), ValueError, ["dims", "at least 1", "0"]),
    "dims a float": (decode(np.zeros(3, np.uint64), dims=3.0), TypeError, ["dims", "integer", "3.0"]),
    "bits to decode": (decode(np.zeros(3, np.uint64), dims=3, bits=22), ValueError, ["bits", "at most 21", "22"]),
}  # fmt: skip

BAD_NUMPY = {
    "a mask": (attend(v=np.ma.masked_array(V, V == 0)), TypeError, ["v", "mask", "MaskedArray"]),
    "a mask on points": (encode(np.ma.masked_array(Q)), TypeError, ["x", "mask"]),
    "big-endian": (attend(v=V.astype(">f4")), TypeError, ["v", ">f4"]),
}  # fmt: skip


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every function of every backend fail that would compute something."""

    def work(*_: Any, **__: Any) -> None:
        pytest.fail("a backend was called with bad input")

    operations = [name for name in vars(Backend) if not name.startswith("_") and name != "unavailable_reason"]
    assert len(operations) == 8
    for entry in registry.BACKENDS:
        if "numpy" in entry.kinds and registry.unavailable_reason(entry.name) is None:
            for name in operations:
                monkeypatch.setattr(f"{entry.module}.{name}", work)


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize(("call", "error", "words"), BAD.values(), ids=BAD)
def test_bad_input(call: Call, error: type[Exception], words: list[str], kind: Kind) -> None:
    missing = kind.missing()
    if missing is not None:
        pytest.skip(missing)
    with kind.precision(wide=True), pytest.raises(error) as raised:
        call(kind)
    for word in words:
        assert word in str(raised.value)


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize(("call", "error", "words"), BAD_NUMPY.values(), ids=BAD_NUMPY)
def test_bad_input_of_numpy(call: Call, error: type[Exception], words: list[str]) -> None:
    test_bad_input(call, error, words, NUMPY)


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"k": K[..., :2]}, ValueError, ["k", "dk = 3", "2"]),
        ({"top_k": 0}, ValueError, ["top_k", "at least 1", "0"]),
        ({"num_curves": 4}, ValueError, ["num_curves", "4"]),
        ({"cu_seqlens": np.array([0, 10])}, TypeError, ["cu_seqlens", "int32", "int64"]),
        ({"backend": "cudnn"}, ValueError, ["backend", "'cudnn'"]),
    ],
    ids=lambda value: ", ".join(value) if isinstance(value, dict) else "",
)
@pytest.mark.parametrize("name", ["zeta_attention_vjp", "causal_topk", "selection_recall"])
def test_every_function_that_searches_checks(
    name: str, changes: dict[str, Any], error: type[Exception], words: list[str]
) -> None:
    arrays = {"q": Q, "k": K} | ({"v": V} if name == "zeta_attention_vjp" else {})
    with pytest.raises(error) as raised:
        getattr(zeta_ops, name)(**{**arrays, **changes})
    for word in words:
        assert word in str(raised.value)


@pytest.mark.usefixtures("no_work")
def test_given_keys_are_checked_before_gradients_too() -> None:
    with pytest.raises(ValueError, match=r"indices must be in \[-1, 10\).*; got values in \[10, 10\]"):
        zeta_ops.cauchy_attention_vjp(Q, K, V, INDICES + np.int32(10))


@pytest.mark.parametrize(
    ("grad_out", "error", "message"),
    [
        (np.zeros((2, 4, 10, 8)), TypeError, "grad_out must be .*float32.*; got float64"),
        (np.ma.zeros((2, 4, 10, 8), F32), TypeError, "grad_out must be a NumPy array.*; got MaskedArray"),
        ([0.0], TypeError, "grad_out must be a NumPy array.*; got list"),
        (V, ValueError, r"grad_out must have .*\(2, 4, 10, 8\); got \(2, 2, 10, 8\)"),
    ],
    ids=["dtype", "mask", "kind", "shape"],
)
def test_bad_gradients(grad_out: Any, error: type[Exception], message: str) -> None:
    for _, pullback in (zeta_ops.zeta_attention_vjp(Q, K, V), zeta_ops.cauchy_attention_vjp(Q, K, V, INDICES)):
        with pytest.raises(error, match=message):
            pullback(grad_out)


def test_numbers_of_numpy_are_numbers() -> None:
    expected = zeta_ops.zeta_attention(Q, K, V, 0.5, top_k=4, window=8, bounds=(0.0, 1.0))
    bounds = [np.float32(0), np.float64(1)]
    out = zeta_ops.zeta_attention(Q, K, V, np.float32(0.5), top_k=np.int64(4), window=np.int32(8), bounds=bounds)
    assert_same_bits(out, expected)


def test_backend_of_another_platform_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = registry.BackendEntry("numba", "zeta_ops.backends.numba", ("cuda",), "")
    monkeypatch.setattr(registry, "BACKENDS", (elsewhere, registry.BACKENDS[-1]))
    with pytest.raises(ValueError, match="'numba' computes on cuda; got arrays on 'cpu'"):
        zeta_ops.zeta_attention(Q, K, V, backend="numba")


def test_backend_for_other_arrays_is_refused() -> None:
    with pytest.raises(ValueError, match="'xla' computes on jax arrays only; got numpy arrays"):
        zeta_ops.zeta_attention(Q, K, V, backend="xla")


def test_unavailable_backend_says_why(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    missing = registry.BackendEntry("missing", "zeta_ops.backends.missing", ("cpu",), "")
    monkeypatch.setattr(registry, "BACKENDS", (missing, registry.BACKENDS[-1]))
    with pytest.raises(ValueError, match=r"'missing' is not available: .*No module named"):
        zeta_ops.zeta_attention(Q, K, V, backend="missing")
    zeta_ops.zeta_attention(Q, K, V)  # takes the next one, and says so
    assert "'missing' is not available" in caplog.text
    assert "No module named" in str(zeta_ops.available_backends()["missing"])


def test_arrays_of_several_kinds_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import collections

    other = registry.ArrayKind("deque", "collections", ("deque",), dict)
    monkeypatch.setattr(registry, "ARRAY_KINDS", (*registry.ARRAY_KINDS, other))
    with pytest.raises(TypeError, match="one kind; got q: numpy, k: deque"):
        zeta_ops.causal_topk(Q, collections.deque())
