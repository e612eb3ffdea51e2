"""What test_torch_distributed.py runs, on every one of several processes: `python distributed_checks.py RANK FILE`.

FILE is where the processes meet. Results go to FILE.RANK: for each check "passed", or what was raised, after which a
process ends, because the others would wait for it.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode

import zeta_ops

RANKS = 2
CHECKS: dict[str, Callable[[Any], None]] = {}  # each gets a mesh of all ranks
OPTIONS: list[dict[str, Any]] = [
    {"top_k": 6},
    {"top_k": 6, "num_curves": 3, "window": 8, "history_mean": True},
    {"top_k": 4, "search": "exact", "local_window": 3},
]

Tensors = list[torch.Tensor]


def check(function: Callable[[Any], None]) -> Callable[[Any], None]:
    """Make a function one of the checks."""
    CHECKS[function.__name__.replace("_", " ")] = function
    return function


def inputs(batch: int = 2, n: int = 24) -> Tensors:
    """Queries of four heads, keys and values of two, and gamma: the same on all ranks."""
    generator = torch.Generator().manual_seed(0)
    shapes = (batch, 4, n, 3), (batch, 2, n, 3), (batch, 2, n, 5)
    tensors = [*(torch.randn(shape, generator=generator) for shape in shapes), torch.tensor([0.4, 0.5, 0.6, 0.7])]
    return [x.requires_grad_() for x in tensors]


def spread(tensors: Tensors, mesh: Any, *placements: Any, gamma: Any = None) -> Tensors:
    """Distribute q, k and v alike, and gamma, which is on every rank by default."""
    whole = [Replicate()] * mesh.ndim
    everywhere = [*[placements] * 3, gamma or whole]
    return [
        distribute_tensor(x.detach(), mesh, where).requires_grad_()
        for x, where in zip(tensors, everywhere, strict=True)
    ]


def attend(tensors: Tensors, **options: Any) -> torch.Tensor:
    return zeta_ops.zeta_attention(*tensors, **options)


def gradients(out: torch.Tensor, tensors: Tensors) -> Tensors:
    """Gradients of a loss whose own gradient needs no communication."""
    return list(torch.autograd.grad(out, tensors, out.detach(), retain_graph=True))


def communication(call: Callable[[], Any]) -> tuple[Any, dict[str, int]]:
    """What a call returns, and how often it runs which collective."""
    with CommDebugMode() as mode:
        result = call()
    return result, {op.__name__: count for op, count in mode.get_comm_counts().items() if count}


def assert_like_one_process(sharded: Tensors, tensors: Tensors, **options: Any) -> None:
    out, expected = attend(sharded, **options), attend(tensors, **options)
    assert torch.equal(out.full_tensor(), expected)
    assert out.shape == expected.shape and out.stride() == expected.stride()
    for a, b in zip(gradients(out, sharded), gradients(expected, tensors), strict=True):
        assert a.shape == b.shape
        torch.testing.assert_close(a.full_tensor(), b)


def assert_stays_in_place(mesh: Any, axis: int, gamma: Any, sent_back: dict[str, int]) -> None:
    """Parts stay on their ranks, forward and backward; `sent_back` is what gamma's gradient needs."""
    for options in OPTIONS:
        tensors = inputs()
        sharded = spread(tensors, mesh, Shard(axis), gamma=gamma)
        out, sent = communication(lambda: attend(sharded, **options))  # noqa: B023
        assert sent == {}, sent
        assert out.placements == (Shard(axis),) and out.to_local().shape[axis] == out.shape[axis] // RANKS
        found, sent = communication(lambda: gradients(out, sharded))  # noqa: B023
        assert sent == sent_back, sent
        assert all(x.placements == (Shard(axis),) for x in found[:3])
        assert_like_one_process(sharded, tensors, **options)


@check
def the_batch_is_split_without_communication(mesh: Any) -> None:
    assert_stays_in_place(mesh, 0, None, {"all_reduce": 1})


@check
def heads_are_split_without_communication(mesh: Any) -> None:
    assert_stays_in_place(mesh, 1, [Shard(0)], {})


@check
def a_whole_gamma_is_split_with_the_heads(mesh: Any) -> None:
    assert_stays_in_place(mesh, 1, None, {"all_gather_into_tensor": 1})


@check
def whole_arrays_need_no_communication(mesh: Any) -> None:
    tensors = inputs()
    sharded = spread(tensors, mesh, Replicate())
    _, sent = communication(lambda: gradients(attend(sharded, top_k=6), sharded))
    assert sent == {}, sent
    assert_like_one_process(sharded, tensors, top_k=6)


