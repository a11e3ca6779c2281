"""A training step's native layers are torch's in float64: results, gradients, moments, losses.

Run: pytest tests/test_layers.py
"""

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from needs import why_skip
from test_norm import ranks, share
from torch import Tensor, nn

from segpipe.kernels import Layers, build, native
from segpipe.kernels.layers import Then
from segpipe.models import forms
from segpipe.models.loss import Loss, NativeLoss
from segpipe.models.native import NOT_COUNTED, NativeResUNetLoss, native_loss, targets_of
from segpipe.models.network import Network
from segpipe.models.norm import synchronise
from segpipe.models.predict import channels_last
from segpipe.models.resunet import FineUNet, ResUNet
from segpipe.models.segnet import SegNetLite

pytestmark = pytest.mark.skipif(bool(why_skip()), reason=why_skip())

# images, height, width, channels before and after; the last two have several bands
SHAPES = [
    (1, 1, 1, 8, 8),
    (2, 5, 7, 8, 8),
    (1, 1, 40, 12, 8),
    (2, 40, 1, 8, 12),
    (1, 6, 9, 4, 8),
    (1, 6, 9, 8, 4),
    (2, 9, 11, 16, 16),
    (1, 13, 21, 24, 24),
    (1, 7, 23, 32, 32),
    (1, 7, 19, 48, 48),
    (1, 3, 5, 24, 48),
    (1, 4, 5, 40, 72),
    (2, 3, 3, 64, 128),
    (1, 33, 600, 8, 8),
    (2, 70, 300, 16, 8),
]


