"""The demo's results as a table, a plot and JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["save_json", "save_plot", "show_tables"]

COLOURS = {"attention": "#c1272d", "order 3": "#4c72b0", "order 0": "#8c8c8c"}
LABELS = {"attention": "ZETA attention", "order 3": "order-3 counts", "order 0": "order-0 counts"}


def _length(n: int) -> str:
    for unit, size in (("Mi", 1 << 20), ("Ki", 1 << 10)):
        if n % size == 0:
            return f"{n // size} {unit}"
    return str(n)


def _microseconds_per_token(result: dict[str, Any]) -> tuple[list[float], list[float]]:
    """Time per token at each context of the selection with attention, and of dense attention."""
    dense = result["dense"]
    ours = [row["microseconds_per_token"] for row in result["rows"]]
    theirs = [1e6 * s / n for s, n in zip(dense["seconds"], dense["contexts"], strict=True)]
    return ours, theirs


def show_tables(result: dict[str, Any], console: Any) -> None:
    """Print two tables on a rich console."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    text = result["text"]
    title = f"Next byte of {escape(text['source'])}"
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True, title=title)
    table.add_column("context", justify="right", no_wrap=True)
    for measure in ("bits", "acc."):
        for model in ("ZETA", "ord. 3", "ord. 0"):
            table.add_column(f"{measure}\n{model}", justify="right", no_wrap=True)
    for name in ("ZETA", "dense"):
        table.add_column(f"µs/tok\n{name}", justify="right", no_wrap=True)
    for row, ours, theirs, measured in zip(
        result["rows"], *_microseconds_per_token(result), result["dense"]["measured"], strict=True
    ):
        bits, accuracy = row["bits_per_byte"], row["accuracy"]
        table.add_row(
            _length(row["context"]),
            f"[bold]{bits['attention']:.2f}[/]",
            f"{bits['order 3']:.2f}",
            f"{bits['order 0']:.2f}",
            f"[bold]{accuracy['attention']:.3f}[/]",
            f"{accuracy['order 3']:.3f}",
            f"{accuracy['order 0']:.3f}",
            f"{ours:.2f}",
            f"{theirs:.2f}" if measured else f"~{theirs:,.0f}",
        )
    console.print(table)
    console.print(
        f"context C: the last {text['scored']:,} bytes are scored, from C/2 to C bytes before each.\n"
        "bits: per byte, lower is better. acc.: share of bytes guessed right.\n"
        "ord. 3, ord. 0: models that count bytes, and bytes after the same three bytes.\n"
        "µs/tok: per token, selection and attention, forward.\n"
        f"dense: {result['dense']['by']}, a head of {result['dense']['width']} dimensions; ~ is extrapolated.\n",
        highlight=False,
    )
    recall = result["recall"]
    shares = Table(box=box.SIMPLE_HEAD, title=f"Share of the exact search's result ({recall['queries']:,} queries)")
    for name in ("", "nearest keys", "Cauchy mass"):
        shares.add_column(name, justify="right")
    for found in recall["shares"]:
        curves = "one curve" if found["curves"] == 1 else f"{found['curves']} curves"
        shares.add_row(f"{curves}, window {found['window']}", f"{found['keys']:.3f}", f"{found['mass']:.3f}")
    console.print(shares)


def save_json(result: dict[str, Any], path: Path) -> None:
    """Save all figures."""
    path.write_text(json.dumps(result, indent=1) + "\n")


def save_plot(result: dict[str, Any], path: Path) -> None:
    """Plot bits per byte, accuracy and time per token against the context."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    bits, accuracy, speed = figure.subplots(1, 3)
    rows = result["rows"]
    contexts = [row["context"] for row in rows]
    for axes, key, title in ((bits, "bits_per_byte", "bits per byte"), (accuracy, "accuracy", "accuracy")):
        for name, colour in COLOURS.items():
            axes.plot(contexts, [row[key][name] for row in rows], "o-", color=colour, label=LABELS[name])
        axes.set_title(title)
        axes.set_ylim(bottom=0)
    accuracy.set_ylim(0, 1)
    bits.legend(frameon=False)
    ours, theirs = _microseconds_per_token(result)
    dense = result["dense"]
    last = sum(dense["measured"])
    grey = {"color": "#555555", "marker": "s"}
    speed.plot(contexts, ours, "o-", color=COLOURS["attention"], label=LABELS["attention"])
    speed.plot(contexts[:last], theirs[:last], "-", zorder=3, label=f"dense, {dense['by']}", **grey)
    if last < len(contexts):
        speed.plot(contexts[last - 1 :], theirs[last - 1 :], "--", mfc="white", label="dense, extrapolated", **grey)
    speed.set_yscale("log")
    speed.set_title("µs per token, forward")
    speed.legend(frameon=False)
    for axes in (bits, accuracy, speed):
        axes.set_xscale("log", base=2)
        axes.set_xticks(contexts, [_length(n) for n in contexts])
        axes.set_xlabel("context, bytes")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    text = result["text"]
    title = f"Next byte of {text['source']}, without training: the same {text['scored']:,} bytes at every context"
    figure.suptitle(title, x=0.01, ha="left", parse_math=False)  # a file may be called $x$
    figure.savefig(path, dpi=130)
