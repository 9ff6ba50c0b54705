"""Wide matrices in the kernel's order: the same product, and never that of other weights."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad

import workbench as wb
from tests import tiny
from workbench.core.errors import OptionError
from workbench.models.layers import linear
from workbench.models.layers.context import in_block
from workbench.models.layers.linear import Linear, Tiled, Tiles, tiles_of, worthwhile
from workbench.models.layers.mlp import GatedMLP
from workbench.models.transformer import Transformer

pytestmark = pytest.mark.skipif(
    tiles_of(torch.zeros(4, 2)) is None, reason="this build of torch has no such kernel"
)
SHAPES = [(40, 8), (400, 192), (500, 200), (1536, 576)]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def tiled(weight: Tensor, *, whole: bool = False) -> Tiles:
    found = tiles_of(weight, whole=whole)
    assert found is not None
    return found


def wide(n_in: int = 200, n_out: int = 500) -> Linear:
    made = Linear(n_in, n_out)
    made.weight = nn.Parameter(normal(n_out, n_in), requires_grad=False)
    made.bias = nn.Parameter(normal(n_out, seed=1), requires_grad=False)
    made.tiles = tiled(made.weight)
    return made


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("tokens", [1, 3, 4, 17, 255])
@pytest.mark.parametrize("whole", [False, True])
def test_the_product_is_as_near_to_the_exact_one_as_torchs(
    shape: tuple[int, int], tokens: int, whole: bool
) -> None:
    weight, bias, x = normal(*shape), normal(shape[0], seed=1), normal(2, tokens, shape[1], seed=2)
    exact = F.linear(x.double(), weight.double(), bias.double())
    with torch.no_grad():
        ours = tiled(weight, whole=whole).multiply(x, bias)
    assert ours.shape == exact.shape
    theirs = float((F.linear(x, weight, bias) - exact).square().mean().sqrt())
    assert float((ours - exact).square().mean().sqrt()) <= 2 * theirs  # 1.0 to 1.7 measured


def test_tiles_are_used_only_where_they_stand_for_the_weight(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    used: list[int] = []

    def counted(self: Tiles, x: Tensor, bias: Tensor | None) -> Tensor:
        used.append(x.shape[0])
        return torch.zeros(x.shape[0], 500)

    monkeypatch.setattr(Tiles, "multiply", counted)
    layer, few, many = wide(), normal(3, 200), normal(linear.MANY, 200)
    with torch.no_grad():
        layer(few)
        assert used == [3]
        layer(many)  # ordering costs little beside so large a product
        with torch.enable_grad():
            layer(few)
        layer.weight[0, 0] += 1
        layer(few)
        layer.weight = nn.Parameter(layer.weight.clone(), requires_grad=False)
        layer(few)
    assert used == [3]
    layer.forget()
    assert layer.tiles is None


def test_a_weight_written_to_or_replaced_is_followed() -> None:
    layer, x = wide(), normal(5, 200, seed=3)
    with torch.no_grad():
        before = layer(x)
        layer.weight.mul_(2)
        assert torch.allclose(layer(x) - layer.bias, 2 * (before - layer.bias), atol=1e-4)
        layer.weight = nn.Parameter(torch.zeros(500, 200), requires_grad=False)
        assert torch.equal(layer(x), layer.bias.expand(5, -1))


def test_no_tokens_are_no_tokens() -> None:
    with torch.no_grad():
        assert wide()(torch.zeros(0, 3, 200)).shape == (0, 3, 500)
        assert wide()(torch.zeros(2, 0, 200)).shape == (2, 0, 500)


def test_another_weight_in_the_same_place_is_told_apart() -> None:
    layer, x = wide(), normal(5, 200, seed=3)
    for seed in range(8):  # memory that was freed is the first to be used again
        layer.weight = nn.Parameter(normal(500, 200, seed=seed), requires_grad=False)
        with torch.no_grad():
            assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))


def test_threads_share_tiles() -> None:
    layer, inputs = wide(), [normal(1 + i % 5, 200, seed=i) for i in range(200)]

    def product(x: Tensor) -> Tensor:
        with torch.no_grad():
            return layer(x)

    alone = [product(x) for x in inputs]
    with ThreadPoolExecutor(8) as pool:
        for one, other in zip(pool.map(product, inputs), alone, strict=True):
            assert torch.equal(one, other)


def test_gradients_go_through_the_weight() -> None:
    layer, x = wide(), normal(5, 200, seed=3).requires_grad_()
    (slope,) = torch.autograd.grad(layer(x).sum(), x)
    assert torch.allclose(slope, layer.weight.sum(0).expand(5, -1), atol=1e-4)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch's own, by torch.func
def test_forward_mode_derivatives_go_through_the_weight() -> None:
    """Also under no_grad, where the tiles would have lost the tangent without a word."""
    made, x, t = wide(), normal(3, 200), normal(3, 200, seed=2)
    expected = F.linear(t, made.weight)
    with torch.no_grad():
        assert tiny.same_bytes(torch.func.jvp(made, (x,), (t,))[1], expected)
        with forward_ad.dual_level():
            dual = made(forward_ad.make_dual(x, t))
            tangent = forward_ad.unpack_dual(dual).tangent
            assert tangent is not None
            assert tiny.same_bytes(tangent, expected)
            assert tiny.same_bytes(made(x), tiled(made.weight).multiply(x, made.bias))  # as ever

        def of_weight(weight: Tensor) -> Tensor:
            return torch.func.functional_call(made, {"weight": weight}, (x,))

        moved = torch.func.jvp(of_weight, (made.weight.detach(),), (normal(500, 200, seed=3),))[1]
        assert tiny.same_bytes(moved, F.linear(x, normal(500, 200, seed=3)))


def test_a_pickled_model_is_the_same_without_tiles(rearranged: Transformer) -> None:
    again = pickle.loads(pickle.dumps(rearranged.stack))
    tiled = [part for part in again.modules() if isinstance(part, Linear) and part.tiles]
    assert tiled == []
    assert len(list(again.parameters())) == len(list(rearranged.stack.parameters()))
    for own, other in zip(again.parameters(), rearranged.stack.parameters(), strict=True):
        assert torch.equal(own, other)


def test_a_copy_shares_the_tiles_of_weights_it_shares() -> None:
    layer, x = wide(), normal(5, 200, seed=3)
    same = copy.deepcopy(layer, {id(layer.weight): layer.weight})
    assert same.tiles is layer.tiles
    other = copy.deepcopy(layer)
    with torch.no_grad():
        other.weight.zero_()
        assert torch.equal(other(x), other.bias.expand(5, -1))
        assert not torch.equal(same(x), other(x))


def test_only_what_the_kernel_can_do_is_rearranged() -> None:
    assert tiles_of(torch.zeros(4, 2, dtype=torch.float64)) is None
    assert tiles_of(torch.zeros(4, 2, dtype=torch.bfloat16)) is None
    assert tiles_of(torch.zeros(4, 2, device="meta")) is None
    assert worthwhile(torch.zeros(1536, 576, device="meta"))
    assert not worthwhile(torch.zeros(576, 1536, device="meta"))
    assert not worthwhile(torch.zeros(64, 16, device="meta"))
    assert worthwhile(torch.zeros(576, 1536, device="meta"), whole=True)
    assert not worthwhile(torch.zeros(64, 16, device="meta"), whole=True)


def gated(n_in: int = 200, n_out: int = 700) -> GatedMLP:
    made = GatedMLP(n_in, n_out, F.silu, in_block(0), bias=False)
    for seed, part in enumerate((made.gate, made.up, made.down)):
        part.weight = nn.Parameter(normal(*part.weight.shape, seed=seed) / 14, requires_grad=False)
    return made


def test_two_matrices_of_one_input_are_tiles_of_one() -> None:
    layer, x = gated(), normal(2, 3, 200, seed=5)
    with torch.no_grad():
        plain = layer.feed(x, tiny.Spy())
        layer.rearrange()
        assert layer.tiles is not None
        assert layer.tiles.of(layer.gate.weight, layer.up.weight)
        assert not layer.tiles.of(layer.up.weight, layer.gate.weight)
        assert not layer.tiles.of(layer.gate.weight)
        assert torch.allclose(layer.feed(x, tiny.Spy()), plain, atol=1e-5)
        layer.up.weight.zero_()
        assert not layer.feed(x, tiny.Spy()).any()
    layer.forget()
    assert layer.tiles is None


def test_matrices_with_biases_are_left_as_they_are() -> None:
    layer = GatedMLP(200, 700, F.silu, in_block(0), bias=True)
    layer.rearrange()
    assert layer.tiles is None


@pytest.fixture(params=[True, "whole"])
def rearranged(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Transformer:
    """A tiny model of which every widening matrix is in tiles, or every one."""
    monkeypatch.setattr("workbench.models.layers.linear.LEAST", 1)
    hugging_face = tiny.hf("llama")
    hugging_face.save_pretrained(tmp_path)
    model = wb.load(tmp_path, rearrange=request.param)
    inside = [part.tiles is not None for part in model.stack.modules() if isinstance(part, Tiled)]
    assert all(inside) if request.param == "whole" else any(inside) and not all(inside)
    assert model.stack.unembed.tiles is not None
    return model


def test_what_to_rearrange_is_one_of_three(tmp_path: Path) -> None:
    expected = "rearrange must be True, False or 'whole', got 'all'"
    with tiny.unchecked(), pytest.raises(OptionError, match=expected):
        wb.load(tmp_path, rearrange="all")  # type: ignore[arg-type]


def test_a_rearranged_model_is_the_same_model(rearranged: Transformer, tmp_path: Path) -> None:
    plain = wb.load(tmp_path, rearrange=False)
    assert plain.stack.unembed.tiles is None
    assert plain.fingerprint == rearranged.fingerprint
    ids = torch.arange(12).view(2, 6)
    ours, theirs = (wb.run(one, ids, record="all") for one in (rearranged, plain))
    assert torch.allclose(ours.logits, theirs.logits, atol=1e-5)
    assert torch.allclose(ours["blocks.0.mlp.hook_pre"], theirs["blocks.0.mlp.hook_pre"], atol=1e-5)
    assert wb.generate(rearranged, ids, max_new_tokens=5).tokens == (
        wb.generate(plain, ids, max_new_tokens=5).tokens
    )


def test_a_view_of_a_rearranged_model_has_its_own_weights(rearranged: Transformer) -> None:
    folded = rearranged.folded()
    assert folded.model.stack.unembed.tiles is None  # which is another matrix here
    assert rearranged.stack.unembed.tiles is not None
    assert folded.parity.difference < 1e-4
    ids = torch.arange(12).view(2, 6)
    said = wb.run(rearranged, ids).logits.log_softmax(-1)
    assert torch.allclose(wb.run(folded.model, ids).logits.log_softmax(-1), said, atol=1e-4)
