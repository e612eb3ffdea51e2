"""The command line: `python -m zeta_ops demo` and `python -m zeta_ops info`."""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import sys
import time
from importlib import import_module, util
from itertools import count
from pathlib import Path


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    parser = argparse.ArgumentParser(prog="zeta_ops", description="ZETA attention along Z-order curves.")
    commands = parser.add_subparsers(dest="command", required=True)
    demo = commands.add_parser("demo", help="predict the next byte of a text by attention, without training")
    demo.add_argument("--text", type=Path, help="a file; default: the sources of the standard library")
    demo.add_argument(
        "--bytes",
        type=int,
        default=1 << 20,
        help="how much of it to read (default: 1 MiB, for which 1 to 3 GB of memory are needed)",
    )
    demo.add_argument("--output", type=Path, default=Path(), help="folder for demo.png and demo.json")
    commands.add_parser("info", help="show versions, backends and what to install")
    given = parser.parse_args(arguments)
    if given.command == "info":
        return _info()
    command = shlex.join(["python", "-m", "zeta_ops", *(sys.argv[1:] if arguments is None else arguments)])
    return _demo(given.text, given.bytes, given.output, command)


def _demo(path: Path | None, num_bytes: int, output: Path, command: str) -> int:
    missing = [name for name in ("rich", "matplotlib") if util.find_spec(name) is None]
    if missing:
        print(f"The demo needs {' and '.join(missing)}: pip install 'zeta-ops[demo]'", file=sys.stderr)
        return 2
    from rich.console import Console
    from rich.progress import Progress

    from zeta_ops.demo.report import save_json, save_plot, show_tables
    from zeta_ops.demo.run import measure, steps
    from zeta_ops.demo.text import MIN_BYTES, read_text

    if not output.is_dir():
        print(f"--output must be an existing folder; got {output}", file=sys.stderr)
        return 2
    if num_bytes < MIN_BYTES:
        print(f"--bytes must be at least {MIN_BYTES}; got {num_bytes}", file=sys.stderr)
        return 2
    try:
        text = read_text(path, num_bytes)
    except (OSError, ValueError) as error:
        print(f"--text: {error}", file=sys.stderr)
        return 2
    console = Console()
    start = time.perf_counter()
    source = (
        f"the standard library of Python {platform.python_version()}"
        if path is None
        else os.fsencode(path.name).decode(errors="replace")
    )
    names = steps(len(text))
    numbers = count()
    with Progress(console=console) as bar:
        task = bar.add_task("", total=len(names))

        def begin() -> None:
            number = next(numbers)
            bar.update(task, completed=number, description=names[number])

        result = measure(text, source, command, begin)
        bar.update(task, completed=len(names), description="done")
    save_json(result, output / "demo.json")
    save_plot(result, output / "demo.png")
    show_tables(result, console)  # last: a reader of the output may have gone away
    console.print(f"Saved {output / 'demo.json'} and {output / 'demo.png'}; {time.perf_counter() - start:.0f} s.")
    return 0


def _info() -> int:
    info = import_module("zeta_ops.info")
    print(info.describe())
    return 0


if __name__ == "__main__":
    sys.exit(main())
