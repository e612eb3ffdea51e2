"""From times to claims: extrapolated peers, ratios, and what each has to be."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from benchmarks.speed.plan import CUDNN, CUT, DENSE, DIRECTIONS, FLEX, NUMBA_CUDA, PLAIN, THREE_CURVES, ZETA

__all__ = ["GROWTH_FROM", "Figure", "extrapolated", "faster_dense", "figures", "find"]

Row = dict[str, Any]  # contender, kind, variant, length, heads, ms by direction, extra_bytes, extrapolated_from
GROWTH_FROM = 65536


@dataclass(frozen=True)
class Figure:
    """One claim, with what it must be and what is aimed at; None where nothing is asked."""

    name: str
    value: float
    unit: str
    must: float | None = None
    aim: float | None = None
    more_is_better: bool = False

    @property
    def verdict(self) -> str:
        """Say which of the two it reaches."""

        def reaches(bound: float) -> bool:
            return self.value >= bound if self.more_is_better else self.value <= bound

        if self.must is None or self.aim is None:
            return ""
        return "aim" if reaches(self.aim) else "must" if reaches(self.must) else "MISSED"


def find(rows: list[Row], contender: str, length: int, heads: int | None = None, **which: Any) -> Row | None:
    """Find a row; of ours, by default that with random keys and plain options."""
    wanted = {"kind": "random", "variant": PLAIN if contender == ZETA else None, **which}
    for row in rows:
        same = row["contender"] == contender and row["length"] == length and heads in (None, row["heads"])
        if same and all(row[key] == value for key, value in wanted.items()):
            return row
    return None


def extrapolated(rows: list[Row]) -> list[Row]:
    """Make rows of the dense peers at our longer lengths: pairs times heads, from the longest that was measured."""
    ours = {(row["length"], row["heads"]) for row in rows if row["contender"] == ZETA}
    found = []
    for contender in DENSE:
        measured = [row for row in rows if row["contender"] == contender and len(row["ms"]) == len(DIRECTIONS)]
        if not measured:
            continue
        longest = max(measured, key=lambda row: row["length"])
        for length, heads in sorted(ours):
            if length <= longest["length"]:
                continue
            factor = (length / longest["length"]) ** 2 * heads / longest["heads"]
            ms = {direction: value * factor for direction, value in longest["ms"].items()}
            row = {"length": length, "heads": heads, "ms": ms, "extrapolated_from": longest["length"]}
            found.append({**longest, **row, "extra_bytes": None})
    return found


def faster_dense(rows: list[Row], length: int, heads: int, direction: str) -> Row | None:
    """Find the dense peer that takes least, measured or extrapolated."""
    rivals = [find(rows, contender, length, heads) for contender in DENSE]
    able = [row for row in rivals if row is not None and direction in row["ms"]]
    return min(able, key=lambda row: row["ms"][direction], default=None)


def _against_dense(rows: list[Row], length: int, heads: int, direction: str) -> float | None:
    mine, rival = find(rows, ZETA, length, heads), faster_dense(rows, length, heads, direction)
    return rival["ms"][direction] / mine["ms"][direction] if mine and rival else None


def _crossover(rows: list[Row], direction: str) -> float | None:
    """Shortest measured length from which on ours is faster at every measured one."""
    crossed = None
    measured = sorted(
        {(row["length"], row["heads"]) for row in rows if row["contender"] in DENSE and "extrapolated_from" not in row}
    )
    for length, heads in reversed(measured):
        ratio = _against_dense(rows, length, heads, direction)
        if ratio is None or ratio < 1:
            break
        crossed = length
    return crossed


def _growth(rows: list[Row], direction: str, first: int) -> float | None:
    """Largest ratio of the times of neighbouring lengths, at equal heads."""
    ratios = []
    for heads in {row["heads"] for row in rows}:
        mine = [find(rows, ZETA, length, heads) for length in sorted({row["length"] for row in rows})]
        able = [row for row in mine if row is not None and row["length"] >= first]
        ratios += [
            long["ms"][direction] / short["ms"][direction]
            for short, long in pairwise(able)
            if long["length"] == 2 * short["length"]
        ]
    return max(ratios, default=None)


def _between(rows: list[Row], length: int, direction: str, against: str = PLAIN, **which: Any) -> float | None:
    """Time of one of our rows against that of a variant with random keys."""
    one, other = find(rows, ZETA, length, **which), find(rows, ZETA, length, variant=against)
    return one["ms"][direction] / other["ms"][direction] if one and other else None


def figures(device: str, rows: list[Row], main: int, host_seconds: float | None) -> list[Figure]:
    """List all claims that the rows allow. `rows` include the extrapolated ones."""
    found: list[Figure] = []

    def add(name: str, value: float | None, unit: str = "x", *bounds: float, more_is_better: bool = False) -> None:
        if value is not None:
            found.append(Figure(name, value, unit, *bounds, more_is_better=more_is_better))

    cuda = device == "cuda"
    mine = find(rows, ZETA, main)
    heads = mine["heads"] if mine else 0
    dense_bounds = {"forward": (25.0, 45.0), "forward+backward": (30.0, 45.0)} if cuda else {}
    growth_bounds, kind_bounds, curve_bounds = ((2.2, 2.05), (3.0, 1.5), (3.5, 2.5)) if cuda else ((), (), ())
    local_bounds = {"forward": (1.0, 0.6), "forward+backward": (0.8, 0.5)}
    at = f"at {main:,}".replace(",", " ")
    for direction in DIRECTIONS:
        ratio = _against_dense(rows, main, heads, direction)
        bounds = dense_bounds.get(direction, (20.0, 60.0))
        add(f"faster dense / ZETA {at}, {direction}", ratio, "x", *bounds, more_is_better=True)
    for direction in DIRECTIONS:
        local = find(rows, FLEX, main, heads)
        if mine and local and direction in local["ms"]:
            ratio = mine["ms"][direction] / local["ms"][direction]
            add(f"ZETA / {FLEX} {at}, {direction}", ratio, "x", *local_bounds[direction])
    longest = max((row["length"] for row in rows if row["contender"] == ZETA), default=0)
    if cuda and longest == 1048576:
        ratio = _against_dense(rows, longest, 4, "forward")
        name = "faster dense, extrapolated / ZETA at 1 048 576 with 4 heads, forward"
        add(name, ratio, "x", 300, 600, more_is_better=True)
    if cuda:
        for direction in DIRECTIONS:
            add(f"crossover, {direction}", _crossover(rows, direction), " tokens", 8192, 4096)
        rival = find(rows, CUDNN, main, heads)
        if mine and rival and rival["extra_bytes"] and mine["extra_bytes"]:
            ratio = mine["extra_bytes"] / rival["extra_bytes"]
            add(f"peak extra memory of forward+backward / cuDNN's {at}", ratio, "x", 1.5, 1.0)
    for direction in DIRECTIONS:
        first = GROWTH_FROM if cuda else main
        value = _growth(rows, direction, first)
        add(f"largest time(2N) / time(N) from {first:,}, {direction}".replace(",", " ", 1), value, "x", *growth_bounds)
    for direction in DIRECTIONS:
        for kind in sorted({row["kind"] for row in rows} - {"random"}):
            add(
                f"{kind} / random keys {at}, {direction}", _between(rows, main, direction, kind=kind), "x", *kind_bounds
            )
    for direction in DIRECTIONS:
        for variant, one_curve in (("three curves of 32", PLAIN), (THREE_CURVES, CUT)):
            value = _between(rows, main, direction, one_curve, variant=variant)
            add(f"{variant} / {one_curve} {at}, {direction}", value, "x", *curve_bounds)
        value = _between(rows, main, direction, variant=THREE_CURVES)  # other options, so that nothing is asked of it
        add(f"{THREE_CURVES} / {PLAIN} {at}, {direction}", value, "x")
    for direction in DIRECTIONS:
        other = find(rows, NUMBA_CUDA, main, heads)
        if mine and other and direction in other["ms"]:
            add(f"numba_cuda / cupy {at}, {direction}", other["ms"][direction] / mine["ms"][direction], "x", 4.0, 3.0)
    if host_seconds is not None:
        add("host time per eager call, no gradients", 1e6 * host_seconds, " us", 200, 80)
    return found
