"""A call like one before is not checked in full again; one that only looks alike is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from kinds import KINDS, Kind

import zeta_ops

F32 = np.float32


def arrays(kind: Kind, **changes: Any) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    shapes = {"q": (1, 2, 6, 3), "k": (1, 1, 6, 3), "v": (1, 1, 6, 4)}
    made = {name: rng.standard_normal(shape).astype(F32) for name, shape in shapes.items()}
    return {name: kind.array(x) if isinstance(x, np.ndarray) else x for name, x in {**made, **changes}.items()}


FINE = {"top_k": 1, "window": 2, "causal": True, "include_self": True, "bounds": (0, 2), "num_curves": 1, "gamma": 1}
ONLY_ALIKE = {
    "top_k": True,
    "window": 2.0,
    "causal": 1,
    "include_self": np.True_,
    "bounds": (False, 2),
    "num_curves": True,
    "gamma": True,
}
WRONG = {"gamma": -1.0, "bounds": [2, 0], "search": ["exact"], "top_k": 3, "cu_seqlens": [0, 6]}


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_what_is_only_alike_is_refused(kind: Kind) -> None:
    if kind.missing():
        pytest.skip(str(kind.missing()))
    given = arrays(kind)
    for _ in range(2):
        zeta_ops.zeta_attention(**given, **FINE)
        for name, value in (*ONLY_ALIKE.items(), *WRONG.items()):
            with pytest.raises((TypeError, ValueError), match=name):
                zeta_ops.zeta_attention(**given, **{**FINE, name: value})


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_other_arrays_are_checked(kind: Kind) -> None:
    if kind.missing():
        pytest.skip(str(kind.missing()))
    zeta_ops.zeta_attention(**arrays(kind), gamma=kind.array(np.ones(2, F32)))
    for name, wrong in {
        "v": np.zeros((1, 1, 5, 4), F32),
        "k": np.zeros((1, 1, 6, 3), np.int32),
        "gamma": np.ones(3, F32),
        "cu_seqlens": np.array([0, 6], np.int32).reshape(1, 2),
    }.items():
        with pytest.raises((TypeError, ValueError), match=name):
            zeta_ops.zeta_attention(**{**arrays(kind), name: kind.array(wrong)})


def test_checks_remember_no_mask() -> None:
    given = arrays(KINDS[0])
    zeta_ops.zeta_attention(**given)
    with pytest.raises(TypeError, match="without a mask"):
        zeta_ops.zeta_attention(**{**given, "k": np.ma.asarray(given["k"])})


def test_gradients_are_those_of_the_call_at_hand() -> None:
    """Sizes of the next call are not those of the last."""
    for length in (6, 7, 6):
        x = np.ones((1, 1, length, 2), F32)
        out, pullback = zeta_ops.zeta_attention_vjp(x, x, x, top_k=2)
        assert out.shape == x.shape
        assert [gradient.shape for gradient in pullback(out)] == [x.shape] * 3 + [()]
