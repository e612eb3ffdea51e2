"""The PyTorch adapter on a device with kernels, whose memory is the CPU's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import device_memory
import numpy as np
import pytest
from cases import Case, cases
from checks import assert_same_bits
from hypothesis import HealthCheck, given, settings

import zeta_ops
from zeta_ops import registry

torch = pytest.importorskip("torch", reason="torch is not installed")

STREAM = 7


@pytest.fixture
def guarded(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Let the ops take CPU tensors for those of a device with kernels; return the devices that were made current."""
    from zeta_ops.adapters.torch import devices

    entered = []

    class InCpuMemory(devices._Gpu):
        def current_device(self) -> int:
            return -1

        def device_of(self, device: Any) -> AbstractContextManager[Any]:
            @contextmanager
            def guard() -> Iterator[None]:
                entered.append(device)
                yield

            return guard()

        def stream_of(self, index: int | None) -> int:
            return STREAM

    monkeypatch.setitem(devices.DEVICES, "cpu", InCpuMemory())
    monkeypatch.setattr(registry, "BACKENDS", (device_memory.entry("cpu"), *registry.BACKENDS))
    device_memory.CALLS.clear()
    return entered


def transposed(x: Any) -> Any:
    """The same values, laid out `(batch, length, heads, dim)`."""
    return x.transpose(-2, -3).contiguous().transpose(-2, -3)


@settings(max_examples=20, suppress_health_check=[*HealthCheck])
@given(case=cases())
def test_equals_numpy(case: Case, guarded: list[Any]) -> None:
    arrays = case.q, case.k, case.v, case.gamma
    expected, pullback = zeta_ops.zeta_attention_vjp(*arrays, **case.options, backend="numba")
    options = {name: torch.from_numpy(x.copy()) if isinstance(x, np.ndarray) else x for name, x in case.options.items()}
    tensors = [torch.from_numpy(x.copy()) for x in arrays]
    tensors = [*map(transposed, tensors[:3]), tensors[3]]
    for tensor in tensors:
        tensor.requires_grad_()
    out = zeta_ops.zeta_attention(*tensors, **options)
    assert_same_bits(out.detach().numpy(), expected)
    grad_out = np.random.default_rng(0).standard_normal(out.shape).astype(np.float32)
    found = torch.autograd.grad(out, tensors, transposed(torch.from_numpy(grad_out)))
    for mine, theirs in zip(found, pullback(grad_out), strict=True):
        assert_same_bits(mine.numpy(), theirs)
    del options["history_mean"]
    selected = zeta_ops.causal_topk(*tensors[:2], **options)
    assert_same_bits(selected.numpy(), zeta_ops.causal_topk(case.q, case.k, **case.selection_options, backend="numba"))


def inputs(dtype: Any = torch.float32) -> list[Any]:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, heads, 20, d, generator=generator) for heads, d in ((4, 3), (2, 3), (2, 5)))
    return [x.to(dtype).requires_grad_() for x in (q, k, v)]


def test_runs_where_the_tensors_are(guarded: list[Any]) -> None:
    q, k, v = inputs()
    zeta_ops.zeta_attention(q, k, v, 0.5, top_k=4).sum().backward()
    indices = zeta_ops.causal_topk(q, k, top_k=4)
    zeta_ops.cauchy_attention(q, k, v, indices, 0.5).sum().backward()
    operations = ["search_forward", "search_backward", "select", "given_forward", "given_backward"]
    assert [operation for operation, _ in device_memory.CALLS] == operations
    assert {on.stream for _, on in device_memory.CALLS} == {STREAM}
    assert guarded == [q.device] * 5


@pytest.mark.parametrize("requires_grad", [False, True])
def test_normalizer_has_memory_of_its_own(requires_grad: bool, guarded: list[Any]) -> None:
    tensors = [x.detach().requires_grad_(requires_grad) for x in inputs()]
    out, normalizer = zeta_ops.zeta_attention(*tensors, 0.5, top_k=4, return_normalizer=True)
    arrays = [x.detach().numpy() for x in tensors]
    expected = zeta_ops.zeta_attention(*arrays, 0.5, top_k=4, return_normalizer=True, backend="numba")
    for mine, theirs in zip((out, normalizer), expected, strict=True):
        assert_same_bits(mine.detach().numpy(), theirs)
        assert mine.untyped_storage().nbytes() == mine.nbytes
    assert not normalizer.requires_grad
    if requires_grad:
        alone = zeta_ops.zeta_attention(*tensors, 0.5, top_k=4)
        for mine, theirs in zip(
            torch.autograd.grad(out.sum(), tensors), torch.autograd.grad(alone.sum(), tensors), strict=True
        ):
            assert torch.equal(mine, theirs)


