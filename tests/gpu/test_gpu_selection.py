"""Selections at real sizes: those of the `numba` backend bit for bit, without a leak, in bounded time."""

from __future__ import annotations

import statistics
from dataclasses import replace

import numpy as np
import pytest
from cases import FINITE_KINDS, KINDS
from checks import assert_close, assert_same_bits

torch = pytest.importorskip("torch", reason="torch is not installed")

from problems import (  # noqa: E402
    OPTION_IDS,
    OPTIONS,
    Problem,
    draw,
    on_cpu,
    reference_selection,
    results,
    selection,
)

LENGTH = 65536
MILLION = 2**20
SLOWEST = 20  # times as long as random keys; without the skip index hostile keys take some hundred times as long


def assert_selects_the_same(problem: Problem) -> None:
    assert_same_bits(selection(problem).cpu().numpy(), reference_selection(problem), "selection")


@pytest.mark.parametrize("options", OPTIONS, ids=OPTION_IDS)
@pytest.mark.parametrize("kind", KINDS)
def test_selects_as_numba_does(device: str, kind: str, options: dict) -> None:
    assert_selects_the_same(draw(device, LENGTH, heads=2, kv_heads=1, dim=1, kind=kind, **options))


@pytest.mark.parametrize("key_dim", [1, 2, 4, 5, 8])
def test_selects_as_numba_does_in_other_dimensions(device: str, key_dim: int) -> None:
    assert_selects_the_same(draw(device, LENGTH, heads=2, key_dim=key_dim, dim=1, top_k=32))


@pytest.mark.parametrize("length", [LENGTH - 1, LENGTH + 1, 50000, 1025])
def test_selects_as_numba_does_at_odd_lengths(device: str, length: int) -> None:
    assert_selects_the_same(draw(device, length, heads=3, dim=1, top_k=17, window=33))


def test_selects_as_numba_does_in_packed_sequences(device: str) -> None:
    borders = torch.tensor([0, 0, 1, 40, 20000, 20000, 52768, LENGTH], dtype=torch.int32, device=device)
    assert_selects_the_same(draw(device, LENGTH, heads=2, dim=1, top_k=32, num_curves=3, cu_seqlens=borders))


def test_searches_exactly_as_numba_does(device: str) -> None:
    assert_selects_the_same(draw(device, 8192, heads=2, dim=1, kind="ties", top_k=32, search="exact"))


@pytest.mark.parametrize("kind", ["random", "drift"])
def test_selects_among_a_million_as_numba_does(device: str, kind: str) -> None:
    assert_selects_the_same(draw(device, MILLION, heads=1, dim=1, kind=kind, top_k=32))


@pytest.mark.parametrize("kind", FINITE_KINDS)
@pytest.mark.parametrize("options", [OPTIONS[0], OPTIONS[3]], ids=[OPTION_IDS[0], OPTION_IDS[3]])
def test_the_future_changes_nothing(device: str, kind: str, options: dict) -> None:
    """Selections before p are the same; outputs are, but for how a tile groups its sums."""
    p = 40000
    case = draw(device, LENGTH, dtype=torch.float32, **options)
    other = draw(device, LENGTH, dtype=torch.float32, kind=kind, seed=1)
    later = replace(case, **{name: getattr(case, name).clone() for name in ("q", "k", "v", "grad_out")})
    for name in ("q", "k", "v"):
        getattr(later, name)[:, :, p:] = getattr(other, name)[:, :, p:]
    for problem in (case, later):
        problem.grad_out[:, :, p:] = 0  # a loss that sees the past only
    assert not torch.equal(case.k, later.k)
    assert torch.equal(selection(later)[:, :, :p], selection(case)[:, :, :p])
    mine, expected = results(later), results(case)
    for name, tensor in expected.items():
        part = slice(None) if name == "gradient of gamma" else (slice(None), slice(None), slice(p))
        assert_close(on_cpu(mine[name][part]), on_cpu(tensor[part]), 1e-4, name)


def hostile(device: str, kind: str) -> Problem:
    """Keys for which a search that cannot skip takes very long."""
    case = draw(device, LENGTH, kind="equal" if kind == "all equal" else "random", top_k=32)
    time = torch.arange(LENGTH, device=device)[:, None] / LENGTH
    if kind == "looking ahead":  # a query stands where keys will be half as late again
        return replace(case, q=0.01 * case.q + 60 * time, k=0.01 * case.k + 40 * time)
    if kind == "looking ahead, in steps":  # all keys near a query are later ones, of a few distinct codes
        return replace(
            case, q=(40 * time + 1).floor().expand_as(case.q).contiguous(), k=(40 * time).floor() + 0 * case.k
        )
    if kind == "queries far from every key":
        return replace(case, q=case.q + 1000)
    if kind == "behind a wall":
        case.k[:, :, : 3 * LENGTH // 4] -= 30
    return case


def milliseconds(problem: Problem, direction: str) -> float:
    """Median time of a selection, or of a forward pass with backward."""
    call = selection if direction == "selection" else results
    times = []
    for _ in range(7):
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        before.record()
        call(problem)
        after.record()
        after.synchronize()
        times.append(before.elapsed_time(after))
    return statistics.median(times[2:])


HOSTILE = ["all equal", "looking ahead", "looking ahead, in steps", "queries far from every key", "behind a wall"]


@pytest.mark.parametrize("direction", ["selection", "forward and backward"])
@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_keys_take_bounded_time(device: str, kind: str, direction: str) -> None:
    usual = milliseconds(draw(device, LENGTH, top_k=32), direction)
    taken = milliseconds(hostile(device, kind), direction)
    assert taken <= SLOWEST * usual, f"{taken:.2f} ms against {usual:.2f} ms for random keys"


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_keys_are_selected_right(device: str, kind: str) -> None:
    case = hostile(device, kind)
    assert_selects_the_same(replace(case, q=case.q[:, :1], k=case.k[:, :1]))


def test_distances_that_are_not_numbers_select_the_same(device: str) -> None:
    case = draw(device, 20000, heads=2, dim=1, kind="wild", num_curves=2, top_k=20)
    found = selection(case).cpu().numpy()
    assert_same_bits(found, reference_selection(case))
    assert np.isnan(case.k.cpu().numpy()).any()