def drawn(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def planes(array: np.ndarray) -> Tensor:
    """[N, H, W, C] float32 -> [N, C, H, W] float64, a leaf."""
    return torch.from_numpy(array).double().permute(0, 3, 1, 2).clone().requires_grad_()


def rows(tensor: Tensor) -> np.ndarray:
    return tensor.detach().permute(0, 2, 3, 1).numpy()


def leaf(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array).double().requires_grad_()


def assert_near(found: np.ndarray, wanted: np.ndarray) -> None:
    scale = np.abs(wanted).max() or 1.0
    np.testing.assert_allclose(found, wanted, rtol=0, atol=3e-6 * scale)


def norm_of(seed: int, channels: int) -> np.ndarray:
    return np.stack([drawn(seed, channels), 1 + drawn(seed + 1, channels) ** 2, drawn(9, channels)])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_convolution_and_its_moments_are_torchs(shape):
    *size, before, after = shape
    x, weight = drawn(0, *size, before), drawn(1, after, before, 3, 3)
    norm, bias = norm_of(2, before), drawn(4, after)
    layers = Layers(1)
    plain, none = layers.convolve(x, weight)
    assert none is None
    assert_near(plain, rows(F.conv2d(planes(x), leaf(weight), padding=1)))
    found, moments = layers.convolve(x, weight, norm, bias, with_moments=True)
    mean, scale, shift = (torch.from_numpy(row).double()[:, None, None] for row in norm)
    seen = ((planes(x) - mean) * scale + shift).relu()
    assert_near(found, rows(F.conv2d(seen, leaf(weight), leaf(bias), padding=1)))
    flat = found.reshape(-1, after).astype(float)
    assert moments.cells == len(flat)
    assert_near(moments.mean, flat.mean(axis=0))
    assert_near(moments.squares, ((flat - flat.mean(axis=0)) ** 2).sum(axis=0))


@pytest.mark.parametrize("then", Then)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_convolutions_gradients_are_torchs(shape, then):
    """Of its result: made of another gradient and of the result, as batch norm's are."""
    *size, before, after = shape
    x, weight, norm = drawn(0, *size, before), drawn(1, after, before, 3, 3), norm_of(2, before)
    g, z, table = drawn(5, *size, after), drawn(6, *size, after), drawn(7, 4, after)
    before_it = drawn(8, *size, before)
    of_x = before_it.copy()
    of_weight, of_bias, moved = Layers(1).convolve_backward(
        g, z, table, x, weight, norm, then, of_x, with_bias=True
    )
    mean, scale, shift = (torch.from_numpy(row).double()[:, None, None] for row in norm)
    normed = ((planes(x) - mean) * scale + shift).detach().requires_grad_()
    seen = normed.relu().detach().requires_grad_()
    tensors = leaf(weight), torch.zeros(after).double().requires_grad_()
    p, centre, q, r = table.astype(float)
    of_result = torch.from_numpy(p * g + q * (z - centre) + r).permute(0, 3, 1, 2)
    F.conv2d(seen, *tensors, padding=1).backward(of_result)
    assert_near(of_weight, tensors[0].grad.numpy())
    assert_near(of_bias, tensors[1].grad.numpy())
    of_seen = rows(seen.grad)
    if then == Then.MASK:
        of_seen = of_seen * rows(normed > 0)
        exact = of_x.astype(float)
        assert_near(moved[0], exact.sum(axis=(0, 1, 2)))
        assert_near(moved[1], (exact * (x - norm[0].astype(float))).sum(axis=(0, 1, 2)))
    assert_near(of_x, of_seen + (before_it if then == Then.ADD else 0))
    alone, *_ = Layers(1).convolve_backward(g, None, table, x, weight)
    plain = leaf(weight)
    F.conv2d(planes(x), plain, padding=1).backward(torch.from_numpy(p * g).permute(0, 3, 1, 2))
    assert_near(alone, plain.grad.numpy())


@pytest.mark.parametrize(
    "shape",
    [
        (1, 1, 1, 8, 16),
        (2, 5, 7, 8, 24),
        (1, 3, 40, 24, 48),
        (1, 9, 4, 32, 32),
        (1, 70, 150, 8, 16),
    ],
    ids=str,
)
def test_convolutions_that_halve_and_double_are_torchs(shape):
    num, height, width, large, small = shape
    layers = Layers(1)
    x, weight = drawn(0, num, 2 * height, 2 * width, large), drawn(1, small, large, 2, 2)
    z, moments = layers.halve(x, weight)
    exact, of_weight = planes(x), leaf(weight)
    wanted = F.conv2d(exact, of_weight, stride=2)
    assert_near(z, rows(wanted))
    assert_near(moments.mean, rows(wanted).mean(axis=(0, 1, 2)))
    g, table = drawn(2, *z.shape), drawn(3, 4, small)
    p, centre, q, r = table.astype(float)
    wanted.backward(torch.from_numpy(p * g + q * (z - centre) + r).permute(0, 3, 1, 2))
    found = layers.halve_backward(g, z, table, x, weight)
    assert_near(found[0], rows(exact.grad))
    assert_near(found[1], of_weight.grad.numpy())

    below, other, bias = drawn(4, *z.shape), drawn(5, *x.shape), drawn(6, large)
    weight = drawn(7, small, large, 2, 2)
    y = layers.double(below, weight, bias, other)
    leaves = planes(below), leaf(weight), leaf(bias), planes(other)
    wanted = (F.conv_transpose2d(*leaves[:3], stride=2) + leaves[3]).relu()
    assert_near(y, rows(wanted))
    g = drawn(8, *y.shape)
    wanted.backward(torch.from_numpy(g).double().permute(0, 3, 1, 2))
    found = layers.double_backward(g, y, below, weight)
    for mine, theirs in zip(found, leaves, strict=True):
        assert_near(
            mine,
            rows(theirs.grad) if theirs.ndim == 4 and mine is not found[1] else theirs.grad.numpy(),
        )


@pytest.mark.parametrize(("square", "size"), [(1, (2, 5, 7)), (2, (1, 4, 6)), (2, (2, 66, 300))])
def test_the_loss_of_pixels_is_torchs(square, size):
    """Of certain and wrong logits too, and without what does not count."""
    num, height, width = size
    logits = drawn(0, *size, 12 if square == 2 else 4) * np.float32(30)
    labels = np.random.default_rng(1).integers(
        0, 3, (num, height * square, width * square), np.uint8
    )
    labels[:, -1, 1:] = NOT_COUNTED
    loss, gradient = Layers(1).likelihood(logits, labels, targets_of(soft=False), square)
    exact = planes(logits)
    of_pixels = F.pixel_shuffle(exact[:, : 3 * square**2], square)
    truth = torch.from_numpy(labels).long()
    wanted = F.cross_entropy(of_pixels, truth, reduction="sum", ignore_index=NOT_COUNTED)
    wanted.backward()
    assert loss == pytest.approx(wanted.item(), rel=1e-6)
    assert_near(gradient, rows(exact.grad))


@pytest.mark.parametrize("square", [1, 2])
def test_the_loss_of_soft_labels_is_torchs(square):
    size = (2, 6, 10)
    logits = drawn(0, *size, 12 if square == 2 else 4) * np.float32(5)
    labels = np.random.default_rng(1).integers(0, 256, (2, 6 * square, 10 * square), np.uint8)
    loss, gradient = Layers(1).likelihood(logits, labels, targets_of(soft=True), square)
    exact = planes(logits)
    of_pixels = F.pixel_shuffle(exact[:, : 3 * square**2], square)
    sure = np.clip((labels - 1.0) / 253, 0, 1)
    truth = np.stack([np.zeros_like(sure), sure, 1 - sure], axis=1)
    truth[np.broadcast_to(labels[:, None] == 0, truth.shape)] = 0
    truth[:, 0][labels == 0] = 1
    truth[np.broadcast_to(labels[:, None] == NOT_COUNTED, truth.shape)] = 0
    wanted = F.cross_entropy(of_pixels, torch.from_numpy(truth), reduction="sum")
    wanted.backward()
    assert loss == pytest.approx(wanted.item(), rel=1e-6)
    assert_near(gradient, rows(exact.grad))


@pytest.mark.parametrize("square", [1, 2])
def test_cells_are_torchs_squares_of_pixels(square):
    images = np.random.default_rng(0).integers(0, 256, (2, 6, 10, 3), np.uint8)
    cells = Layers(1).cells(images, square)
    wanted = F.pixel_unshuffle(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255, square)
    np.testing.assert_array_equal(cells[..., : 3 * square**2], rows(wanted))
    assert not cells[..., 3 * square**2 :].any()


def step_of(loss: nn.Module, network: nn.Module, crops: tuple[Tensor, Tensor]) -> list[Tensor]:
    """The loss, gradients and running statistics of one step, scaled from outside."""
    network.zero_grad()
    value = loss(*crops)
    (value * 0.25).backward()
    assert all(p.grad.stride() == p.stride() for p in network.parameters())
    return [value.detach(), *(p.grad for p in network.parameters()), *network.buffers()]


def crops_of(seed: int, num: int, size: int) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(seed)
    images = torch.from_numpy(rng.integers(0, 256, (num, size, size, 3), np.uint8))
    return images, torch.from_numpy(rng.integers(0, 3, (num, size, size), np.uint8))


def network_of(kind: type[Network], width: int = 8) -> Network:
    torch.manual_seed(0)
    network = channels_last(kind(width))
    with torch.no_grad():
        for layer in network.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.weight.uniform_(0.5, 1.5), layer.bias.normal_()
    return network


class Exact(nn.Module):
    """The loss of a network in float64 by torch's own layers."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        x = images.permute(0, 3, 1, 2).double() / 255
        return F.cross_entropy(self.network.outputs(x)[-1], labels.long())


@pytest.mark.parametrize(
    ("kind", "width", "size"),
    [(FineUNet, 8, 64), (ResUNet, 8, 48), (FineUNet, 8, 50), (ResUNet, 8, 37), (ResUNet, 16, 48)],
)
def test_a_step_is_torchs_in_float64(kind, width, size):
    """Crops that the stride does not divide too."""
    network, crops = network_of(kind, width), crops_of(1, 2, size)
    exact = copy.deepcopy(network).double()
    found = step_of(NativeResUNetLoss(network, 1), network, crops)
    for mine, theirs in zip(found, step_of(Exact(exact), exact, crops), strict=True):
        scale = theirs.abs().max().item()
        torch.testing.assert_close(mine.double(), theirs.double(), rtol=0, atol=2e-5 * scale)


def test_all_variants_that_this_cpu_runs_agree_on_a_step(monkeypatch):
    """Vectors of 8 lanes and of 16 sum in other orders."""
    kept = [build.library_path(at, one) for one in native.runnable() for at in native._folders()]
    libraries = [native.load(path) for path in kept if path.exists()]
    kinds = {(library.segnet_lite_lanes(), library.has_tiles()) for library in libraries}
    assert len(kinds) == len(native.runnable())
    for kind in (FineUNet, ResUNet):
        found = []
        for library in libraries:
            monkeypatch.setattr(native, "library", lambda library=library: library)
            network = network_of(kind)
            found.append(step_of(native_loss(network, 1), network, crops_of(4, 2, 48)))
        for others in found[1:]:
            for one, other in zip(found[0], others, strict=True):
                scale = one.abs().max().item()
                torch.testing.assert_close(one, other, rtol=0, atol=2e-5 * scale)


def test_a_step_does_not_depend_on_the_number_of_threads():
    crops, found = crops_of(2, 3, 256), []
    for num_threads in (1, 3):
        network = network_of(FineUNet)
        found.append(step_of(native_loss(network, num_threads), network, crops))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


def test_a_hundred_losses_are_torchs():
    """Where rounding is not amplified, as Adam does: it divides a gradient by its own size."""
    network = network_of(FineUNet)
    networks = network, copy.deepcopy(network), copy.deepcopy(network).double()
    losses = native_loss(networks[0], 1), Loss(networks[1]), Exact(networks[2])
    optimizers = [torch.optim.SGD(one.parameters(), lr=0.002) for one in networks]
    for step in range(100):
        values = []
        for loss, optimizer in zip(losses, optimizers, strict=True):
            optimizer.zero_grad()
            value = loss(*crops_of(step, 2, 48))
            value.backward()
            optimizer.step()
            values.append(value.item())
        assert values[0] == pytest.approx(values[1], rel=1e-5)
        assert values[0] == pytest.approx(values[2], rel=1e-5)
    assert values[0] < 1.3  # it was 1.92


def trained(rank: int, num: int) -> dict[str, Tensor]:
    """A rank's part of a step, as test_norm's of torch's layers."""
    images, labels = crops_of(3, 4, 32)
    network = synchronise(network_of(FineUNet), torch.device("cpu"))
    loss = nn.parallel.DistributedDataParallel(native_loss(network, 1))
    mine = len(share(images, rank, num)) / len(images)
    part = loss(share(images, rank, num), share(labels, rank, num)) * mine
    (part * num).backward()
    found = {f"of {name}": p.grad for name, p in network.named_parameters()}
    return found | {"loss": part.detach()} | network.state_dict()


def test_two_ranks_learn_what_one_process_learns(tmp_path: Path):
    """Loss, gradients through DDP and running statistics, with 3 crops and 1."""
    by_rank = ranks(2, trained, tmp_path)
    network = network_of(FineUNet).double()
    loss = Exact(network)(*crops_of(3, 4, 32))
    loss.backward()
    wanted = {f"of {name}": p.grad for name, p in network.named_parameters()}
    wanted |= network.state_dict()
    for of_rank in by_rank:
        for name, tensor in wanted.items():
            near = {"rtol": 0, "atol": 2e-5 * tensor.abs().max().item(), "msg": name}
            torch.testing.assert_close(of_rank[name].double(), tensor.double(), **near)
    together = by_rank[0]["loss"] + by_rank[1]["loss"]
    torch.testing.assert_close(together.double(), loss.detach(), rtol=1e-6, atol=0)


def test_a_weight_that_is_no_number_gives_no_number():
    network = network_of(FineUNet)
    with torch.no_grad():
        network.down[1].layers[0].weight[0, 0, 0, 0] = torch.nan
    assert not torch.isfinite(native_loss(network, 1)(*crops_of(0, 1, 64)))


def test_one_value_a_channel_is_refused():
    with pytest.raises(ValueError, match="batch norm of 1 values of a channel, wanted 2 or more"):
        native_loss(network_of(ResUNet), 1)(*crops_of(0, 1, 16))


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [(SegNetLite, NativeLoss), (ResUNet, NativeResUNetLoss), (FineUNet, NativeResUNetLoss)],
)
def test_each_network_with_a_native_form_has_its_loss(kind, wanted):
    width = 64 if kind is SegNetLite else 8
    assert type(native_loss(kind(width), 1)) is wanted


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({}, ""),
        ({"model": "resunet", "width": 16}, ""),
        ({"crop_size": 33}, ""),
        ({"model": "segnet-lite"}, ""),
        ({"model": "segnet-lite", "crop_size": 33}, "of segnet-lite wants crops of an even side"),
        ({"width": 4}, "no native form of fineunet with 4 channels"),
        ({"model": "wnet"}, "no native form of wnet in fp32"),
        ({"precision": "bf16"}, "the native backend trains in fp32, not in bf16"),
        ({"device": "cuda"}, "the native backend is for CPUs"),
        ({"loss": "nll+dice"}, "has no other loss than nll"),
    ],
)
def test_what_a_native_training_is_refused_for(changed, problem):
    asked = {"model": "fineunet", "width": None, "precision": "fp32", "device": "cpu"}
    asked |= {"crop_size": 32, "loss": "nll"} | changed
    found = forms.training_problem(**asked)
    assert problem in found
    assert bool(problem) == bool(found)


