"""A result as tables on the terminal and as a plot."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.speed.figures import Figure, Row, extrapolated, faster_dense, figures, find
from benchmarks.speed.limits import limit_of
from benchmarks.speed.plan import CPU_DENSE, CUDNN, DIRECTIONS, FLASH, FLEX, PLAIN, ZETA

__all__ = ["all_figures", "described_figures", "length_text", "save_plot", "tables"]

LOOKS = {ZETA: "#0b6e4f", FLASH: "#c1666b", CUDNN: "#7b2d26", CPU_DENSE: "#7b2d26", FLEX: "#5b7db1"}


def all_figures(result: dict[str, Any]) -> list[Figure]:
    """List the claims of a result."""
    rows = [*result["rows"], *extrapolated(result["rows"])]
    return figures(result["device"], rows, result["setting"]["main"], result.get("host_seconds"))


def described_figures(result: dict[str, Any]) -> list[dict[str, Any]]:
    """List the claims with what they come to, and what is in the way of an aim that is not reached."""
    return [
        asdict(figure) | {"verdict": figure.verdict, "in_the_way": _in_the_way(figure, result)}
        for figure in all_figures(result)
    ]


def _in_the_way(figure: Figure, result: dict[str, Any]) -> str | None:
    return limit_of(figure.name, result["device"]) if figure.verdict in ("must", "MISSED") else None


def length_text(n: int) -> str:
    """Write a length as the tables do: 65 536."""
    return f"{n:,}".replace(",", " ")


def _row_line(row: Row, rows: list[Row]) -> str:
    what = row["contender"] if row["variant"] is None else f"{row['contender']}, {row['variant']}, {row['kind']} keys"
    line = f"{length_text(row['length']):>9s} {row['heads']:5d}  {what:48s}"
    mark = "~" if "extrapolated_from" in row else ""
    for direction in DIRECTIONS:
        ms = row["ms"].get(direction)
        line += f"{'-' if ms is None else f'{mark}{ms:.3f}':>12s}"
    for direction in DIRECTIONS:
        rival = faster_dense(rows, row["length"], row["heads"], direction)
        able = rival is not None and direction in row["ms"]
        line += f"{rival['ms'][direction] / row['ms'][direction]:9.2f}" if able and rival else f"{'':9s}"
    extra = row.get("extra_bytes")
    return line + (f"{extra / 2**20:10.0f}" if extra else "")


def tables(result: dict[str, Any]) -> str:
    """Lay out times, steps and claims."""
    rows = [*result["rows"], *extrapolated(result["rows"])]
    head = f"{'tokens':>9s} {'heads':>5s}  {'':48s}{'fwd ms':>12s}{'fwd+bwd ms':>12s}"
    lines = [head + f"{'dense/':>9s}{'dense/':>9s}{'MiB':>10s}"]
    ordered = sorted(rows, key=lambda row: (row["length"], -row["heads"], row["contender"] == ZETA))
    lines += [_row_line(row, rows) for row in ordered]
    lines.append("~ is extrapolated quadratically. dense/: time of the faster dense attention over that of the row.")
    for name, why in result.get("refused", {}).items():
        lines.append(f"not measured: {name}: {why}")
    for name, directions in result.get("steps", {}).items():
        lines += ["", f"Steps, {name}"]
        for direction, found in directions.items():
            lines.append(f"  {direction}: {found['total_ms']:.3f} ms, of which between and beside the steps "
                         f"{found['rest_ms']:.3f}")  # fmt: skip
            for step, one in found["steps"].items():
                lines.append(f"    {step:36s}{one['launches']:4d} x{one['ms']:10.3f} ms")
    lines += ["", f"{'':72s}{'':>14s}{'must':>9s}{'aim':>9s}"]
    for figure in all_figures(result):
        bounds = "".join(f"{'' if bound is None else f'{bound:g}':>9s}" for bound in (figure.must, figure.aim))
        digits = 0 if figure.unit == " tokens" else 2 if figure.value < 100 else 1
        value = f"{figure.value:.{digits}f}{figure.unit}"
        lines.append(f"{figure.name:72s}{value:>14s}{bounds}  {figure.verdict}")
        if limit := _in_the_way(figure, result):
            lines.append(f"    in the way of the aim: {limit}")
    return "\n".join(lines)


def save_plot(result: dict[str, Any], path: Path) -> None:
    """Plot time against length, forward and with backward, for ours and the peers."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Page

    rows = [*result["rows"], *extrapolated(result["rows"])]
    figure = Page(figsize=(11, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2, sharey=True)
    lengths = sorted({row["length"] for row in rows})
    for axes, direction in zip(panels, DIRECTIONS, strict=True):
        for contender, colour in LOOKS.items():
            _draw(axes, rows, lengths, contender, direction, colour)
        axes.set(xscale="log", yscale="log", xlabel="tokens", title=direction.replace("+", " + "))
        axes.set_xscale("log", base=2)
        axes.set_xticks(lengths, [_short(n) for n in lengths], minor=False)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("ms per head")
    panels[0].legend(frameon=False, loc="upper left", fontsize="small")
    setting = result["setting"]
    title = f"{result['device_name']}: {setting['value_dtype']} values of width {setting['dv']}, causal, {PLAIN}"
    figure.suptitle(title, x=0.01, ha="left")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130, format="png")


def _draw(axes: Any, rows: list[Row], lengths: list[int], contender: str, direction: str, colour: str) -> None:
    """Draw one line, dashed where it is extrapolated; a length that was measured with several numbers of heads once."""
    points = []
    for length in lengths:
        row = find(rows, contender, length)
        if row is not None and direction in row["ms"]:
            points.append((length, row["ms"][direction] / row["heads"], "extrapolated_from" in row))
    if not points:
        return
    measured = [point for point in points if not point[2]]
    axes.plot(*zip(*[p[:2] for p in measured], strict=True), "o-", color=colour, label=contender)
    guessed = [measured[-1], *[point for point in points if point[2]]]
    if len(guessed) > 1:
        axes.plot(*zip(*[p[:2] for p in guessed], strict=True), "--", color=colour, label=f"{contender}, extrapolated")


def _short(n: int) -> str:
    return f"{n // 2**20} Mi" if n >= 2**20 else f"{n // 1024} Ki"
