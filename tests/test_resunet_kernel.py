"""resunet's loop in C++ gives what torch's layers give, and computes what the field needs alone.

Run: pytest tests/test_resunet_kernel.py
"""

from copy import deepcopy
from functools import lru_cache

import numpy as np
import pytest
import torch
from needs import why_skip
from torch import nn

from segpipe import kernels
from segpipe.data.classes import BACKGROUND, VESSEL
from segpipe.kernels.resunet import bf16_problem
from segpipe.models.resunet import FineUNet, Residual, ResUNet

pytestmark = pytest.mark.skipif(bool(why_skip()), reason=why_skip())
NEEDS_TILES = pytest.mark.skipif(bool(bf16_problem()), reason=bf16_problem())
ATOL = 2e-6  # of a score; eager fp32 is up to 4e-7 away from float64, the loop up to 6e-7
# Of many sums one lies just between two bfloat16s, goes the other way, and later layers pass it on
BF16_ATOL = 5e-3


@lru_cache(maxsize=1)
def network(width: int, kind: type[ResUNet] = ResUNet) -> ResUNet:
    """With statistics and biases that a fold can get wrong."""
    torch.manual_seed(width)
    drawn = kind(width)
    with torch.no_grad():
        for layer in drawn.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.weight.uniform_(0.5, 1.5)
                layer.bias.normal_(0, 0.3)
                layer.running_mean.normal_(0, 0.3)
                layer.running_var.uniform_(0.3, 2)
    return drawn.double().eval()


def compiled(drawn: ResUNet, precision: str = "fp32") -> kernels.ResUNetScores:
    state = {name: tensor.numpy() for name, tensor in drawn.float().state_dict().items()}
    score = kernels.ResUNetScores(state, VESSEL, BACKGROUND, precision)
    drawn.double()
    return score


@torch.no_grad()
def by_torch(drawn: ResUNet, canvas: np.ndarray) -> np.ndarray:
    """p(vessel) / (p(vessel) + p(background)) with torch's own layers, in float64."""
    x = torch.from_numpy(canvas).permute(2, 0, 1)[None].double() / 255
    prob = drawn(x).softmax(dim=1)[0]
    return (prob[VESSEL] / (prob[VESSEL] + prob[BACKGROUND])).numpy()


def rounded(x: torch.Tensor) -> torch.Tensor:
    return x.bfloat16().double()


def folded(layer: nn.Conv2d | nn.ConvTranspose2d, norm: nn.BatchNorm2d | None = None) -> nn.Module:
    """With the norm in it, its weights rounded to bfloat16."""
    if norm is not None:
        layer = torch.nn.utils.fuse_conv_bn_eval(layer, norm)
    layer.weight.copy_(rounded(layer.weight))
    return layer


@torch.no_grad()
def by_torch_in_bf16(drawn: ResUNet, canvas: np.ndarray) -> np.ndarray:
    """As by_torch, with weights and what lies between layers rounded to bfloat16."""
    drawn = deepcopy(drawn)
    drawn.first[0].weight /= 255  # whole numbers are exact in bfloat16, their 255ths are not

    def layer(parts: nn.Sequential, x: torch.Tensor) -> torch.Tensor:
        return rounded(folded(parts[0], parts[1])(x).relu())

    def block(parts: Residual, x: torch.Tensor) -> torch.Tensor:
        inner = layer(parts.layers[:2], x)
        return rounded((folded(parts.layers[3], parts.layers[4])(inner) + x).relu())

    x = drawn._cells(torch.from_numpy(canvas).permute(2, 0, 1)[None].double())
    x = block(drawn.down[0], layer(drawn.first, x))
    skips = []
    for smaller, down in zip(drawn.smaller, drawn.down[1:], strict=True):
        skips.append(x)
        x = block(down, layer(smaller, x))
    for larger, up in zip(drawn.larger, drawn.up, strict=True):
        x = block(up, rounded((folded(larger)(x) + skips.pop()).relu()))
    last, cells = drawn.last, drawn.SQUARE**2
    of_class = last.weight.unflatten(0, (-1, cells))
    last.weight = nn.Parameter(rounded(of_class[VESSEL] - of_class[BACKGROUND]))
    of_class = last.bias.unflatten(0, (-1, cells))
    last.bias = nn.Parameter(of_class[VESSEL] - of_class[BACKGROUND])
    return drawn._pixels(last(x))[0, 0].sigmoid().numpy()


