"""The PyTorch layer: what it computes, whom it influences, its dtypes, its errors."""

from __future__ import annotations

import doctest
import inspect
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from checks import assert_same_bits
from layers import BAD_INPUTS, BAD_OPTIONS, BORDERS, DIM, LAYERS, LENGTHS, layer_input

import zeta_ops
from zeta_ops.adapters.layers import LayerOptions, option_names

torch = pytest.importorskip("torch", reason="torch is not installed")
from zeta_ops.adapters.torch import layers  # noqa: E402

pytestmark = pytest.mark.filterwarnings(
    # Raised inside torch by its own modules.
    "ignore:.*torch.jit.*is deprecated.*:DeprecationWarning",
    "ignore:.*lru_cache.*:UserWarning",
    "ignore:.*should not be instantiated.*:DeprecationWarning",
)
every_layer = pytest.mark.parametrize("options", LAYERS.values(), ids=LAYERS)
causal_layers = [name for name, options in LAYERS.items() if options.get("causal", True)]


def make(options: dict[str, Any], **where: Any) -> layers.ZetaAttention:
    torch.manual_seed(0)
    return layers.ZetaAttention(DIM, **options, **where)


def tensor(*shape: int, **dtype: Any) -> torch.Tensor:
    return torch.from_numpy(layer_input(*shape)).to(**dtype)


def borders(*places: int) -> torch.Tensor:
    return torch.tensor(places, dtype=torch.int32)


def plain(layer: layers.ZetaAttention, x: torch.Tensor) -> torch.Tensor:
    """The layer's definition, written out with torch's own convolution."""
    options, names = layer.options, dict(layer.named_parameters())
    points = x
    if options.conv_size:
        taps = names["conv.weight"].flip(1)[:, None]
        late = torch.nn.functional.conv1d(x.mT, taps, padding=options.conv_size - 1, groups=DIM)
        points = x + late[:, :, : x.shape[1]].mT

    def heads(y: torch.Tensor, count: int) -> torch.Tensor:
        return torch.stack(y.chunk(count, dim=-1), dim=1)

    def coordinates(name: str, count: int) -> torch.Tensor:
        y = points
        if options.coordinates == "mlp":
            y = torch.nn.functional.gelu(y @ names[f"{name}.hidden.weight"].T + names[f"{name}.hidden.bias"])
        return heads(y @ names[f"{name}.out.weight"].T + names[f"{name}.out.bias"], count)

    q = coordinates("q_proj", options.num_heads)
    k = q if options.share_qk else coordinates("k_proj", options.num_kv_heads)
    v = heads(x @ names["v_proj.weight"].T, options.num_kv_heads)
    gamma = (0.032 + 0.968 * names["raw_gamma"].sigmoid()).expand(options.num_heads)
    out = zeta_ops.zeta_attention(q, k, v, gamma, **options.selection)
    return torch.cat(out.unbind(1), dim=-1) @ names["o_proj.weight"].T


@every_layer
def test_computes_its_definition(options: dict[str, Any]) -> None:
    layer, x = make(options, dtype=torch.float64), tensor(dtype=torch.float64)
    out = layer(x)
    assert out.shape == x.shape
    torch.testing.assert_close(out, plain(layer, x))


@every_layer
def test_every_parameter_gets_a_gradient(options: dict[str, Any]) -> None:
    layer = make(options)
    layer(tensor()).square().sum().backward()
    gradients = {name: p.grad for name, p in layer.named_parameters()}
    assert set(gradients) == set(layer.options.parameters())
    for name, gradient in gradients.items():
        assert gradient is not None and gradient.isfinite().all() and (gradient != 0).any(), name


@pytest.mark.parametrize("name", causal_layers)
def test_the_future_is_not_seen(name: str) -> None:
    layer, x = make(LAYERS[name]), tensor()
    changed = x.clone()
    changed[:, 12:] = 3 * tensor(2, 8, 1)
    a, b = layer(x), layer(changed)
    assert_same_bits(a[:, :12].detach().numpy(), b[:, :12].detach().numpy())
    assert (a[:, 12:] != b[:, 12:]).any()


@every_layer
def test_packed_sequences_equal_separate_ones(options: dict[str, Any]) -> None:
    layer, x = make(options, dtype=torch.float64), tensor(1, dtype=torch.float64)
    packed = layer(x, cu_seqlens=borders(*BORDERS))
    for start, end in pairwise(BORDERS):
        torch.testing.assert_close(packed[:, start:end], layer(x[:, start:end]))