@check
def gamma_may_be_a_number_or_a_scalar(mesh: Any) -> None:
    for axis in (0, 1):
        tensors, width = inputs(), torch.tensor(0.5, requires_grad=True)
        sharded = spread(tensors, mesh, Shard(axis))[:3]
        expected = zeta_ops.zeta_attention(*tensors[:3], width, top_k=6)
        assert torch.equal(zeta_ops.zeta_attention(*sharded, 0.5, top_k=6).full_tensor(), expected)
        sharded.append(distribute_tensor(width.detach(), mesh, [Replicate()]).requires_grad_())
        out = attend(sharded, top_k=6)
        assert torch.equal(out.full_tensor(), expected)
        found, wanted = gradients(out, sharded)[3], gradients(expected, [width])[0]
        torch.testing.assert_close(found.full_tensor(), wanted)


@check
def items_that_do_not_divide_are_split_unevenly(mesh: Any) -> None:
    tensors = inputs(batch=3)
    sharded = spread(tensors, mesh, Shard(0))
    out, sent = communication(lambda: attend(sharded, top_k=6))
    assert sent == {}, sent
    assert out.to_local().shape[0] == (2, 1)[dist.get_rank()]
    assert_like_one_process(sharded, tensors, top_k=6)


@check
def sequences_that_are_split_are_redistributed(mesh: Any) -> None:
    tensors = inputs()
    sharded = spread(tensors, mesh, Shard(2))
    out, sent = communication(lambda: attend(sharded, top_k=6))
    assert sum(sent.values()) == 3, sent  # q, k and v change places once
    assert out.placements == (Shard(1),)
    assert_like_one_process(sharded, tensors, top_k=6)


@check
def heads_that_do_not_divide_are_gathered(mesh: Any) -> None:
    q, k, v, gamma = inputs(batch=1)
    tensors = [x.detach().requires_grad_() for x in (q, k[:, :1], v[:, :1], gamma)]
    sharded = [distribute_tensor(q.detach(), mesh, [Shard(1)]), *spread(tensors, mesh, Replicate())[1:]]
    sharded[0].requires_grad_()
    assert attend(sharded, top_k=6).placements == (Replicate(),)
    assert_like_one_process(sharded, tensors, top_k=6)


@check
def sums_that_are_pending_are_finished_first(mesh: Any) -> None:
    tensors = inputs()
    sharded = spread(tensors, mesh, Shard(0))
    half = DTensor.from_local(tensors[2].detach() / RANKS, mesh, [Partial()]).requires_grad_()
    assert torch.equal(
        zeta_ops.zeta_attention(*sharded[:2], half, sharded[3], top_k=6).full_tensor(), attend(tensors, top_k=6)
    )


@check
def two_dimensions_of_a_mesh(mesh: Any) -> None:
    tensors = inputs()
    for shape in ((RANKS, 1), (1, RANKS)):
        grid = init_device_mesh("cpu", shape)
        sharded = spread(tensors, grid, Shard(0), Shard(1))
        out, sent = communication(lambda: attend(sharded, top_k=6))  # noqa: B023
        assert sent == {}, sent
        assert out.placements == (Shard(0), Shard(1))
        assert_like_one_process(sharded, tensors, top_k=6, history_mean=True)


@check
def packed_sequences_without_batch_axis(mesh: Any) -> None:
    *arrays, gamma = (x.detach() for x in inputs(batch=1))
    tensors = [*(x[0].requires_grad_() for x in arrays), gamma.requires_grad_()]
    borders = torch.tensor([0, 5, 5, 24], dtype=torch.int32)
    expected = attend(tensors, top_k=6, cu_seqlens=borders)
    sharded = spread(tensors, mesh, Shard(0))  # heads
    out, sent = communication(
        lambda: attend(sharded, top_k=6, cu_seqlens=distribute_tensor(borders, mesh, [Replicate()], src_data_rank=None))
    )
    assert sent == {}, sent
    assert torch.equal(out.full_tensor(), expected)


@check
def selections_and_given_indices(mesh: Any) -> None:
    for axis in (0, 1):
        tensors = inputs()
        indices = zeta_ops.causal_topk(*tensors[:2], top_k=6)
        expected = zeta_ops.cauchy_attention(*tensors[:3], indices, tensors[3])
        sharded = spread(tensors, mesh, Shard(axis))

        def both(sharded: Tensors = sharded) -> Any:
            selected = zeta_ops.causal_topk(*sharded[:2], top_k=6)
            return selected, zeta_ops.cauchy_attention(*sharded[:3], selected, sharded[3])

        (selected, out), sent = communication(both)
        assert sent == {}, sent
        assert torch.equal(selected.full_tensor(), indices)
        assert torch.equal(out.full_tensor(), expected)
        for a, b in zip(gradients(out, sharded), gradients(expected, tensors), strict=True):
            torch.testing.assert_close(a.full_tensor(), b)
        _, normalizer = attend(sharded, return_normalizer=True)
        assert torch.equal(normalizer.full_tensor(), attend(tensors, return_normalizer=True)[1])


