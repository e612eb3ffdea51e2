"""Learn associative recall: standard attention and ZETA attention side by side, in PyTorch.

    python -m examples.recall

Each sequence holds key-value pairs, then asks for the values of the keys (multi-query associative recall). Two models
that differ only in their attention train on fresh sequences at every step, each until it answers 99.5 % of a validation
set's queries; then both answer a test set once. The same seed gives both the same sequences. With standard attention a
token compares itself with all earlier tokens, with ZETA attention with `--top-k` of them and their mean.

It shows a table, saves the curves as a plot and all figures as JSON, and fails (exit status 1) if a model answers less
than 99 % of the test set. About a minute on two cores; no GPU, nothing to download.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from importlib import util
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

ATTENTIONS = ("standard", "zeta")
ENOUGH = 0.99  # of the test set's queries
STOP = 0.995  # of the validation set's, so that a model that has just reached it is not below ENOUGH by chance
WARM_UP = 50
EVALUATE_EVERY = 25
BATCH = 64
NUM_HELD_OUT = 1024
VALIDATION_SEED, TEST_SEED = 1_000_001, 1_000_002
COLOURS = {"standard": "#555555", "zeta": "#c1272d"}
NEEDED = {"torch": "torch", "rich": "demo", "matplotlib": "demo"}


def parser() -> argparse.ArgumentParser:
    """Define the command line."""
    p = argparse.ArgumentParser(
        prog="python -m examples.recall",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    task = p.add_argument_group("task")
    task.add_argument("--length", type=int, default=32, help="tokens of a sequence (default: 32)")
    task.add_argument("--pairs", type=int, default=6, help="key-value pairs in it (default: 6)")
    task.add_argument("--vocabulary", type=int, default=256, help="half of it keys, half values (default: 256)")
    model = p.add_argument_group("model (two layers without MLPs)")
    model.add_argument("--dim", type=int, default=64, help="width (default: 64)")
    model.add_argument("--heads", type=int, default=4, help="heads (default: 4)")
    model.add_argument("--top-k", type=int, default=8, help="keys that a ZETA query attends to (default: 8)")
    training = p.add_argument_group("training (AdamW, weight decay 0.1, batches of 64)")
    training.add_argument("--rate", type=float, default=3e-3, help="learning rate (default: 0.003)")
    training.add_argument("--steps", type=int, default=2000, help="stop after so many in any case (default: 2000)")
    training.add_argument("--seeds", type=int, nargs="+", default=[0], help="train once with each (default: 0)")
    output = p.add_argument_group("output")
    output.add_argument("--json", type=Path, default=Path("recall.json"), help="where the figures go")
    output.add_argument("--plot", type=Path, default=Path("recall.png"), help="where the plot goes")
    return p


def main(arguments: list[str] | None = None) -> int:
    """Run the example and return the exit status."""
    given = parser().parse_args(arguments)
    missing = sorted({extra for module, extra in NEEDED.items() if util.find_spec(module) is None})
    if missing:
        print(f"This example needs more packages: pip install 'zeta-ops[{','.join(missing)}]'", file=sys.stderr)
        return 2
    for path in (given.json, given.plot):
        if not path.parent.is_dir():
            print(f"{path.parent} must be an existing folder", file=sys.stderr)
            return 2
    import torch
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from benchmarks.environment import describe

    # Tensors this small gain nothing from threads, and threads that wait for each other take minutes on a busy machine.
    torch.set_num_threads(1)
    console = Console()
    about = describe()  # now, because the sources may change while it runs
    runs = []
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, TextColumn("accuracy {task.fields[accuracy]:.3f}"), console=console) as bar:
        for seed in given.seeds:
            for attention in ATTENTIONS:
                task = bar.add_task(f"{attention}, seed {seed}", total=given.steps, accuracy=0.0)

                def report(step: int, accuracy: float, task: Any = task) -> None:
                    bar.update(task, completed=step, accuracy=accuracy)

                runs.append(train(attention, seed, given, report))
                bar.update(task, total=runs[-1]["steps"], completed=runs[-1]["steps"])
    command = shlex.join(["python", "-m", "examples.recall", *(sys.argv[1:] if arguments is None else arguments)])
    settings = {name: value for name, value in vars(given).items() if name not in ("json", "plot", "seeds")}
    result = {**about, "command": command, "settings": settings, "runs": runs}
    given.json.write_text(json.dumps(result, indent=1) + "\n")
    save_plot(runs, given.plot)
    show_table(runs, console)
    console.print(f"Saved {given.json} and {given.plot}.")
    failed = [run for run in runs if run["test_accuracy"] < ENOUGH]
    for run in failed:
        print(f"{run['attention']}, seed {run['seed']}: less than {ENOUGH} on the test set", file=sys.stderr)
    return 1 if failed else 0


def train(attention: str, seed: int, given: argparse.Namespace, report: Callable[[int, float], None]) -> dict[str, Any]:
    """Train one model until it answers enough of the validation set, and test it once."""
    import numpy as np
    import torch
    from torch.nn import functional

    from examples.model_options import ModelOptions
    from examples.recall_data import NO_TARGET, recall_batch
    from examples.torch_model import CausalLM
    from zeta_ops.adapters.layers import LayerOptions

    def draw(rng: np.random.Generator, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        task = {"length": given.length, "num_pairs": given.pairs, "vocab_size": given.vocabulary}
        tokens, targets = recall_batch(rng, count, **task)
        return torch.from_numpy(tokens), torch.from_numpy(targets)

    layer = LayerOptions(given.dim, num_heads=given.heads, top_k=given.top_k)
    torch.manual_seed(seed)
    model = CausalLM(ModelOptions(given.vocabulary, 2, layer, attention))
    optimizer = torch.optim.AdamW(model.parameters(), lr=given.rate, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / WARM_UP))
    rng = np.random.default_rng(seed)
    validation, test = (draw(np.random.default_rng(s), NUM_HELD_OUT) for s in (VALIDATION_SEED, TEST_SEED))
    curve: list[tuple[int, float]] = []
    seconds = 0.0
    while not curve or (curve[-1][1] < STOP and curve[-1][0] < given.steps):
        done = curve[-1][0] if curve else 0
        start = time.perf_counter()
        for _ in range(min(EVALUATE_EVERY, given.steps - done)):
            tokens, targets = draw(rng, BATCH)
            asked = targets != NO_TARGET
            loss = functional.cross_entropy(model(tokens)[asked], targets[asked])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            done += 1
        seconds += time.perf_counter() - start
        curve.append((done, accuracy(model, *validation)))
        report(*curve[-1])
    return {
        "attention": attention,
        "seed": seed,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "steps": curve[-1][0],
        "seconds": round(seconds, 2),
        "test_accuracy": accuracy(model, *test),
        "validation_curve": curve,
    }


def accuracy(model: torch.nn.Module, tokens: torch.Tensor, targets: torch.Tensor) -> float:
    """Share of the queries that the model answers with the right one of all tokens."""
    import torch

    from examples.recall_data import NO_TARGET

    asked = targets != NO_TARGET
    with torch.no_grad():
        return float((model(tokens)[asked].argmax(-1) == targets[asked]).double().mean())


def show_table(runs: list[dict[str, Any]], console: Any) -> None:
    """Print a row for each run on a rich console."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, title="Associative recall")
    table.add_column("attention")
    for name in ("seed", "parameters", "steps", "seconds", "ms/step", "test accuracy"):
        table.add_column(name, justify="right")
    for run in runs:
        each = 1000 * run["seconds"] / run["steps"]
        figures = f"{run['seed']}", f"{run['parameters']:,}", f"{run['steps']}", f"{run['seconds']:.1f}", f"{each:.1f}"
        table.add_row(run["attention"], *figures, f"[bold]{run['test_accuracy']:.4f}[/]")
    console.print(table)


def save_plot(runs: list[dict[str, Any]], path: Path) -> None:
    """Plot the validation accuracy of every run against its steps."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for attention in ATTENTIONS:
        curves = [run["validation_curve"] for run in runs if run["attention"] == attention]
        for n, curve in enumerate(curves):
            steps, shares = zip(*curve, strict=True)
            label = None if n else {"standard": "standard attention", "zeta": "ZETA attention"}[attention]
            axes.plot(steps, shares, color=COLOURS[attention], label=label)
            axes.plot(steps[-1], shares[-1], "o", color=COLOURS[attention])
    axes.axhline(ENOUGH, color="#999999", linewidth=0.8, linestyle="--")
    axes.set(ylim=(0, 1.03), xlabel="training steps", ylabel="validation accuracy")
    axes.set_title("Associative recall, one line for each seed", loc="left")
    axes.legend(frameon=False, loc="lower right")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130, format="png")


if __name__ == "__main__":
    sys.exit(main())
