"""What torch does to a call on a GPU: graphs, compilation, streams, threads, functional transforms, bad input."""

from __future__ import annotations

import os
import shutil
import threading
import time
from typing import Any

import pytest
from checks import assert_close

torch = pytest.importorskip("torch", reason="torch is not installed")

from problems import NAMES, Problem, draw, on_cpu, results  # noqa: E402

import zeta_ops  # noqa: E402
from zeta_ops.arguments import attention_shapes, search_problem  # noqa: E402

# Raised inside torch, by its own modules.
pytestmark = [
    pytest.mark.filterwarnings(f"ignore::{category}:{module}")
    for category in ("UserWarning", "DeprecationWarning", "FutureWarning")
    for module in ("torch", "triton")
] + [pytest.mark.filterwarnings("ignore:Synchronization debug mode:UserWarning")]

SETTINGS: list[dict[str, Any]] = [
    {"top_k": 8},
    {"top_k": 8, "window": 16, "num_curves": 3},
    {"top_k": 8, "local_window": 4, "history_mean": True},
    {"top_k": 8, "search": "exact"},
]
IDS = [", ".join(settings) for settings in SETTINGS]


def small(device: str, length: int = 96, dtype: Any = torch.float32, **options: Any) -> Problem:
    return draw(device, length, heads=4, kv_heads=2, dim=16, dtype=dtype, **options)


def assert_all_near(actual: dict[str, Any], expected: dict[str, Any], tolerance: float = 1e-5) -> None:
    for name, tensor in expected.items():
        assert_close(on_cpu(actual[name]), on_cpu(tensor), tolerance, name)


