"""The README's examples run; what the README and the other pages name exists."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path

import pytest

import zeta_ops
from benchmarks.speed.readme import part_of, speed_part

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
EXAMPLES = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
PAGES = ["README.md", "CONTRIBUTING.md", "docs/definition.md"]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda code: code.splitlines()[0])
def test_example_runs(example: str) -> None:
    for framework in ("torch", "jax"):
        if f"import {framework}" in example:
            pytest.importorskip(framework, reason=f"{framework} is not installed")
    if "import cupy" in example:
        reason = zeta_ops.available_backends()["cupy"]
        if reason is not None:
            pytest.skip(reason)
    exec(compile(example, "README.md", "exec"), {})


def test_there_are_examples() -> None:
    assert EXAMPLES


@pytest.mark.parametrize("command", ["demo", "recall", "tests"])
def test_commands_are_marked(command: str) -> None:
    assert f"<!-- command: {command} -->\n```sh\n" in README


def headings(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for link in re.findall(r"\]\((?!https:)(.*?)\)", (ROOT / page).read_text()):
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), link
        assert not anchor or anchor in headings(target), link


def test_every_option_is_defined() -> None:
    page = (ROOT / "docs" / "definition.md").read_text()
    documented = set(re.findall(r"^\| `(\w+)` \|.*\|.*\|.*\|$", page.partition("## Shapes")[0], re.MULTILINE))
    parameters = inspect.signature(zeta_ops.zeta_attention).parameters.values()
    assert documented == {option.name for option in parameters if option.kind is option.KEYWORD_ONLY}


def test_every_function_is_named() -> None:
    functions = [name for name in zeta_ops.__all__ if inspect.isfunction(getattr(zeta_ops, name))]
    assert [name for name in functions if f"`{name}`" not in README] == []


@pytest.mark.parametrize("name", ["h100", "cpu"])
def test_speed_is_what_was_measured(name: str) -> None:
    result = json.loads((ROOT / "benchmarks" / "results" / f"speed_{name}.json").read_text())
    found = part_of(README, name)
    assert found is not None
    assert found.group() == speed_part(result)