@every_layer
def test_padding_has_no_influence(options: dict[str, Any]) -> None:
    layer, lengths = make(options, dtype=torch.float64), torch.tensor(LENGTHS)
    x = tensor(len(LENGTHS), 11, dtype=torch.float64)
    for item, n in enumerate(LENGTHS):
        x[item, n:] = torch.nan
    out = layer(x, lengths=lengths)
    out.square().sum().backward()
    gradients = {name: p.grad.clone() for name, p in layer.named_parameters()}
    layer.zero_grad()
    separate = [layer(x[item : item + 1, :n]) for item, n in enumerate(LENGTHS)]
    torch.stack([y.square().sum() for y in separate]).sum().backward()
    for item, n in enumerate(LENGTHS):
        torch.testing.assert_close(out[item : item + 1, :n], separate[item])
        assert (out[item, n:] == 0).all()
    for name, parameter in layer.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad)


@pytest.mark.parametrize("conv_size", [0, 1, 4])
@pytest.mark.parametrize("coordinates", ["mlp", "linear"])
def test_coordinates_start_with_mean_zero_and_unit_variance(coordinates: str, conv_size: int) -> None:
    torch.manual_seed(0)
    layer = layers.ZetaAttention(128, num_heads=32, coordinates=coordinates, conv_size=conv_size)
    x = torch.randn(4, 500, 128)
    points = x + layer.conv(x, None) if conv_size else x
    for found in (layer.q_proj(points), layer.k_proj(points)):
        assert found.var((0, 1)).mean().item() == pytest.approx(1, abs=0.25)
        assert found.mean((0, 1)).square().mean() < 0.02


def test_gamma_stays_above_its_floor() -> None:
    layer = make({"num_heads": 2, "gamma_per_head": True})
    for raw, expected in ((-1e9, 0.032), (0.0, 0.516), (1e9, 1.0)):
        with torch.no_grad():
            layer.raw_gamma.fill_(raw)
        assert layer.gamma.tolist() == pytest.approx([expected] * 2)
        assert (layer.gamma.square() >= 1e-3).all()
        assert layer(tensor()).isfinite().all()


