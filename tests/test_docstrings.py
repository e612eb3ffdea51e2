"""Every public name is documented, and its examples run."""

from __future__ import annotations

import doctest

import pytest

import zeta_ops


@pytest.mark.parametrize("name", zeta_ops.__all__)
def test_examples(name: str) -> None:
    public = getattr(zeta_ops, name)
    assert public.__doc__
    examples = doctest.DocTestFinder(recurse=False).find(public, name)
    results = [doctest.DocTestRunner().run(example) for example in examples]
    assert all(result.failed == 0 for result in results)
    if callable(public) and not isinstance(public, type):
        assert sum(result.attempted for result in results) > 0
