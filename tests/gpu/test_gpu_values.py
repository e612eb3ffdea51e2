"""Outputs and gradients at real sizes: as exact as a plain expression, written completely, repeatable."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from checks import assert_close, assert_within_policy

torch = pytest.importorskip("torch", reason="torch is not installed")

from problems import NAMES, Problem, draw, on_cpu, reference, results, selection  # noqa: E402

import zeta_ops  # noqa: E402
from benchmarks.speed.check import plain_attention  # noqa: E402

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
ON_PLAIN = [
    {"top_k": 32},
    {"top_k": 32, "window": 64, "num_curves": 3},
    {"top_k": 16, "local_window": 32, "history_mean": True},
]


def plain(problem: Problem) -> dict[str, torch.Tensor]:
    """Output and gradients by tensor operations, over the same selection."""
    leaves = tuple(x.detach().requires_grad_() for x in problem.arguments)
    flags = {name: problem.options.get(name, 0) for name in ("local_window", "history_mean")}
    out = plain_attention(*leaves, selection(problem), **flags)
    return dict(zip(NAMES, (out.detach(), *torch.autograd.grad(out, leaves, problem.grad_out)), strict=True))


def floors(problem: Problem, exact: dict[str, np.ndarray]) -> dict[str, float]:
    """A few roundings of float32, of results and of products `g . v_j` that cancel in gradients of weights."""
    largest = problem.grad_out.double().norm(dim=-1).max() * problem.v.double().norm(dim=-1).max()
    cancelled = float(largest / problem.gamma.min())
    direct = ("out", "gradient of v")
    return {
        name: 8 * float(np.finfo(np.float32).eps) * (np.abs(x).max() + (0 if name in direct else cancelled))
        for name, x in exact.items()
    }


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("options", ON_PLAIN, ids=str)
@pytest.mark.parametrize(("key_dim", "dim"), [(3, 64), (2, 128), (3, 20), (8, 256)], ids=str)
def test_as_exact_as_a_plain_expression(device: str, key_dim: int, dim: int, options: dict, dtype: torch.dtype) -> None:
    case = draw(device, 8192, heads=2, key_dim=key_dim, dim=dim, dtype=dtype, **options)
    mine, of_plain, exact = results(case), plain(case), reference(case)
    allowed = floors(case, exact)
    for name, array in exact.items():
        assert mine[name].dtype == of_plain[name].dtype
        assert_within_policy(on_cpu(mine[name]), on_cpu(of_plain[name]), array, allowed[name], name)


def test_grouped_heads_and_unequal_lengths(device: str) -> None:
    case = draw(device, 30000, heads=6, kv_heads=2, dtype=torch.float32, top_k=32, history_mean=True)
    case = Problem(case.q[:, :, -7000:], *case.arguments[1:], case.grad_out[:, :, -7000:], case.options)
    for name, array in reference(case).items():
        assert_close(on_cpu(results(case)[name]), array, 2e-5, name)


def test_packed_sequences(device: str) -> None:
    borders = torch.tensor([0, 1, 1, 3000, 40000, 65536], dtype=torch.int32, device=device)
    case = draw(device, 65536, heads=2, dtype=torch.float32, top_k=32, history_mean=True, cu_seqlens=borders)
    mine = results(case)
    for name, array in reference(case).items():
        assert_close(on_cpu(mine[name]), array, 2e-5, name)


def test_a_million_tokens(device: str) -> None:
    case = draw(device, 2**20, heads=1, dim=16, dtype=torch.float32, top_k=32)
    mine = results(case)
    for name, array in reference(case).items():
        assert_close(on_cpu(mine[name]), array, 1e-4, name)


def test_float64(device: str) -> None:
    case = draw(device, 5000, heads=2, dim=16, dtype=torch.float64, top_k=32, num_curves=2, history_mean=True)
    mine = results(case)
    for name, array in reference(case).items():
        assert_close(on_cpu(mine[name]), array, 1e-11, name)


def poison(device: str, byte: int, largest: int = 2**30) -> None:
    """Fill memory that torch keeps and gives out again: 0xFF is NaN in every format of floats, and -1."""
    blocks = [torch.full((size,), byte, dtype=torch.uint8, device=device) for size in _sizes(largest)]
    del blocks


def _sizes(largest: int) -> Iterator[int]:
    yield from (2**19 for _ in range(64))  # small allocations come from a pool of their own
    yield from (15 * 2**20 for _ in range(16))
    yield largest


@pytest.mark.parametrize("options", [*ON_PLAIN, {"top_k": 32, "search": "exact"}], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_outputs_are_written_completely(device: str, dtype: torch.dtype, options: dict) -> None:
    """Whatever memory held before, every bit is the same."""
    case = draw(device, 4099, dim=48, dtype=dtype, deterministic=True, **options)
    found = []
    for byte in (0xFF, 0xCD, 0x00):
        poison(device, byte)
        found.append(results(case))
        poison(device, byte)
        searching = {name: value for name, value in options.items() if name != "history_mean"}
        found[-1]["selection"] = zeta_ops.causal_topk(case.q, case.k, **searching)
    for others in found[1:]:
        for name, tensor in found[0].items():
            assert torch.isfinite(tensor).all(), name
            assert torch.equal(others[name], tensor), name


def test_more_than_two_to_the_31_elements(device: str) -> None:
    """Offsets have 64 bits: the last head, whose elements lie beyond 2**31, is what it is alone."""
    heads, length, dim = 33, 2**18, 256
    assert heads * length * dim > 2**31
    if torch.cuda.get_device_properties(device).total_memory < 60 * 2**30:
        pytest.skip("it takes 60 GiB of the GPU's memory")
    q, k = (torch.randn(1, heads, length, 3, device=device) for _ in range(2))
    v, grad_out = (torch.randn(1, heads, length, dim, device=device, dtype=torch.bfloat16) for _ in range(2))
    case = Problem(q, k, v, torch.full((heads,), 0.5, device=device), grad_out, {"top_k": 32})
    mine = results(case)
    last = Problem(*(x[:, -1:] for x in (q, k, v)), case.gamma[-1:], grad_out[:, -1:], case.options)
    for name, array in reference(last).items():
        found = mine[name][-1:] if name == "gradient of gamma" else mine[name][:, -1:]
        narrow = name in ("out", "gradient of v")
        assert_close(on_cpu(found), array, 8e-3 if narrow else 2e-2, name)
    first = Problem(*(x[:, :1] for x in (q, k, v)), case.gamma[:1], grad_out[:, :1], case.options)
    again = results(first)
    assert_close(on_cpu(mine["out"][:, :1]), on_cpu(again["out"]), 8e-3)
    del mine, again
    torch.cuda.empty_cache()


@pytest.mark.parametrize("options", [{"top_k": 32}, {"top_k": 16, "num_curves": 2, "history_mean": True}], ids=str)
def test_a_thousand_backward_passes_have_the_same_bits(device: str, options: dict) -> None:
    """Also while other work shares the device and changes which blocks run first."""
    case = draw(device, 4096, kind="ties", **options)
    leaves = tuple(x.detach().requires_grad_() for x in case.arguments)
    out = zeta_ops.zeta_attention(*leaves, deterministic=True, **options)
    first = torch.autograd.grad(out, leaves, case.grad_out, retain_graph=True)
    elsewhere = torch.cuda.Stream()
    noise = torch.randn(1024, 1024, device=device)
    differing = torch.zeros((), dtype=torch.int64, device=device)
    elsewhere.wait_stream(torch.cuda.current_stream())
    for turn in range(1000):
        if turn % 3:
            with torch.cuda.stream(elsewhere):
                noise @ noise
        again = torch.autograd.grad(out, leaves, case.grad_out, retain_graph=True)
        for a, b in zip(again, first, strict=True):
            differing += (a.view(torch.uint8) != b.view(torch.uint8)).sum()
    assert int(differing) == 0
