"""The PyTorch adapter: values, gradients, and everything that torch does to an op."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import Case, cases
from checks import assert_same_bits
from hypothesis import given, settings

import zeta_ops

torch = pytest.importorskip("torch", reason="torch is not installed")
pytestmark = pytest.mark.filterwarnings(
    # Raised inside torch by its own modules.
    "ignore:.*torch.jit.*is deprecated.*:DeprecationWarning",
    "ignore:.*torch.jit.*not supported.*:DeprecationWarning",
    "ignore:Dynamo detected a call to a `functools.lru_cache`.*:UserWarning",
    "ignore:.*lru_cache.*:UserWarning",
    "ignore:.*should not be instantiated.*:DeprecationWarning",
    "ignore:There is a performance drop.*:UserWarning",
)

OPTIONS: list[dict[str, Any]] = [
    {},
    {"num_curves": 3, "window": 8},
    {"history_mean": True, "include_self": False},
    {"local_window": 4, "chunk_size": 4, "history_mean": True},
    {"search": "exact"},
    {"causal": False, "bounds": (-3.0, 3.0), "bits": 12},
]
IDS = [", ".join(options) or "plain" for options in OPTIONS]


def inputs(n: int = 24, dtype: torch.dtype = torch.float64, requires_grad: bool = True) -> tuple[torch.Tensor, ...]:
    """Queries of four heads, keys and values of two, and gamma."""
    generator = torch.Generator().manual_seed(0)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    q, k, v = (
        torch.randn(shape, generator=generator, dtype=torch.float64)
        for shape in ((2, 4, n, 3), (2, 2, n, 3), (2, 2, n, 5))
    )
    tensors = q.to(wide), k.to(wide), v.to(dtype), torch.tensor([0.4, 0.5, 0.6, 0.7], dtype=wide)
    return tuple(x.detach().requires_grad_(requires_grad) for x in tensors)


def attend(*tensors: torch.Tensor, **options: Any) -> torch.Tensor:
    return zeta_ops.zeta_attention(*tensors, **{"top_k": 6, **options})


@given(case=cases())
def test_equals_numpy(case: Case) -> None:
    arrays = case.q, case.k, case.v, case.gamma
    borders = case.options.pop("cu_seqlens", None)
    packing = {} if borders is None else {"cu_seqlens": borders}
    expected, pullback = zeta_ops.zeta_attention_vjp(*arrays, **case.options, **packing)
    tensors = [torch.from_numpy(x.copy()).requires_grad_() for x in arrays]
    packing = {} if borders is None else {"cu_seqlens": torch.from_numpy(borders)}
    out = zeta_ops.zeta_attention(*tensors, **case.options, **packing)
    assert_same_bits(out.detach().numpy(), expected)
    grad_out = np.random.default_rng(0).standard_normal(out.shape).astype(np.float32)
    for mine, theirs in zip(
        torch.autograd.grad(out, tensors, torch.from_numpy(grad_out)), pullback(grad_out), strict=True
    ):
        assert_same_bits(mine.numpy(), theirs)
    case.options.pop("history_mean")
    selected = zeta_ops.causal_topk(*tensors[:2], **case.options, **packing)
    assert not selected.requires_grad
    given_out = zeta_ops.cauchy_attention(*tensors[:3], selected, tensors[3])
    expected = zeta_ops.cauchy_attention(*arrays[:3], selected.numpy(), arrays[3])
    assert_same_bits(given_out.detach().numpy(), expected)


def test_codes_and_recall_equal_numpy() -> None:
    q, k, *_ = inputs(dtype=torch.float32, requires_grad=False)
    codes = zeta_ops.morton_encode(q)
    assert_same_bits(codes.numpy(), zeta_ops.morton_encode(q.numpy()))
    assert_same_bits(zeta_ops.morton_decode(codes, dims=3).numpy(), zeta_ops.morton_decode(codes.numpy(), dims=3))
    for mine, theirs in zip(
        zeta_ops.selection_recall(q, k, top_k=4), zeta_ops.selection_recall(q.numpy(), k.numpy(), top_k=4), strict=True
    ):
        assert_same_bits(mine.numpy(), theirs)


@pytest.mark.parametrize("options", OPTIONS, ids=IDS)
def test_gradcheck(options: dict[str, Any]) -> None:
    assert torch.autograd.gradcheck(lambda *x: attend(*x, **options), inputs(n=10), fast_mode=True)


def test_gradcheck_of_given_indices() -> None:
    q, k, v, gamma = inputs(n=10)
    indices = zeta_ops.causal_topk(q, k, top_k=4)
    assert torch.autograd.gradcheck(
        lambda q, k, v, gamma: zeta_ops.cauchy_attention(q, k, v, indices, gamma), (q, k, v, gamma), fast_mode=True
    )


@pytest.mark.parametrize("needed", list(product([False, True], repeat=4))[1:], ids=str)
def test_every_subset_of_inputs_that_need_gradients(needed: tuple[bool, ...]) -> None:
    tensors = inputs()
    full = torch.autograd.grad(attend(*tensors).square().sum(), tensors)
    part = tuple(x.detach().requires_grad_(wanted) for x, wanted in zip(tensors, needed, strict=True))
    attend(*part).square().sum().backward()
    for x, gradient, wanted in zip(part, full, needed, strict=True):
        assert (x.grad is not None) == wanted
        if wanted:
            assert torch.equal(x.grad, gradient)


@pytest.mark.parametrize(
    ("dtype", "n"),
    [(torch.float64, 24), (torch.float32, 24), (torch.bfloat16, 24), (torch.float32, 1), (torch.float32, 0)],
)
@pytest.mark.parametrize("layout", ["contiguous", "strided"])
def test_opcheck(dtype: torch.dtype, n: int, layout: str) -> None:
    from zeta_ops.adapters.torch import ops

    tensors = inputs(n, dtype, requires_grad=False)
    if layout == "strided":
        tensors = (*(x.transpose(1, 2).contiguous().transpose(1, 2) for x in tensors[:3]), tensors[3])
    static = "6 8 2 zorder True 1 True 0 True 10 False", 0, None
    names = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(ops.search_forward, (*tensors, None, *static), test_utils=names)
    out, normalizer, residuals = ops.search_forward(*tensors, None, *static)
    torch.library.opcheck(
        ops.search_backward, (torch.ones_like(out), *tensors, None, normalizer, residuals, *static), test_utils=names
    )
    indices = ops.select(*tensors[:2], None, *static)
    torch.library.opcheck(ops.select, (*tensors[:2], None, *static), test_utils=names)
    torch.library.opcheck(ops.given_forward, (*tensors[:3], indices, tensors[3], None), test_utils=names)
    torch.library.opcheck(
        ops.given_backward,
        (torch.ones_like(out), *tensors[:3], indices, tensors[3], normalizer, None),
        test_utils=names,
    )


def test_strided_values_are_not_copied() -> None:
    from zeta_ops.adapters.torch.memory import as_array

    v = torch.randn(2, 50, 4, 8).transpose(1, 2)
    array = as_array(v)
    assert array.ctypes.data == v.data_ptr()
    assert array.strides == tuple(4 * stride for stride in v.stride())
    assert_same_bits(np.ascontiguousarray(array), v.contiguous().numpy())


@pytest.mark.parametrize("options", OPTIONS, ids=IDS)
def test_functional_gradients(options: dict[str, Any]) -> None:
    q, k, v, gamma = inputs(requires_grad=False)

    def loss(*x: torch.Tensor) -> torch.Tensor:
        return attend(*x, **options).square().sum()

    everything = (0, 1, 2, 3)
    mine = torch.func.grad(loss, argnums=everything)(q, k, v, gamma)
    tensors = inputs()
    for a, b in zip(mine, torch.autograd.grad(loss(*tensors), tensors), strict=True):
        assert torch.equal(a, b)
    three = [torch.stack([x, 0.5 * x, 2 * x]) for x in (q, k, v, gamma)]
    for in_dims in ((0, 0, 0, 0), (0, None, 0, None), (None, 0, None, 0)):
        arguments = [x if d == 0 else x[0] for x, d in zip(three, in_dims, strict=True)]
        mapped = torch.func.vmap(lambda *x: attend(*x, **options), in_dims=in_dims)(*arguments)
        mapped_gradients = torch.func.vmap(torch.func.grad(loss, argnums=everything), in_dims=in_dims)(*arguments)
        for i in range(3):
            one = [x[i] if d == 0 else x for x, d in zip(arguments, in_dims, strict=True)]
            torch.testing.assert_close(mapped[i], attend(*one, **options))
            for a, b in zip(mapped_gradients, torch.func.grad(loss, argnums=everything)(*one), strict=True):
                torch.testing.assert_close(a[i], b)


def test_jacrev() -> None:
    q, k, v, gamma = (x[:, :, :6] if x.ndim > 1 else x for x in inputs(requires_grad=False))
    jacobian = torch.func.jacrev(lambda v: attend(q, k, v, gamma))(v)
    direction = torch.randn_like(v)
    moved = attend(q, k, v + direction, gamma) - attend(q, k, v, gamma)  # linear in v
    torch.testing.assert_close((jacobian * direction).sum((-4, -3, -2, -1)), moved)


def test_mapped_borders_are_refused() -> None:
    q, k, v, gamma = (x[:1] if x.ndim > 1 else x for x in inputs(requires_grad=False))
    borders = torch.tensor([[0, 4, 24], [0, 8, 24]], dtype=torch.int32)
    with pytest.raises(ValueError, match="cu_seqlens must be the same for all items"):
        torch.func.vmap(lambda b: attend(q, k, v, gamma, cu_seqlens=b))(borders)


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("options", OPTIONS[1:4], ids=IDS[1:4])
def test_compile(dynamic: bool, options: dict[str, Any]) -> None:
    torch.compiler.reset()
    compiled = torch.compile(
        lambda *x: attend(*x, **options).square().sum(), fullgraph=True, dynamic=dynamic, backend="aot_eager"
    )
    for n in (24, 31):
        tensors = inputs(n)
        loss = compiled(*tensors)
        gradients = torch.autograd.grad(loss, tensors)
        expected = attend(*tensors, **options).square().sum()
        torch.testing.assert_close(loss, expected)
        for a, b in zip(gradients, torch.autograd.grad(expected, tensors), strict=True):
            torch.testing.assert_close(a, b)


CXX = os.environ.get("CXX", "g++")  # as inductor looks for it


@pytest.mark.skipif(shutil.which(CXX) is None, reason=f"inductor needs a C++ compiler, and {CXX} is not installed")
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_compile_with_inductor(dynamic: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch.compiler.reset()

    def loss(x: torch.Tensor, gamma: torch.Tensor) -> torch.Tensor:
        """Values come in the layout of a linear map, `(batch, length, heads, dim)`, and results leave in it."""
        q, k, v = (part.transpose(1, 2) for part in x.sin().split([3, 3, 5], dim=-1))
        out, normalizer = attend(q, k, v, gamma, history_mean=True, return_normalizer=True)
        given_out = zeta_ops.cauchy_attention(q, k, v, zeta_ops.causal_topk(q, k, top_k=4), gamma.exp())
        return ((out + given_out).transpose(1, 2).flatten(2).cos() * normalizer.mean()).sum()

    compiled = torch.compile(loss, fullgraph=True, dynamic=dynamic)
    for n in (24, 31) if dynamic else (24,):
        generator = torch.Generator().manual_seed(0)
        tensors = torch.randn(2, n, 4, 11, generator=generator), torch.tensor([0.4, 0.5, 0.6, 0.7])
        tensors = tuple(x.requires_grad_() for x in tensors)
        mine, expected = compiled(*tensors), loss(*tensors)
        torch.testing.assert_close(mine, expected)
        for a, b in zip(torch.autograd.grad(mine, tensors), torch.autograd.grad(expected, tensors), strict=True):
            torch.testing.assert_close(a, b)


def test_compile_of_given_indices_and_selection() -> None:
    torch.compiler.reset()
    q, k, v, gamma = inputs(requires_grad=False)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def both(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, gamma: torch.Tensor) -> torch.Tensor:
        return zeta_ops.cauchy_attention(q, k, v, zeta_ops.causal_topk(q, k, top_k=6), gamma)

    torch.testing.assert_close(both(q, k, v, gamma), attend(q, k, v, gamma))


def test_errors_name_the_argument_under_compile_too() -> None:
    torch.compiler.reset()
    q, k, v, gamma = inputs(requires_grad=False)
    compiled = torch.compile(lambda *x: attend(*x, window=2), backend="aot_eager")
    with pytest.raises(Exception, match="window must be at least top_k = 6"):
        compiled(q, k, v, gamma)


def test_a_call_loads_neither_the_compiler_nor_dtensor() -> None:
    code = """