def noise(seed: int, side: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


def everywhere(side: int) -> np.ndarray:
    return np.full((side, side), 255, np.uint8)


def disc(side: int, row: float, column: float, radius: float) -> np.ndarray:
    y, x = np.ogrid[:side, :side]
    return (((y - row) ** 2 + (x - column) ** 2 < radius**2) * 255).astype(np.uint8)


def near(fov: np.ndarray) -> np.ndarray:
    """The field and REACH_PX around it."""
    inside, side = fov > 0, len(fov)
    for _ in range(kernels.REACH_PX):
        wide = np.pad(inside, 1)
        inside = np.any(
            [wide[r : r + side, c : c + side] for r in range(3) for c in range(3)], axis=0
        )
    return inside


@pytest.mark.parametrize(
    ("width", "side"),
    [(8, 16), (8, 32), (8, 112), (16, 48), (24, 96), (40, 32), (64, 32)],
)
@pytest.mark.parametrize("kind", [ResUNet, FineUNet])
def test_the_scores_of_the_loop_are_torchs(width, side, kind):
    side *= kind.SQUARE
    drawn, canvas = network(width, kind), noise(side, side)
    found = compiled(drawn)(canvas, everywhere(side))
    wanted = by_torch(drawn, canvas)
    assert wanted.std() > 0.01  # or any score would do
    np.testing.assert_allclose(found, wanted, rtol=0, atol=ATOL)


@NEEDS_TILES
@pytest.mark.parametrize(
    ("width", "side", "atol"),
    [
        *((8, 16, ATOL), (8, 32, ATOL), (8, 144, BF16_ATOL), (16, 48, BF16_ATOL)),
        *((24, 96, BF16_ATOL), (40, 32, BF16_ATOL), (64, 32, BF16_ATOL)),
    ],
)
@pytest.mark.parametrize("kind", [ResUNet, FineUNet])
def test_the_scores_in_bf16_are_those_of_torch_with_the_same_roundings(width, side, atol, kind):
    side *= kind.SQUARE
    drawn, canvas = network(width, kind), noise(side, side)
    found = compiled(drawn, "bf16")(canvas, everywhere(side))
    wanted = by_torch_in_bf16(drawn, canvas)
    assert wanted.std() > 0.03
    np.testing.assert_allclose(found, wanted, rtol=0, atol=atol)


FIELDS = {
    "round": disc(160, 80, 80, 72),
    "cut": disc(160, -20, 120, 70),
    "small": disc(160, 100, 31, 9),
    "pixel": disc(160, 121, 42, 0.5),
    "corner": disc(160, 159, 159, 3),
    "ring": disc(160, 80, 80, 70) - disc(160, 80, 80, 50),
    "two": disc(160, 30, 20, 12) | disc(160, 120, 140, 14),
    "soft": disc(160, 80, 70, 40) // 255,
    "slanted": np.tril(np.triu(everywhere(160), -4), 4),
}


@NEEDS_TILES
@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("kind", [ResUNet, FineUNet])
def test_scores_in_bf16_are_right_in_a_field_of_any_shape(name, kind):
    score, canvas, fov = compiled(network(8, kind), "bf16"), noise(3, 160), FIELDS[name]
    inside = near(fov)
    wanted = score(canvas, everywhere(160))  # which the test above compares with torch
    assert (score(canvas, fov)[inside] == wanted[inside]).all()
    assert np.isfinite(score(canvas, fov)).all()


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("kind", [ResUNet, FineUNet])
def test_scores_are_right_in_a_field_of_any_shape(name, kind):
    """And REACH_PX around it; elsewhere nothing is promised but a number."""
    drawn, canvas, fov = network(8, kind), noise(3, 160), FIELDS[name]
    found = compiled(drawn)(canvas, fov)
    inside = near(fov)
    wanted = by_torch(drawn, canvas)
    np.testing.assert_allclose(found[inside], wanted[inside], rtol=0, atol=ATOL)
    assert np.isfinite(found).all()


def test_what_surrounds_the_field_counts_as_the_network_has_it():
    """Other pixels around it change the scores in it, as much as torch's."""
    drawn, fov = network(8), disc(160, 80, 80, 40)
    canvas = noise(3, 160)
    other = np.where(fov[..., None] > 0, canvas, 255 - canvas)
    inside, score = fov > 0, compiled(drawn)
    found = score(other, fov)[inside] - score(canvas, fov)[inside]
    wanted = (by_torch(drawn, other) - by_torch(drawn, canvas))[inside]
    assert np.abs(wanted).max() > 0.01
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2 * ATOL)