@pytest.mark.parametrize("options", [*SETTINGS[:3], {"top_k": 32, "deterministic": True}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_captured_graph_is_the_eager_call(device: str, dtype: Any, options: dict[str, Any]) -> None:
    first, second = (draw(device, 3000, dtype=dtype, seed=seed, **options) for seed in (0, 1))
    leaves = tuple(x.clone().requires_grad_() for x in first.arguments)
    grad_out = first.grad_out.clone()

    def step() -> tuple[torch.Tensor, ...]:
        out = zeta_ops.zeta_attention(*leaves, **options)
        return out, *torch.autograd.grad(out, leaves, grad_out)

    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for problem in (second, first, second):
        with torch.no_grad():
            for static, given in zip((*leaves, grad_out), (*problem.arguments, problem.grad_out), strict=True):
                static.copy_(given)
        graph.replay()
        found = dict(zip(NAMES, captured, strict=True))
        expected = results(problem)
        if options.get("deterministic"):
            assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
        assert_all_near(found, expected, 1e-5 if dtype == torch.float32 else 1e-2)


COMPILER = os.environ.get("CXX", "g++")  # as inductor looks for it


@pytest.mark.skipif(
    shutil.which(COMPILER) is None, reason=f"inductor needs a C++ compiler; {COMPILER} is not installed"
)
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled_calls(device: str, mode: str) -> None:
    from torch._dynamo.utils import counters

    torch.compiler.reset()
    counters.clear()

    def loss(x: torch.Tensor, gamma: torch.Tensor) -> torch.Tensor:
        """Values come in the layout of a linear map, `(batch, length, heads, dim)`, and results leave in it."""
        q, k, v = (part.transpose(1, 2) for part in x.sin().split([3, 3, 16], dim=-1))
        out = zeta_ops.zeta_attention(q, k, v, gamma, top_k=8, history_mean=True)
        return out.transpose(1, 2).flatten(2).cos().sum()

    compiled = torch.compile(loss, fullgraph=True, mode=mode)
    for seed in range(4):  # the third call of reduce-overhead replays a graph
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(2, 500, 4, 22, generator=generator).to(device).requires_grad_()
        gamma = torch.tensor([0.4, 0.5, 0.6, 0.7], device=device, requires_grad=True)
        value = compiled(x, gamma)
        found = torch.autograd.grad(value, (x, gamma))
        expected = loss(x, gamma)
        assert_close(on_cpu(value), on_cpu(expected), 1e-5)
        for mine, theirs in zip(found, torch.autograd.grad(expected, (x, gamma)), strict=True):
            assert_close(on_cpu(mine), on_cpu(theirs), 1e-4)
    assert counters["inductor"]["cudagraph_skips"] == 0


def keep_busy(milliseconds: float, device: str) -> None:
    """Give the current stream work for about this long, without waiting for it."""
    x = torch.randn(8192, 8192, device=device, dtype=torch.bfloat16)
    x @ x
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    before.record()
    for _ in range(10):
        x @ x
    after.record()
    after.synchronize()
    for _ in range(round(10 * milliseconds / before.elapsed_time(after))):
        x @ x


@pytest.mark.parametrize("options", [*SETTINGS, {"top_k": 8, "deterministic": True}], ids=str)
def test_runs_on_the_current_stream_and_waits_for_nothing(device: str, options: dict[str, Any]) -> None:
    """While a stream is busy for 300 ms, calls on it return at once; they read what was written there before."""
    problem = small(device, 2000, **options)
    expected = results(problem)
    late = Problem(*(torch.zeros_like(x) for x in (*problem.arguments, problem.grad_out)), options)
    late.gamma.fill_(1)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        results(late)  # what is compiled on first use is compiled
        keep_busy(300, device)
        torch.cuda.set_sync_debug_mode("error")
        try:
            for to, given in zip((*late.arguments, late.grad_out), (*problem.arguments, problem.grad_out), strict=True):
                to.copy_(given)
            start = time.perf_counter()
            found = results(late)
            taken = time.perf_counter() - start
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert not stream.query(), "the stream was not busy for long enough to show anything"
    stream.synchronize()
    assert taken < 0.15, f"the call took {taken:.3f} s on a busy stream: something waits"
    assert_all_near(found, expected)


def test_two_streams_in_two_threads(device: str) -> None:
    problems = [small(device, 3000, seed=seed, top_k=8) for seed in range(2)]
    expected = [results(problem) for problem in problems]
    torch.cuda.synchronize()
    found: list[list[dict[str, Any]]] = [[], []]

    def work(number: int) -> None:
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for _ in range(50):
                found[number].append(results(problems[number]))
        stream.synchronize()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(2):
        assert len(found[number]) == 50
        for one in found[number]:
            assert_all_near(one, expected[number])


def test_backward_in_another_thread(device: str) -> None:
    problem = small(device, 1000, top_k=8, history_mean=True)
    expected = results(problem)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    leaves = tuple(x.detach().requires_grad_() for x in problem.arguments)
    with torch.cuda.stream(stream):
        out = zeta_ops.zeta_attention(*leaves, **problem.options)
        found: list[Any] = []
        thread = threading.Thread(target=lambda: found.append(torch.autograd.grad(out, leaves, problem.grad_out)))
        thread.start()
        thread.join()
    torch.cuda.synchronize()
    assert_all_near(dict(zip(NAMES, (out, *found[0]), strict=True)), expected)


@pytest.mark.parametrize("options", SETTINGS, ids=IDS)
def test_gradcheck(device: str, options: dict[str, Any]) -> None:
    problem = small(device, 12, torch.float64)
    leaves = tuple(x.requires_grad_() for x in problem.arguments)

    def attend(*x: torch.Tensor) -> torch.Tensor:
        return zeta_ops.zeta_attention(*x, deterministic=True, **options)

    assert torch.autograd.gradcheck(attend, leaves, fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("length", [0, 1, 40])
def test_opcheck(device: str, length: int, dtype: torch.dtype) -> None:
    from zeta_ops.adapters.torch import ops
    from zeta_ops.adapters.torch.options import encode

    problem = small(device, length, dtype)
    settings = {
        "top_k": 6, "window": 8, "num_curves": 2, "search": "zorder", "causal": True, "chunk_size": 1,
        "include_self": True, "local_window": 0, "history_mean": True, "bits": None, "bounds": None, "q_offset": None,
        "deterministic": True,
    }  # fmt: skip
    found = search_problem(attention_shapes(*problem.arguments), None, **settings)
    static = encode(found.options), 0, None
    names = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(ops.search_forward, (*problem.arguments, None, *static), test_utils=names)
    out, normalizer, residuals = ops.search_forward(*problem.arguments, None, *static)
    backward = (torch.ones_like(out), *problem.arguments, None, normalizer, residuals, *static)
    torch.library.opcheck(ops.search_backward, backward, test_utils=names)
    indices = ops.select(problem.q, problem.k, None, *static)
    torch.library.opcheck(ops.select, (problem.q, problem.k, None, *static), test_utils=names)
    given = problem.q, problem.k, problem.v, indices, problem.gamma
    torch.library.opcheck(ops.given_forward, (*given, None), test_utils=names)
    torch.library.opcheck(ops.given_backward, (torch.ones_like(out), *given, normalizer, None), test_utils=names)


@pytest.mark.parametrize("options", SETTINGS, ids=IDS)
def test_functional_transforms(device: str, options: dict[str, Any]) -> None:
    problem = small(device, 80, torch.float64)

    def loss(*x: torch.Tensor) -> torch.Tensor:
        return zeta_ops.zeta_attention(*x, **options).square().sum()

    everything = (0, 1, 2, 3)
    gradient = torch.func.grad(loss, argnums=everything)
    leaves = tuple(x.detach().requires_grad_() for x in problem.arguments)
    for a, b in zip(gradient(*problem.arguments), torch.autograd.grad(loss(*leaves), leaves), strict=True):
        assert_close(on_cpu(a), on_cpu(b), 1e-11)
    three = [torch.stack([x, 0.5 * x, 2 * x]) for x in problem.arguments]
    for in_dims in ((0, 0, 0, 0), (0, None, 0, None), (None, 0, None, 0)):
        arguments = [x if d == 0 else x[0] for x, d in zip(three, in_dims, strict=True)]
        mapped = torch.func.vmap(gradient, in_dims=in_dims)(*arguments)
        for i in range(3):
            one = [x[i] if d == 0 else x for x, d in zip(arguments, in_dims, strict=True)]
            for a, b in zip(mapped, gradient(*one), strict=True):
                assert_close(on_cpu(a[i]), on_cpu(b), 1e-11)


def test_given_indices(device: str) -> None:
    problem = small(device, 5000, torch.float64, top_k=16)
    leaves = tuple(x.detach().requires_grad_() for x in problem.arguments)
    indices = zeta_ops.causal_topk(*leaves[:2], top_k=16)
    out = zeta_ops.cauchy_attention(*leaves[:3], indices, leaves[3])
    found = (out, *torch.autograd.grad(out, leaves, problem.grad_out))
    assert_all_near(dict(zip(NAMES, found, strict=True)), results(problem), 1e-11)


def test_autocast_casts_values_and_never_coordinates(device: str) -> None:
    problem = small(device, 500, top_k=8)
    with torch.autocast(device, dtype=torch.bfloat16):
        out = zeta_ops.zeta_attention(*problem.arguments, top_k=8)
    assert out.dtype == torch.bfloat16
    narrow = Problem(problem.q, problem.k, problem.v.bfloat16(), *problem.arguments[3:], problem.grad_out)
    assert torch.equal(out, zeta_ops.zeta_attention(*narrow.arguments, top_k=8))


def test_memory_that_is_not_there(device: str) -> None:
    """Arguments repeat a few numbers; the output would take 256 GiB."""
    q, v = (torch.zeros(1, 1, 1, d, device=device).expand(1, 64, 2**24, d) for d in (3, 64))
    with pytest.raises((RuntimeError, MemoryError), match=r"(?i)\d.*(bytes|[KMGT]i?B)"):
        zeta_ops.zeta_attention(q, q, v)
    torch.cuda.empty_cache()


BAD: dict[str, tuple[dict[str, Any], type[Exception], list[str]]] = {
    "two devices": ({"k": "cpu"}, ValueError, ["one device", "k: cpu"]),
    "a CPU backend": ({"backend": "numba"}, ValueError, ["backend", "'numba'", "'cuda'"]),
    "the reference": ({"backend": "numpy"}, ValueError, ["backend", "'numpy'", "'cuda'"]),
    "a kernel for JAX": ({"backend": "xla"}, ValueError, ["backend", "'xla'", "jax"]),
}


@pytest.mark.parametrize(("changes", "error", "words"), BAD.values(), ids=BAD)
def test_bad_input(device: str, changes: dict[str, Any], error: type[Exception], words: list[str]) -> None:
    problem = small(device, top_k=8)
    arrays = dict(zip(("q", "k", "v", "gamma"), problem.arguments, strict=True))
    options: dict[str, Any] = {"top_k": 8}
    for name, value in changes.items():
        if name in arrays:
            arrays[name] = arrays[name].to(value)
        else:
            options[name] = value
    with pytest.raises(error) as raised:
        zeta_ops.zeta_attention(**arrays, **options)
    for word in words:
        assert word in str(raised.value)


def test_tensors_on_the_cpu_are_refused_by_name(device: str) -> None:
    q, k, v, gamma = (x.cpu() for x in small(device, top_k=8).arguments)
    with pytest.raises(ValueError, match=r"'cupy'.*cuda.*'cpu'"):
        zeta_ops.zeta_attention(q, k, v, gamma, backend="cupy")


def test_values_without_columns(device: str) -> None:
    problem = draw(device, 300, dim=0, dtype=torch.float32, top_k=8)
    out, normalizer = zeta_ops.zeta_attention(*problem.arguments, top_k=8, return_normalizer=True)
    assert out.shape == (1, 4, 300, 0)
    wide = draw(device, 300, dim=4, dtype=torch.float32, top_k=8)
    _, expected = zeta_ops.zeta_attention(*wide.arguments, top_k=8, return_normalizer=True)
    assert_close(on_cpu(normalizer), on_cpu(expected), 1e-6)