@pytest.mark.parametrize("autocast", [False, True], ids=["bfloat16 parameters", "autocast"])
def test_coordinates_are_never_rounded_to_sixteen_bits(autocast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def attend(q: Any, k: Any, v: Any, gamma: Any, **options: Any) -> Any:
        seen.append((q, k, gamma))
        return zeta_ops.zeta_attention(q, k, v, gamma, **options)

    monkeypatch.setattr(layers, "zeta_attention", attend)
    wide = make({"num_heads": 2, "top_k": 4})
    x = tensor(dtype=torch.bfloat16)
    with torch.no_grad():
        for parameter in wide.parameters():
            parameter.copy_(parameter.bfloat16())
    expected = wide(x.float())
    if autocast:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = wide(x.float())
    else:
        out = wide.bfloat16()(x)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), expected, rtol=0.05, atol=0.05)
    for mine, theirs in zip(*seen, strict=True):
        assert mine.dtype == torch.float32
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("what", ["plain", "packed", "padded", "padded encoder"])
def test_compile(what: str, dynamic: bool) -> None:
    torch.compiler.reset()
    layer = make({"num_heads": 2, "top_k": 4, "causal": what != "padded encoder"}, dtype=torch.float64)
    compiled = torch.compile(layer, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for n in (20, 27):
        x = tensor(1 if what == "packed" else 2, n, dtype=torch.float64)
        given: dict[str, Any] = {}
        if what == "packed":
            given["cu_seqlens"] = borders(0, 5, 5, n)
        elif what != "plain":
            given["lengths"] = torch.tensor([n, 3])
        expected, out = layer(x, **given), compiled(x, **given)
        torch.testing.assert_close(out, expected)
        gradients = torch.autograd.grad(out.square().sum(), list(layer.parameters()))
        for a, b in zip(gradients, torch.autograd.grad(expected.square().sum(), list(layer.parameters())), strict=True):
            torch.testing.assert_close(a, b)


def test_functional_call_under_vmap() -> None:
    layer, x = make({"num_heads": 2, "top_k": 4}), tensor(3)
    parameters = {name: p.detach() for name, p in layer.named_parameters()}

    def loss(parameters: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(layer, parameters, (x[None],)).square().sum()

    mapped = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
    total = torch.autograd.grad(layer(x).square().sum(), list(layer.parameters()))
    for (name, each), whole in zip(mapped.items(), total, strict=True):
        torch.testing.assert_close(each.sum(0), whole, msg=name)


def test_empty_inputs() -> None:
    layer = make({"top_k": 4})
    for shape in ((0, 5, DIM), (2, 0, DIM)):
        assert layer(torch.zeros(shape)).shape == shape
        assert layer(torch.zeros(shape), lengths=torch.zeros(shape[0], dtype=torch.int32)).shape == shape


def test_layer_made_without_memory_is_filled_later() -> None:
    layer = make(LAYERS["grouped heads"], device="meta").to_empty(device="cpu")
    torch.manual_seed(0)
    layer.reset_parameters()
    expected = make(LAYERS["grouped heads"])
    torch.manual_seed(0)
    expected.reset_parameters()
    assert torch.equal(layer(tensor()), expected(tensor()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_state_round_trip(dtype: torch.dtype) -> None:
    one = make(LAYERS["grouped heads"], dtype=dtype)
    other = layers.ZetaAttention(DIM, **LAYERS["grouped heads"], dtype=dtype)
    x = tensor(dtype=dtype)
    assert not torch.equal(one(x), other(x))
    arrays = layers.state_arrays(one)
    layers.load_state_arrays(other, arrays)
    assert torch.equal(one(x), other(x))
    with torch.no_grad():
        one.o_proj.weight.zero_()
    assert (arrays["o_proj.weight"] != 0).any()  # a copy


def test_state_that_does_not_fit() -> None:
    layer = make({})
    arrays = layers.state_arrays(layer)
    with pytest.raises(ValueError, match=r"missing \['raw_gamma'\], unknown \['gamma'\]"):
        layers.load_state_arrays(layer, {"gamma" if name == "raw_gamma" else name: x for name, x in arrays.items()})
    with pytest.raises(ValueError, match=r"conv.weight must have shape \(8, 4\); got \(8, 3\)"):
        layers.load_state_arrays(layer, arrays | {"conv.weight": np.zeros((8, 3))})


def test_signature() -> None:
    parameters = inspect.signature(layers.ZetaAttention).parameters
    assert tuple(parameters)[:-2] == option_names()
    assert list(parameters)[-2:] == ["device", "dtype"]
    defaults = inspect.signature(LayerOptions).parameters
    assert all(parameters[name].default == defaults[name].default for name in option_names())
    attention = inspect.signature(zeta_ops.zeta_attention).parameters
    passed = {name for name, p in attention.items() if p.kind is p.KEYWORD_ONLY}
    assert passed - set(option_names()) == {"q_offset", "cu_seqlens", "return_normalizer"}


@pytest.mark.parametrize("name", layers.__all__)
def test_examples(name: str) -> None:
    (example,) = doctest.DocTestFinder(recurse=False).find(getattr(layers, name), name)
    results = doctest.DocTestRunner().run(example)
    assert results.attempted > 0 and results.failed == 0


@pytest.mark.parametrize(("options", "error", "words"), BAD_OPTIONS.values(), ids=BAD_OPTIONS)
def test_bad_options(options: dict[str, Any], error: type[Exception], words: list[str]) -> None:
    with pytest.raises(error) as raised:
        layers.ZetaAttention(**{"dim": DIM, **options})
    for word in words:
        assert word in str(raised.value)


@pytest.mark.parametrize(("shape", "given", "error", "words"), BAD_INPUTS.values(), ids=BAD_INPUTS)
def test_bad_input(shape: Any, given: dict[str, Any], error: type[Exception], words: list[str]) -> None:
    with pytest.raises(error) as raised:
        make({"top_k": 4})(torch.zeros(shape), **{name: torch.from_numpy(x) for name, x in given.items()})
    for word in words:
        assert word in str(raised.value)


def test_integers_are_refused() -> None:
    with pytest.raises(TypeError, match="x must be a float array; got int64"):
        make({"top_k": 4})(torch.zeros(1, 5, DIM, dtype=torch.int64))