def test_where_no_field_is_nothing_is_computed():
    score = compiled(network(8))
    assert not score(noise(1, 64), np.zeros((64, 64), np.uint8)).any()
    assert not score(noise(1, 160), disc(160, 20, 20, 9))[80:].any()


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=NEEDS_TILES)])
@pytest.mark.parametrize("side", [96, 384])  # of 384 px layers are computed in part alone
def test_a_score_does_not_depend_on_what_was_scored_before(side, precision):
    score, fov = compiled(network(8), precision), disc(side, 30, 40, 22)
    first = score(noise(1, side), fov)
    score(noise(2, side), everywhere(side))
    assert (score(noise(1, side), fov) == first).all()
    score(noise(3, 32), everywhere(32))
    score(noise(4, 160), disc(160, 90, 90, 50))
    assert (score(noise(1, side), fov) == first).all()


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=NEEDS_TILES)])
def test_two_networks_at_once_keep_apart(precision):
    one, other = compiled(network(8), precision), compiled(network(16))
    canvas, fov = noise(1, 32), everywhere(32)
    first = one(canvas, fov)
    other(canvas, fov)
    assert (one(canvas, fov) == first).all()


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=NEEDS_TILES)])
def test_scores_are_finite_for_any_logits(precision):
    drawn = ResUNet(8).eval()
    with torch.no_grad():
        drawn.last.weight *= 1e5
    found = compiled(drawn, precision)(noise(0, 64), everywhere(64))
    assert 0 <= found.min() < 1e-6 < 1 - 1e-6 < found.max() <= 1


@pytest.mark.skipif(not bf16_problem(), reason="this CPU has AMX")
def test_without_amx_there_are_no_products_in_bf16():
    with pytest.raises(RuntimeError, match="resunet_open: failed"):
        compiled(network(8), "bf16")


@pytest.mark.parametrize("width", [4, 12, 72])
def test_a_width_that_the_loop_does_not_know_is_refused(width):
    with pytest.raises(ValueError, match=f"{width} channels, wanted a multiple of 8, at most 64"):
        kernels.ResUNetScores({"first.0.weight": np.zeros((width, 12, 3, 3))}, VESSEL, BACKGROUND)


def test_weights_of_another_shape_are_refused():
    state = {name: tensor.numpy() for name, tensor in ResUNet(8).state_dict().items()}
    state["up.3.layers.3.weight"] = state["up.3.layers.3.weight"][:, :4]
    with pytest.raises(ValueError, match=r"up\.3\.layers\.3\.weight: \(8, 4, 3, 3\), wanted"):
        kernels.ResUNetScores(state, VESSEL, BACKGROUND)
