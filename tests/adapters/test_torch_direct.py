"""Who looks on at a call of tensors sees the ops; nobody else pays for them."""

from __future__ import annotations

from typing import Any

import pytest

import zeta_ops

torch = pytest.importorskip("torch", reason="torch is not installed")


def inputs() -> list[Any]:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, 12, d, generator=generator) for d in (3, 3, 5))
    return [x.requires_grad_() for x in (q, k, v, torch.tensor([0.5, 0.6]))]


def attend(*tensors: Any) -> Any:
    return zeta_ops.zeta_attention(*tensors, top_k=4)


def attend_to_given(*tensors: Any) -> Any:
    indices = zeta_ops.causal_topk(*tensors[:2], top_k=4)
    return zeta_ops.cauchy_attention(*tensors[:3], indices, tensors[3])


CALLS = [attend, attend_to_given]


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the operations that are computed without an op."""
    from zeta_ops.adapters.torch import direct

    names = []
    compute = direct.compute

    def seen(operation: str, *arguments: Any) -> Any:
        names.append(operation)
        return compute(operation, *arguments)

    monkeypatch.setattr(direct, "compute", seen)
    return names


def gradients(call: Any, tensors: list[Any], **options: Any) -> Any:
    return torch.autograd.grad(call(*tensors).square().sum(), tensors, **options)


@pytest.mark.parametrize("call", CALLS)
def test_nobody_looks_on(call: Any, called: list[str]) -> None:
    gradients(call, inputs())
    name = "search" if call is attend else "given"
    assert called == [f"{name}_forward", f"{name}_backward"]
    with torch.no_grad():
        call(*inputs())
    assert called == [f"{name}_forward", f"{name}_backward", f"{name}_forward"]


@pytest.mark.parametrize("call", CALLS)
def test_modes_and_the_profiler_see_ops(call: Any, called: list[str]) -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    class Seen(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.names: list[str] = []

        def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.names.append(op.name())
            return op(*args, **(kwargs or {}))

    expected = gradients(call, inputs())
    del called[:]
    with Seen() as mode:
        found = gradients(call, inputs())
    with torch.profiler.profile() as profile:
        again = gradients(call, inputs())
    assert called == []
    name = "search" if call is attend else "given"
    for names in (mode.names, {event.name for event in profile.events()}):
        assert {f"zeta_ops::{name}_forward", f"zeta_ops::{name}_backward"} <= set(names)
    for others in zip(expected, found, again, strict=True):
        assert all(torch.equal(others[0], other) for other in others[1:])


@pytest.mark.parametrize("call", CALLS)
def test_who_looks_on_at_the_backward_pass_alone(call: Any) -> None:
    tensors = inputs()
    out = call(*tensors)
    grads = torch.randn(3, *out.shape, generator=torch.Generator().manual_seed(1))
    one_by_one = [torch.autograd.grad(out, tensors, grad, retain_graph=True) for grad in grads]
    at_once = torch.func.vmap(lambda grad: torch.autograd.grad(out, tensors, grad, retain_graph=True))(grads)
    for found, expected in zip(at_once, zip(*one_by_one, strict=True), strict=True):
        torch.testing.assert_close(found, torch.stack(expected))
    if call is attend_to_given:  # the older vmap, which maps no op that takes a list, as the other's residuals
        found = torch.autograd.grad(out, tensors, grads, is_grads_batched=True, retain_graph=True)
        for mine, expected in zip(found, at_once, strict=True):
            torch.testing.assert_close(mine, expected)
    first = torch.autograd.grad(out.square().sum(), tensors, create_graph=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
        first[0].sum().backward()


@pytest.mark.parametrize("call", CALLS)
def test_tensors_that_are_lazily_negated(call: Any) -> None:
    tensors = inputs()
    expected = call(*tensors)
    negated = [torch._neg_view(-x.detach()) for x in tensors[:3]]
    assert negated[0].is_neg()
    assert torch.equal(call(*negated, tensors[3].detach()), expected)


def test_saved_tensors_may_be_elsewhere_meanwhile() -> None:
    expected = gradients(attend, inputs())
    tensors = inputs()
    with torch.autograd.graph.saved_tensors_hooks(lambda x: x.clone(), lambda x: x.clone()):
        found = gradients(attend, tensors)
    for mine, theirs in zip(found, expected, strict=True):
        assert torch.equal(mine, theirs)


def test_autocast_casts_values_of_direct_calls(called: list[str]) -> None:
    pytest.importorskip("ml_dtypes", reason="bfloat16 on a CPU needs it")
    with torch.autocast("cpu", torch.bfloat16):
        out = attend(*inputs())
    assert out.dtype == torch.bfloat16
    assert called == ["search_forward"]


@pytest.mark.parametrize("call", CALLS)
def test_tensors_that_a_transform_left_behind(call: Any) -> None:
    tensors = inputs()
    expected = call(*tensors), *gradients(call, tensors)
    left: list[Any] = []

    def keep(x: Any) -> Any:
        left.append(x)
        return x.sum()

    torch.func.grad(keep)(tensors[2])
    tensors = [*tensors[:2], left[0], tensors[3]]
    found = call(*tensors), *torch.autograd.grad(call(*tensors).square().sum(), [*tensors[:2], tensors[3]])
    for mine, theirs in zip(found, (*expected[:3], expected[4]), strict=True):
        assert torch.equal(mine, theirs)