import sys, torch, zeta_ops
x = torch.ones(1, 1, 4, 3, requires_grad=True)
zeta_ops.zeta_attention(x, x, x, backend="numpy").sum().backward()
print([name for name in ("torch._dynamo", "torch.distributed.tensor") if name in sys.modules])
"""
    folder = str(Path(zeta_ops.__file__).parent.parent)
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": folder},
    )
    assert run.stdout.strip() == "[]"


def test_export() -> None:
    class Model(torch.nn.Module):
        def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, gamma: torch.Tensor) -> torch.Tensor:
            return attend(q, k, v, gamma)

    tensors = inputs(requires_grad=False)
    exported = torch.export.export(Model(), tensors)
    torch.testing.assert_close(exported.module()(*tensors), attend(*tensors))


def test_activation_checkpointing() -> None:
    tensors = inputs()
    out = torch.utils.checkpoint.checkpoint(lambda *x: attend(*x).square().sum(), *tensors, use_reentrant=False)
    for a, b in zip(
        torch.autograd.grad(out, tensors), torch.autograd.grad(attend(*tensors).square().sum(), tensors), strict=True
    ):
        assert torch.equal(a, b)


def test_autocast_casts_values_and_never_coordinates() -> None:
    q, k, v, gamma = inputs(dtype=torch.float32, requires_grad=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = attend(q, k, v, gamma)
        assert torch.equal(zeta_ops.morton_encode(q), zeta_ops.morton_encode(q.clone()))
        selected = zeta_ops.causal_topk(q, k, top_k=6)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, attend(q, k, v.to(torch.bfloat16), gamma))
    assert torch.equal(selected, zeta_ops.causal_topk(q, k, top_k=6))


def test_second_derivatives_and_forward_mode_are_refused() -> None:
    tensors = inputs()
    (gradient,) = torch.autograd.grad(attend(*tensors).square().sum(), tensors[2], create_graph=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
        gradient.sum().backward()
    q, k, v, gamma = inputs(requires_grad=False)
    with pytest.raises(RuntimeError, match="no forward-mode derivative"):
        torch.func.jvp(lambda v: attend(q, k, v, gamma), (v,), (v,))
    with torch.autograd.forward_ad.dual_level(), pytest.raises(RuntimeError, match="no forward-mode derivative"):
        attend(q, k, torch.autograd.forward_ad.make_dual(v, v), gamma)


def test_scalar_gamma_gets_a_gradient() -> None:
    q, k, v, _ = inputs(requires_grad=False)
    gamma = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda gamma: attend(q, k, v, gamma), (gamma,))


def test_normalizer_is_not_differentiated() -> None:
    out, z = attend(*inputs(), return_normalizer=True)
    assert out.requires_grad and not z.requires_grad and z.shape == out.shape[:-1]


@settings(max_examples=5)
@given(case=cases())
def test_works_where_gradients_are_off(case: Case) -> None:
    case.options.pop("cu_seqlens", None)
    tensors = [torch.from_numpy(x) for x in (case.q, case.k, case.v, case.gamma)]
    with torch.inference_mode():
        out = zeta_ops.zeta_attention(*tensors, **case.options)
    assert_same_bits(out.numpy(), zeta_ops.zeta_attention(case.q, case.k, case.v, case.gamma, **case.options))


Q, K, V, GAMMA = inputs(requires_grad=False)
BAD = {
    "arrays of two kinds": (lambda: attend(Q.numpy(), K, V), TypeError, ["one kind", "q: numpy", "k: torch"]),
    "two devices": (lambda: attend(Q, K.to("meta"), V), ValueError, ["one device", "k: meta"]),
    "no data": (lambda: attend(Q.to("meta"), K.to("meta"), V.to("meta")), ValueError, ["q", "'meta'"]),
    "sparse": (lambda: attend(Q, K, V.to_sparse()), TypeError, ["v", "dense", "sparse"]),
    "integers": (lambda: attend(Q.int(), K, V), TypeError, ["q", "float32", "int32"]),
    "shapes": (lambda: attend(Q, K, V[:, :, 1:]), ValueError, ["v", "(2, 2, 23, 5)"]),
    "a tensor as option": (lambda: attend(Q, K, V, top_k=torch.tensor(4)), TypeError, ["top_k", "tensor(4)"]),
    "a parameter as option": (
        lambda: attend(Q, K, V, local_window=torch.tensor(4.0, requires_grad=True)), TypeError, ["local_window"]
    ),
    "gamma": (lambda: attend(Q, K, V, -GAMMA), ValueError, ["gamma", "positive"]),
    "gamma too large": (
        lambda: attend(Q.float(), K.float(), V, torch.tensor([1, 1, 1, 1e25])), ValueError, ["gamma", "2**63"]
    ),
    "indices": (
        lambda: zeta_ops.cauchy_attention(Q, K, V, torch.full((2, 4, 24, 1), 24, dtype=torch.int32)), ValueError,
        ["indices", "[-1, 24)"],
    ),
    "borders": (
        lambda: attend(Q[:1], K[:1], V[:1], cu_seqlens=torch.tensor([0, 9], dtype=torch.int32)), ValueError,
        ["cu_seqlens", "24"],
    ),
    "backend": (lambda: attend(Q, K, V, backend="cupy2"), ValueError, ["backend", "'cupy2'"]),
    "vjp": (lambda: zeta_ops.zeta_attention_vjp(Q, K, V), TypeError, ["NumPy", "backward()"]),
}  # fmt: skip


@pytest.mark.parametrize(("call", "error", "words"), BAD.values(), ids=BAD)
def test_bad_input(call: Any, error: type[Exception], words: list[str]) -> None:
    with pytest.raises(error) as raised:
        call()
    for word in words:
        assert word in str(raised.value)
