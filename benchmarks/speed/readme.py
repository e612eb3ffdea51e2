"""The README's part on speed, made from results, so that no figure in it is typed by hand."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.speed.figures import GROWTH_FROM, Row, extrapolated, faster_dense, find
from benchmarks.speed.plan import CUT, DIRECTIONS, FLEX, PLAIN, THREE_CURVES, ZETA
from benchmarks.speed.report import all_figures, length_text

__all__ = ["part_of", "speed_part", "write_part"]

LENGTHS = {"cuda": (8192, 65536, 131072, 1048576), "cpu": (16384, 65536, 262144)}


def part_of(page: str, name: str) -> re.Match[str] | None:
    """Find what stands between the two comments that mark a part of a page."""
    return re.search(rf"(?<=<!-- speed: {name} -->\n).*?(?=<!-- end of speed: {name} -->)", page, re.DOTALL)


def write_part(page: Path, name: str, result: dict[str, Any]) -> None:
    """Replace a part of a page by what a result says.

    Raises
    ------
    ValueError
        If the page has no such part.
    """
    text = page.read_text()
    found = part_of(text, name)
    if found is None:
        raise ValueError(f"{page} has no lines '<!-- speed: {name} -->' and '<!-- end of speed: {name} -->'")
    page.write_text(text[: found.start()] + speed_part(result) + text[found.end() :])


def speed_part(result: dict[str, Any]) -> str:
    """Write the table of times and that of comparisons below it."""
    rows = [*result["rows"], *extrapolated(result["rows"])]
    lines = ["| tokens | heads | dense, ms | ZETA, ms | faster |", "|---|---|---|---|---|"]
    for length in LENGTHS[result["device"]]:
        mine = find(rows, ZETA, length)
        if mine is not None:
            lines.append(_line(mine, rows))
    return "\n".join([*lines, "", *_comparisons(result), ""])


def _line(mine: Row, rows: list[Row]) -> str:
    ours = [mine["ms"][direction] for direction in DIRECTIONS]
    rivals = [faster_dense(rows, mine["length"], mine["heads"], direction) for direction in DIRECTIONS]
    known = [rival for rival in rivals if rival is not None]
    dense = ratios = ""
    if len(known) == len(DIRECTIONS):
        theirs = [rival["ms"][direction] for rival, direction in zip(known, DIRECTIONS, strict=True)]
        dense = _both(theirs, _ms) + (", extrapolated" if "extrapolated_from" in known[0] else "")
        ratios = _both([one / other for one, other in zip(theirs, ours, strict=True)], _ratio)
    return f"| {length_text(mine['length'])} | {mine['heads']} | {dense} | {_both(ours, _ms)} | {ratios} |"


def _both(values: list[float], text: Callable[[float], str]) -> str:
    return " / ".join(map(text, values))


def _comparisons(result: dict[str, Any]) -> list[str]:
    """Put those figures into a second table that the first one does not hold."""
    found = {figure.name: figure.value for figure in all_figures(result)}
    main = length_text(result["setting"]["main"])
    growth_from = main if result["device"] == "cpu" else length_text(GROWTH_FROM)
    compared = {
        f"twice the tokens, from {growth_from} on, at most": f"largest time(2N) / time(N) from {growth_from}",
        "keys that drift, against random ones": f"drifting / random keys at {main}",
        "keys in clusters": f"clustered / random keys at {main}",
        "three curves of 32, cut to the nearest 32, against one": f"three curves of 32 / {PLAIN} at {main}",
        "three curves of 64, cut to the nearest 32, against one cut likewise": f"{THREE_CURVES} / {CUT} at {main}",
        "three curves of 64, cut to the nearest 32, against one of 32": f"{THREE_CURVES} / {PLAIN} at {main}",
        "against FlexAttention's sliding window of 256, without any search": f"ZETA / {FLEX} at {main}",
    }
    lines = [f"| at {main} tokens | times as long |", "|---|---|"]
    for what, prefix in compared.items():
        values = [found.get(f"{prefix}, {direction}") for direction in DIRECTIONS]
        if None not in values:
            lines.append(f"| {what} | {_both([value for value in values if value is not None], '{:.2f}'.format)} |")
    memory = found.get(f"peak extra memory of forward+backward / cuDNN's at {main}")
    return (
        lines
        if memory is None
        else [*lines, f"| peak memory, against cuDNN's attention | {memory:.2f} times as much |"]
    )


def _ms(value: float) -> str:
    return f"{value:,.0f}".replace(",", " ") if value >= 100 else f"{value:.2g}" if value < 1 else f"{value:.3g}"


def _ratio(value: float) -> str:
    return f"{value:.0f}x" if value >= 10 else f"{value:.1f}x"