def test_rows_that_are_not_aligned_and_layouts_that_are_not_taken(guarded: list[Any]) -> None:
    """The same shapes in other layouts are other calls."""
    tensors = [x.detach() for x in inputs()]
    expected = zeta_ops.zeta_attention(*tensors, 0.5, top_k=4)
    spread = [torch.zeros(x.numel() + 1)[1:].view(x.shape).copy_(x) for x in tensors]
    reversed_axes = [x.mT.contiguous().mT for x in tensors]
    for laid_out in (tensors, spread, [*map(transposed, tensors)], reversed_axes, tensors):
        assert torch.equal(zeta_ops.zeta_attention(*laid_out, 0.5, top_k=4), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_coordinates_are_cast_and_gradients_cast_back(dtype: Any, guarded: list[Any]) -> None:
    q, k, v = inputs(dtype)
    out = zeta_ops.zeta_attention(q, k, v, 0.5, top_k=4)
    out.sum().backward()
    assert out.dtype == dtype
    assert [x.grad.dtype for x in (q, k, v)] == [dtype] * 3
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    points = [x.detach().to(wide).requires_grad_() for x in (q, k)]
    zeta_ops.zeta_attention(*points, v.detach(), 0.5, top_k=4).sum().backward()
    for x, point in zip((q, k), points, strict=True):
        assert torch.equal(x.grad, point.grad.to(dtype))


def test_codes(guarded: list[Any]) -> None:
    q = inputs()[0].detach()
    for x, options in ((q, {}), (q.double(), {}), (q.half(), {}), (q[..., :1], {}), (transposed(q), {"bits": 2})):
        codes = zeta_ops.morton_encode(x, **options)
        assert_same_bits(codes.numpy(), zeta_ops.morton_encode(x.numpy(), **options, backend="numba"))
    wide = zeta_ops.morton_encode(q, bits=16, num_curves=3, curve=2)
    assert wide.dtype == torch.uint64
    cells = zeta_ops.morton_decode(wide, dims=3, bits=16)
    assert_same_bits(cells.numpy(), zeta_ops.morton_decode(wide.numpy(), dims=3, bits=16, backend="numba"))
    assert [operation for operation, _ in device_memory.CALLS] == ["morton_encode"] * 6 + ["morton_decode"]


def test_recall_is_that_of_the_device_s_selection(guarded: list[Any]) -> None:
    q, k, _ = inputs()
    found = zeta_ops.selection_recall(q, k, torch.tensor([0.4, 0.5, 0.6, 0.7]), top_k=4)
    gamma = np.array([0.4, 0.5, 0.6, 0.7], np.float32)
    points = q.detach().numpy(), k.detach().numpy()
    for mine, theirs in zip(found, zeta_ops.selection_recall(*points, gamma, top_k=4, backend="numba"), strict=True):
        assert_same_bits(mine.numpy(), theirs)
    assert [operation for operation, _ in device_memory.CALLS] == ["select"] * 2


@pytest.mark.parametrize("n", [0, 1])
def test_short_and_empty(n: int, guarded: list[Any]) -> None:
    x = torch.ones(1, 2, n, 3, requires_grad=True)
    out = zeta_ops.zeta_attention(x, x, x, top_k=2)
    out.sum().backward()
    assert out.shape == x.shape and torch.isfinite(x.grad).all()


def test_out_of_memory_says_what_was_needed(guarded: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    q, k, v = inputs()
    monkeypatch.setattr(torch, "empty_strided", full)
    results = 4 * (2 * 4 * 20 * (5 + 1))  # out and normalizer
    with pytest.raises(torch.OutOfMemoryError, match=r"zeta_ops: .*search_forward needs .* and 1,000 as") as raised:
        zeta_ops.zeta_attention(q, k, v, 0.5, top_k=4)
    needed = int(str(raised.value).split("needs ")[1].split(" ")[0].replace(",", ""))
    assert needed >= results + 1000
