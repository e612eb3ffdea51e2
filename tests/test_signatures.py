"""One name and one signature for an operation, with the defaults of the definition."""

from __future__ import annotations

import inspect

import pytest

import zeta_ops

SELECTION = {
    "top_k": 32, "window": None, "num_curves": 1, "search": "zorder", "causal": True, "chunk_size": 1,
    "include_self": True, "local_window": 0, "bits": None, "bounds": None, "q_offset": None, "cu_seqlens": None,
    "backend": None,
}  # fmt: skip
ATTENTION = {**SELECTION, "history_mean": False, "deterministic": False}

EXPECTED = {
    "zeta_attention": (["q", "k", "v", "gamma"], {**ATTENTION, "return_normalizer": False}),
    "zeta_attention_vjp": (["q", "k", "v", "gamma"], ATTENTION),
    "causal_topk": (["q", "k"], SELECTION),
    "selection_recall": (["q", "k", "gamma"], SELECTION),
    "cauchy_attention": (["q", "k", "v", "indices", "gamma"], {"backend": None}),
    "cauchy_attention_vjp": (["q", "k", "v", "indices", "gamma"], {"backend": None}),
    "morton_encode": (["x"], {"bits": None, "bounds": None, "num_curves": 1, "curve": 0, "backend": None}),
    "morton_decode": (["codes"], {"dims": inspect.Parameter.empty, "bits": None, "backend": None}),
    "available_backends": ([], {}),
}


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_signature(name: str) -> None:
    parameters = inspect.signature(getattr(zeta_ops, name)).parameters.values()
    arrays, options = EXPECTED[name]
    assert [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD] == arrays
    assert {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY} == options
    assert len(parameters) == len(arrays) + len(options)
    assert all(p.default == 1.0 for p in parameters if p.name == "gamma")


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_every_parameter_is_documented(name: str) -> None:
    function = getattr(zeta_ops, name)
    _, _, documented = inspect.getdoc(function).partition("Parameters\n----------\n")
    entries = [line.partition(":")[0] for line in documented.partition("\n\n")[0].splitlines() if line[0] != " "]
    names = [parameter for entry in entries for parameter in entry.split(", ")]
    assert sorted(parameter.strip() for parameter in names) == sorted(inspect.signature(function).parameters)