@check
def calls_on_dtensors_are_compiled(mesh: Any) -> None:
    tensors = inputs()
    sharded = spread(tensors, mesh, Shard(0))
    compiled = torch.compile(lambda *x: zeta_ops.zeta_attention(*x, top_k=6), fullgraph=True, backend="aot_eager")
    out = compiled(*sharded)
    expected = attend(tensors, top_k=6)
    assert torch.equal(out.full_tensor(), expected)
    for a, b in zip(gradients(out, sharded), gradients(expected, tensors), strict=True):
        torch.testing.assert_close(a.full_tensor(), b)


@check
def wrong_arguments_raise(mesh: Any) -> None:
    tensors = inputs()
    q, k, v, gamma = spread(tensors, mesh, Shard(0))
    other = init_device_mesh("cpu", (RANKS, 1))
    elsewhere = distribute_tensor(tensors[1].detach(), other, [Shard(0), Replicate()])
    calls: dict[str, Callable[[], Any]] = {
        "v must be a DTensor": lambda: zeta_ops.zeta_attention(q, k, tensors[2], gamma),
        "gamma must be a DTensor": lambda: zeta_ops.zeta_attention(q, k, v, tensors[3]),
        "k must be on the mesh of q": lambda: zeta_ops.zeta_attention(q, elsewhere, v, gamma),
        "gamma must be positive": lambda: zeta_ops.zeta_attention(q, k, v, -gamma.detach()),
        "x must be a plain tensor here": lambda: zeta_ops.morton_encode(q),
        "q must be a plain tensor here": lambda: zeta_ops.selection_recall(q, k),
        "v must have the shape of k up to dv": lambda: zeta_ops.zeta_attention(q, k, v[:1], gamma),
    }
    for message, call in calls.items():
        with pytest.raises((TypeError, ValueError), match=message):
            call()


class Layer(torch.nn.Module):
    """Linear maps to q, k and v of one head, with a gamma that is learned."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.coordinates, self.values = torch.nn.Linear(8, 6), torch.nn.Linear(8, 8)
        self.gamma = torch.nn.Parameter(torch.tensor([0.5]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k = self.coordinates(x).unsqueeze(1).chunk(2, dim=-1)
        return zeta_ops.zeta_attention(q, k, self.values(x).unsqueeze(1), self.gamma, top_k=4).squeeze(1)


def assert_trains_like_one_process(wrap: Callable[[torch.nn.Module], torch.nn.Module]) -> None:
    """Gradients of a wrapped module, of which each rank sees half the batch, are those of the whole batch."""
    alone, wrapped = Layer(), wrap(Layer())
    x = torch.randn(RANKS, 16, 8, generator=torch.Generator().manual_seed(1))
    alone(x).square().mean().backward()
    wrapped(x[dist.get_rank() :][:1]).square().mean().backward()
    for (name, a), b in zip(alone.named_parameters(), wrapped.parameters(), strict=True):
        gradient = b.grad.full_tensor() if isinstance(b.grad, DTensor) else b.grad
        torch.testing.assert_close(gradient, a.grad, msg=lambda text, name=name: f"{name}: {text}")


@check
def ddp_trains_like_one_process(mesh: Any) -> None:
    assert_trains_like_one_process(torch.nn.parallel.DistributedDataParallel)


@check
def fsdp_trains_like_one_process(mesh: Any) -> None:
    assert_trains_like_one_process(lambda layer: fully_shard(layer, mesh=mesh))


def main() -> None:
    """Run the checks as one of the processes."""
    rank, meeting = int(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(1)
    timeout = timedelta(seconds=30)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=RANKS, timeout=timeout)
    mesh = init_device_mesh("cpu", (RANKS,))
    results: dict[str, str] = {}
    for name, function in CHECKS.items():
        try:
            function(mesh)
            results[name] = "passed"
        except Exception:  # whatever it is: the test that waits for this process shows it
            results[name] = traceback.format_exc()
        Path(f"{meeting}.{rank}").write_text(json.dumps(results))
        if results[name] != "passed":
            sys.exit(1)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