def test_without_a_library_a_training_is_torchs(monkeypatch):
    monkeypatch.setattr(forms.kernels, "missing", lambda: "this CPU lacks avx2")
    found = forms.training_problem("fineunet", None, "fp32", "cpu", 32, "nll")
    assert found == "this CPU lacks avx2"


def refused() -> dict[str, Callable[[], object]]:
    """Calls that C++ would read or write beyond an array for; test_native makes them."""
    layers = Layers(1)
    x, z = drawn(0, 1, 4, 4, 8), drawn(0, 1, 4, 4, 16)
    weight, half = drawn(1, 16, 8, 3, 3), drawn(1, 16, 8, 2, 2)
    table, norm, bias = drawn(2, 4, 16), drawn(3, 3, 8), drawn(4, 16)
    small, images = drawn(5, 1, 2, 2, 16), np.zeros((1, 4, 4, 3), np.uint8)
    labels, fine = np.zeros((1, 4, 4), np.uint8), np.zeros((1, 8, 8), np.uint8)
    targets = targets_of(soft=False)
    back = layers.convolve_backward
    return {
        "convolve: channels": lambda: layers.convolve(x[..., :4].copy(), weight),
        "convolve: float64": lambda: layers.convolve(x.astype(float), weight),
        "convolve: no cell": lambda: layers.convolve(x[:, :0], weight),
        "convolve: weight": lambda: layers.convolve(x, half),
        "convolve: 6 channels": lambda: layers.convolve(x[..., :6].copy(), weight[:, :6]),
        "convolve: norm": lambda: layers.convolve(x, weight, norm[:2]),
        "convolve: bias": lambda: layers.convolve(x, weight, None, bias[:8]),
        "gradients: gradient": lambda: back(z[:, :3], z, table, x, weight),
        "gradients: z": lambda: back(z, z[..., :8].copy(), table, x, weight),
        "gradients: table": lambda: back(z, z, table[:3], x, weight),
        "gradients: no norm": lambda: back(z, z, table, x, weight, None, Then.MASK, x.copy()),
        "gradients: of x": lambda: back(z, z, table, x, weight, norm, Then.KEEP, x[:, :3].copy()),
        "gradients: strided": lambda: back(
            z, z, table, x, weight, norm, Then.KEEP, x.swapaxes(1, 2)
        ),
        "halve: odd": lambda: layers.halve(x[:, :3], half),
        "halve: gradient": lambda: layers.halve_backward(z, z, table, x, half),
        "double: other": lambda: layers.double(small, half, bias[:8], x[:, :3]),
        "double: bias": lambda: layers.double(small, half, bias, x),
        "double: gradient": lambda: layers.double_backward(x[:, :3], x, small, half),
        "normalise: norm": lambda: layers.normalise(z, norm),
        "normalise: other": lambda: layers.normalise(x, norm, x[:, :3]),
        "normalise: y": lambda: layers.normalise_backward(x, x[:, :3], x, norm[0]),
        "likelihood: labels": lambda: layers.likelihood(x, labels, targets, 2),
        "likelihood: channels": lambda: layers.likelihood(x, fine, targets, 2),
        "likelihood: targets": lambda: layers.likelihood(z, labels, targets[:3], 1),
        "likelihood: square": lambda: layers.likelihood(z, labels, targets, 3),
        "cells: odd": lambda: layers.cells(images[:, :3], 2),
        "cells: grey": lambda: layers.cells(images[..., 0], 1),
    }
