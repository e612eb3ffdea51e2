"""The speed benchmark: what it makes of times, its mask, and a whole run at small lengths."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from benchmarks.speed import __main__ as command  # noqa: E402
from benchmarks.speed.contenders import sliding_window  # noqa: E402
from benchmarks.speed.figures import Figure, extrapolated, faster_dense, figures  # noqa: E402
from benchmarks.speed.plan import (  # noqa: E402
    CPU_DENSE,
    CUDNN,
    DIRECTIONS,
    FLASH,
    FLEX,
    NUMBA_CUDA,
    PLAIN,
    ZETA,
    Group,
    Plan,
    plan_for,
)
from benchmarks.speed.report import described_figures, tables  # noqa: E402


def row(contender: str, length: int, forward: float, both: float, heads: int = 16, **changes: Any) -> dict[str, Any]:
    ours = contender == ZETA
    return {
        "contender": contender, "kind": "random", "variant": PLAIN if ours else None, "length": length, "heads": heads,
        "ms": dict(zip(DIRECTIONS, (forward, both), strict=True)), "extra_bytes": 100 if ours else 200, **changes,
    }  # fmt: skip


ROWS = [
    row(FLASH, 4096, 0.2, 0.7), row(CUDNN, 4096, 0.1, 0.8), row(ZETA, 4096, 0.15, 0.5),
    row(FLASH, 8192, 0.6, 2.0), row(CUDNN, 8192, 0.4, 1.5), row(ZETA, 8192, 0.2, 1.0),
    row(FLASH, 65536, 28.0, 105.0), row(CUDNN, 65536, 20.0, 70.0), row(FLEX, 65536, 0.7, 3.0),
    row(ZETA, 65536, 0.5, 2.0), row(NUMBA_CUDA, 65536, 1.5, 6.0),
    row(ZETA, 65536, 1.0, 3.0, kind="drifting"), row(ZETA, 131072, 1.05, 4.4),
    row(ZETA, 524288, 1.0, 4.0, heads=4), row(ZETA, 1048576, 2.1, 8.2, heads=4),
]  # fmt: skip


def by_name(rows: list[dict[str, Any]]) -> dict[str, Figure]:
    found = figures("cuda", [*rows, *extrapolated(rows)], 65536, 100e-6)
    assert len({figure.name for figure in found}) == len(found)
    return {figure.name: figure for figure in found}


def test_dense_peers_are_extrapolated_by_pairs_and_heads() -> None:
    found = {(x["contender"], x["length"], x["heads"]): x for x in extrapolated(ROWS)}
    assert set(found) == {(name, n, h) for name in (FLASH, CUDNN) for n, h in ((131072, 16), (524288, 4), (1048576, 4))}
    assert found[CUDNN, 131072, 16]["ms"] == {"forward": 80.0, "forward+backward": 280.0}
    assert found[CUDNN, 1048576, 4]["ms"]["forward"] == 20.0 * 256 / 4
    assert all(x["extrapolated_from"] == 65536 for x in found.values())


def test_the_faster_dense_is_chosen_for_each_direction() -> None:
    faster = [faster_dense(ROWS, 4096, 16, direction)["contender"] for direction in DIRECTIONS]
    assert faster == [CUDNN, FLASH]
    refused = [{**x, "ms": {"forward": 1.0}} if x["contender"] == FLASH else x for x in ROWS]
    assert faster_dense(refused, 4096, 16, "forward+backward")["contender"] == CUDNN
    assert faster_dense(ROWS, 4096, 4, "forward") is None


def test_figures() -> None:
    found = by_name(ROWS)
    values = {name: figure.value for name, figure in found.items()}
    assert values["faster dense / ZETA at 65 536, forward"] == 40.0
    assert values[f"ZETA / {FLEX} at 65 536, forward+backward"] == pytest.approx(2 / 3)
    assert values["faster dense, extrapolated / ZETA at 1 048 576 with 4 heads, forward"] == pytest.approx(1280 / 2.1)
    assert values["crossover, forward"] == 8192
    assert values["crossover, forward+backward"] == 4096
    assert values["peak extra memory of forward+backward / cuDNN's at 65 536"] == 0.5
    assert values["largest time(2N) / time(N) from 65 536, forward"] == pytest.approx(2.1)
    assert values["largest time(2N) / time(N) from 65 536, forward+backward"] == pytest.approx(2.2)
    assert values["drifting / random keys at 65 536, forward"] == 2.0
    assert values["numba_cuda / cupy at 65 536, forward"] == 3.0
    assert values["host time per eager call, no gradients"] == pytest.approx(100)
    verdicts = {name: figure.verdict for name, figure in found.items()}
    assert verdicts["faster dense / ZETA at 65 536, forward"] == "must"
    assert verdicts["crossover, forward+backward"] == "aim"
    assert verdicts["drifting / random keys at 65 536, forward"] == "must"


def test_what_is_in_the_way_of_an_aim_is_said() -> None:
    result = {"device": "cuda", "rows": ROWS, "setting": {"main": 65536}, "host_seconds": 1e-4}
    described = {figure["name"]: figure for figure in described_figures(result)}
    missing = {name for name, figure in described.items() if figure["verdict"] in ("must", "MISSED")}
    assert missing and missing != set(described)
    for name, figure in described.items():
        assert (figure["in_the_way"] is not None) == (name in missing), name
    assert tables({**result, "steps": {}}).count("in the way of the aim") == len(missing)


@pytest.mark.parametrize(
    ("value", "more_is_better", "verdict"),
    [(1.0, False, "aim"), (1.5, False, "must"), (2.1, False, "MISSED"), (1.0, True, "MISSED"), (2.5, True, "must")],
)
def test_verdicts(value: float, more_is_better: bool, verdict: str) -> None:
    must, aim = (2.0, 3.0) if more_is_better else (2.0, 1.0)
    assert Figure("x", value, "x", must, aim, more_is_better).verdict == verdict


def test_growth_compares_equal_heads_only() -> None:
    rows = [row(ZETA, 65536, 1, 1), row(ZETA, 131072, 9, 9, heads=4), row(ZETA, 262144, 18, 18, heads=4)]
    assert by_name(rows)["largest time(2N) / time(N) from 65 536, forward"].value == 2.0


def test_tables_mark_what_is_extrapolated_and_name_what_was_refused() -> None:
    steps = {"forward": {"total_ms": 0.5, "rest_ms": 0.1, "steps": {"ranges": {"launches": 3, "ms": 0.4}}}}
    result = {
        "device": "cuda", "rows": ROWS, "setting": {"main": 65536}, "host_seconds": 1e-4,
        "refused": {"dense, cuDNN, forward, 131072 tokens": "no kernel"}, "steps": {"plain": steps},
    }  # fmt: skip
    text = tables(result)
    assert "~80.000" in text and "~20" not in text
    assert "not measured: dense, cuDNN, forward, 131072 tokens: no kernel" in text
    assert "ranges" in text and "MISSED" not in text


@pytest.mark.parametrize("length", [128, 256, 1024])
def test_the_mask_of_the_sliding_window(length: int) -> None:
    from torch.nn.attention.flex_attention import create_block_mask

    mine = sliding_window(length, "cpu")
    expected = create_block_mask(mine.mask_mod, None, None, length, length, device="cpu", BLOCK_SIZE=128)
    assert torch.equal(mine.to_dense(), expected.to_dense())
    q, k = torch.arange(length)[:, None], torch.arange(length)
    assert torch.equal(mine.mask_mod(0, 0, q, k), (k <= q) & (k > q - 256))
    blocks = length // 128
    full = torch.zeros(blocks, blocks, dtype=torch.bool)
    for i in range(blocks):  # blocks that are seen in every pair need no mask
        for j in mine.full_kv_indices[0, 0, i, : mine.full_kv_num_blocks[0, 0, i]].tolist():
            full[i, j] = True
            assert mine.mask_mod(0, 0, q[128 * i : 128 * (i + 1)], k[128 * j : 128 * (j + 1)]).all()
    assert full.sum() == blocks - 1


@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_plans_hold_what_figures_need(device: str, quick: bool) -> None:
    plan = plan_for(device, quick)
    lengths = {(group.length, group.heads) for group in plan.groups}
    assert len(lengths) == len(plan.groups)
    (main,) = [group for group in plan.groups if group.length == plan.main]
    assert main.peers and {kind for kind, _ in main.ours} >= {"random", "clustered", "drifting"}
    assert set(plan.steps) <= set(main.ours)
    if device == "cuda":
        assert plan.host_length in {length for length, _ in lengths}
        assert (1048576, 4) in lengths and plan.rounds >= 20 and plan.dense_rounds >= 20


def test_a_whole_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    ours = ("random", PLAIN), ("drifting", "history token")
    groups = Group(512, 2, ours, (CPU_DENSE,)), Group(1024, 2)
    small = Plan("numba", "float32", "best", rounds=2, dense_rounds=1, main=512, groups=groups)
    monkeypatch.setattr(command, "plan_for", lambda *_: small)
    monkeypatch.setattr(command.sys, "argv", ["speed"])
    path, plot = tmp_path / "speed.json", tmp_path / "speed.png"
    arguments = ["--device", "cpu", "--json", str(path)]
    assert command.main(arguments) == 0
    result = json.loads(path.read_text())
    assert result["command"] == f"python -m benchmarks.speed --device cpu --json {path}"
    assert [(row["contender"], row["length"]) for row in result["rows"]] == [
        (ZETA, 512), (ZETA, 512), (CPU_DENSE, 512), (ZETA, 1024)
    ]  # fmt: skip
    assert all(value > 0 for row in result["rows"] for value in row["ms"].values())
    assert set(result["errors"]) == {f"random keys, {PLAIN}", "drifting keys, history token"}
    assert result["figures"]
    first = capsys.readouterr().out
    assert command.main(["--show", str(path), "--plot", str(plot)]) == 0
    assert tables(result) in capsys.readouterr().out and tables(result) in first
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_a_wrong_result_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    import zeta_ops
    from benchmarks.speed import check

    right = zeta_ops.zeta_attention
    plan = Plan("numba", "float32", "best", 1, 1, 512, (Group(512, 2),))
    monkeypatch.setattr(check, "LENGTH", 64)
    check.check(plan, "cpu")
    monkeypatch.setattr(zeta_ops, "zeta_attention", lambda *x, **options: 1.001 * right(*x, **options))
    with pytest.raises(SystemExit, match=r"random keys.*off by"):
        check.check(plan, "cpu")


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert command.main([]) == 2
    assert "--device cpu" in capsys.readouterr().err
