"""Each network is the published one, takes any size, and learns; its checkpoint knows its width.

Run: pytest tests/test_networks.py
"""

import copy
import json
import math
import resource
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import f1_score
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from segpipe.data.classes import BACKGROUND, CLASSES, OUTSIDE, VESSEL
from segpipe.data.datasets import load_example
from segpipe.data.layouts import open_labelled
from segpipe.errors import UserError
from segpipe.models import checkpoint
from segpipe.models.checkpoint import Card
from segpipe.models.fused import folded, fused
from segpipe.models.loss import LOSSES, Loss, dice_loss, probabilities
from segpipe.models.network import Network, autocast, to_planes
from segpipe.models.networks import MODELS, build_model, load_network
from segpipe.models.predict import Predictor, gpu_batch
from segpipe.models.resunet import ResUNet
from segpipe.models.segnet import SegNet
from segpipe.models.unet import UNet
from segpipe.models.wnet import WNet
from segpipe.storage import open_store

NAMES = list(MODELS)
Layers = list[tuple[int, int, int]]
"""Of each convolution: channels in, channels out, side of its kernel."""

VGG16: Layers = [  # arXiv:1409.1556, table 1, column D
    (3, 64, 3), (64, 64, 3),
    (64, 128, 3), (128, 128, 3),
    (128, 256, 3), (256, 256, 3), (256, 256, 3),
    (256, 512, 3), (512, 512, 3), (512, 512, 3),
    (512, 512, 3), (512, 512, 3), (512, 512, 3),
]  # fmt: skip
SEGNET_DECODER: Layers = [  # its mirror image, to three classes
    (512, 512, 3), (512, 512, 3), (512, 512, 3),
    (512, 512, 3), (512, 512, 3), (512, 256, 3),
    (256, 256, 3), (256, 256, 3), (256, 128, 3),
    (128, 128, 3), (128, 64, 3),
    (64, 64, 3), (64, 3, 3),
]  # fmt: skip
UNET: Layers = [  # arXiv:1505.04597, figure 1, for RGB and three classes
    (3, 64, 3), (64, 64, 3),
    (64, 128, 3), (128, 128, 3),
    (128, 256, 3), (256, 256, 3),
    (256, 512, 3), (512, 512, 3),
    (512, 1024, 3), (1024, 1024, 3),
    (1024, 512, 2), (1024, 512, 3), (512, 512, 3),
    (512, 256, 2), (512, 256, 3), (256, 256, 3),
    (256, 128, 2), (256, 128, 3), (128, 128, 3),
    (128, 64, 2), (128, 64, 3), (64, 64, 3),
    (64, 3, 1),
]  # fmt: skip


def num_parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def convolutions(module: nn.Module) -> list[nn.Conv2d | nn.ConvTranspose2d]:
    return [m for m in module.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]


def with_bias(layers: Layers) -> int:
    return sum(before * after * side**2 + after for before, after, side in layers)


def as_table(layers: list[nn.Conv2d | nn.ConvTranspose2d]) -> Layers:
    return [(layer.in_channels, layer.out_channels, layer.kernel_size[0]) for layer in layers]


# ---- the published architectures


def test_segnet_lite_has_3523_parameters():
    assert num_parameters(build_model("segnet-lite", 3)) == 3523


def test_wnet_has_the_published_68482_parameters():
    network = WNet(num_classes=1)
    assert num_parameters(network) == 68_482
    assert num_parameters(network.first) == 34_201
    assert num_parameters(network.second) == 34_281  # one more plane, in 8 x 3 x 3 and 8 x 1 x 1


def test_segnets_encoder_has_vgg16s_convolutions():
    network = SegNet()
    encoder = convolutions(network.encoder)
    assert as_table(encoder) == VGG16
    assert sum(num_parameters(layer) for layer in encoder) == 14_714_688


def test_segnet_has_its_layers_and_no_other_parameters():
    network = SegNet()
    assert as_table(convolutions(network.decoder)) == SEGNET_DECODER
    normed = sum(after for _, after, _ in VGG16) + sum(c for _, c, _ in SEGNET_DECODER[:-1])
    total = with_bias(VGG16) + with_bias(SEGNET_DECODER) + 2 * normed
    assert num_parameters(network) == total == 29_444_739


def test_unet_has_23_convolutional_layers_and_no_other_parameters():
    network = UNet()
    assert len(UNET) == 23
    assert sorted(as_table(convolutions(network))) == sorted(UNET)
    assert num_parameters(network) == with_bias(UNET) == 31_031_875


def test_unets_weights_begin_as_he_et_al_say():
    """Standard deviation sqrt(2 / N), N a neuron's inputs: 2 x 2 up-convolutions do not overlap."""
    for layer in convolutions(UNet()):
        side = layer.kernel_size[0] if isinstance(layer, nn.Conv2d) else 1
        wanted = (2 / (layer.in_channels * side**2)) ** 0.5
        near = 0.03 if layer.weight.numel() > 10_000 else 0.2
        assert layer.weight.std().item() == pytest.approx(wanted, rel=near)
        assert not layer.bias.any()


def test_wnets_weights_begin_as_its_authors_do():
    """Standard deviation sqrt(2 / outputs of a neuron), but for torch's in up-convolutions."""
    for layer in convolutions(WNet(width=64)):
        if isinstance(layer, nn.Conv2d) and layer.weight.numel() > 2000:
            wanted = (2 / (layer.out_channels * layer.kernel_size[0] ** 2)) ** 0.5
            assert layer.weight.std().item() == pytest.approx(wanted, rel=0.05)


# ---- the networks, written out by hand


def trained(network: Network) -> Network:
    """With norms that are not the identity in either mode."""
    generator = torch.Generator().manual_seed(11)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                tensor.data.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return network.eval()


class Weights:
    """A network's layers in the order in which they were written down, taken one after another."""

    def __init__(self, module: nn.Module) -> None:
        self.of_convolutions = iter(convolutions(module))
        self.of_norms = iter([m for m in module.modules() if isinstance(m, nn.BatchNorm2d)])

    def convolve(self, x: Tensor) -> Tensor:
        layer = next(self.of_convolutions)
        return F.conv2d(x, layer.weight, layer.bias, padding=layer.kernel_size[0] // 2)

    def upsample(self, x: Tensor) -> Tensor:
        """Each value becomes a 2x2 window."""
        layer = next(self.of_convolutions)
        windows = torch.einsum("nihw,iouv->nohuwv", x, layer.weight)
        n, channels, height, _, width, _ = windows.shape
        return windows.reshape(n, channels, 2 * height, 2 * width) + layer.bias[:, None, None]

    def normalise(self, x: Tensor) -> Tensor:
        norm = next(self.of_norms)
        mean, variance, weight, bias = (
            tensor[:, None, None]
            for tensor in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
        )
        return (x - mean) / (variance + 1e-5).sqrt() * weight + bias


def windows(x: Tensor) -> Tensor:
    """[N, C, H, W] -> [N, C, H/2, W/2, 4], the values of each 2x2 window."""
    n, channels, height, width = x.shape
    split = x.reshape(n, channels, height // 2, 2, width // 2, 2)
    return split.permute(0, 1, 2, 4, 3, 5).flatten(4)


def test_segnet_puts_values_back_where_the_maxima_were():
    """Against 26 convolutions by hand, whose pooling keeps one-hot maps instead of indices."""
    torch.manual_seed(1)
    network = trained(SegNet(width=3))
    x = torch.rand(2, 3, 32, 64)
    encoder, decoder = Weights(network.encoder), Weights(network.decoder)
    values, maps = x, []
    for depth in (2, 2, 3, 3, 3):
        for _ in range(depth):
            values = F.relu(encoder.normalise(encoder.convolve(values)))
        four = windows(values)
        maps.append(F.one_hot(four.argmax(dim=-1), 4))
        values = four.amax(dim=-1)
    for depth in (3, 3, 3, 2, 1):
        n, channels, height, width = values.shape
        spread = (values[..., None] * maps.pop()).reshape(n, channels, height, width, 2, 2)
        values = spread.permute(0, 1, 2, 4, 3, 5).reshape(n, channels, 2 * height, 2 * width)
        for _ in range(depth):
            values = F.relu(decoder.normalise(decoder.convolve(values)))
    torch.testing.assert_close(network(x), decoder.convolve(values), rtol=1e-4, atol=1e-4)


def test_unet_joins_each_level_with_the_one_it_came_from():
    torch.manual_seed(2)
    network = UNet(width=2)
    down, up, merge = Weights(network.down), Weights(network.up), Weights(network.merge)
    x = torch.rand(2, 3, 16, 32)
    values, skips = x, []
    for level in range(5):
        values = F.relu(down.convolve(F.relu(down.convolve(values))))
        if level < 4:
            skips.append(values)
            values = windows(values).amax(dim=-1)
    for _ in range(4):
        values = torch.cat([skips.pop(), up.upsample(values)], dim=1)
        values = F.relu(merge.convolve(F.relu(merge.convolve(values))))
    wanted = F.conv2d(values, network.last.weight, network.last.bias)
    torch.testing.assert_close(network(x), wanted, rtol=1e-4, atol=1e-5)


def small_unet(network: nn.Module, x: Tensor) -> Tensor:
    """One of W-Net's two, by hand."""
    down, bridge = Weights(network.down), Weights(network.bridge)
    up, merge = Weights(network.up), Weights(network.merge)

    def layer(weights: Weights, values: Tensor) -> Tensor:
        return weights.normalise(F.leaky_relu(weights.convolve(values), 0.01))

    def block(weights: Weights, values: Tensor) -> Tensor:
        along = layer(weights, layer(weights, values))
        return along + weights.normalise(weights.convolve(values))

    full = block(down, x)
    half = block(down, windows(full).amax(dim=-1))
    quarter = block(down, windows(half).amax(dim=-1))
    half = block(merge, torch.cat([up.upsample(quarter), layer(bridge, half)], dim=1))
    full = block(merge, torch.cat([up.upsample(half), layer(bridge, full)], dim=1))
    return F.conv2d(full, network.last.weight, network.last.bias)


def test_wnets_second_net_sees_the_image_and_the_first_ones_logits():
    torch.manual_seed(3)
    network = trained(WNet(width=2))
    x = torch.rand(2, 3, 12, 20)
    first = small_unet(network.first, x)
    second = small_unet(network.second, torch.cat([x, first], dim=1))
    found = network.outputs(x)
    assert len(found) == 2
    torch.testing.assert_close(found[0], first, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[1], second, rtol=1e-4, atol=1e-4)
    assert (network(x) == found[1]).all()


def test_wnets_shortcut_has_no_bias():
    shortcuts = [layer for layer in convolutions(WNet()) if layer.bias is None]
    assert as_table(shortcuts) == [
        (3, 8, 1), (8, 16, 1), (16, 32, 1), (32, 16, 1), (16, 8, 1),
        (6, 8, 1), (8, 16, 1), (16, 32, 1), (32, 16, 1), (16, 8, 1),
    ]  # fmt: skip


def test_resunet_joins_residual_blocks_of_five_sizes_by_sums():
    torch.manual_seed(4)
    network = trained(ResUNet(width=3))
    x = torch.rand(2, 3, 16, 32)
    names = ("first", "down", "smaller", "larger", "up")
    first, down, smaller, larger, up = (Weights(getattr(network, name)) for name in names)

    def residual(weights: Weights, values: Tensor) -> Tensor:
        inner = F.relu(weights.normalise(weights.convolve(values)))
        return F.relu(weights.normalise(weights.convolve(inner)) + values)

    values = residual(down, F.relu(first.normalise(first.convolve(x))))
    skips = []
    for _ in range(4):
        skips.append(values)
        weight = next(smaller.of_convolutions).weight
        corners = windows(values).unflatten(-1, (2, 2))
        halved = torch.einsum("nihwuv,oiuv->nohw", corners, weight)
        values = residual(down, F.relu(smaller.normalise(halved)))
    for _ in range(4):
        values = residual(up, F.relu(larger.upsample(values) + skips.pop()))
    wanted = F.conv2d(values, network.last.weight, network.last.bias, padding=1)
    torch.testing.assert_close(network(x), wanted, rtol=1e-4, atol=1e-4)


def test_resunet_has_280147_parameters():
    """8 channels at full size, 24 and then 48 below; norms have two numbers a channel."""
    residual = {c: 2 * (9 * c**2 + 2 * c) for c in (8, 24, 48)}
    blocks = 2 * residual[8] + 2 * residual[24] + 5 * residual[48]
    first = 9 * 3 * 8 + 2 * 8
    smaller = 4 * (8 * 24 + 24 * 48 + 2 * 48**2) + 2 * (24 + 3 * 48)
    larger = 4 * (24 * 8 + 48 * 24 + 2 * 48**2) + 8 + 24 + 2 * 48
    last = 9 * 8 * 3 + 3
    assert num_parameters(ResUNet()) == blocks + first + smaller + larger + last == 280_147


# ---- calibration


@pytest.mark.parametrize("name", NAMES)
def test_calibrated_weights_give_the_scaled_and_raised_logit_of_the_score(name):
    torch.manual_seed(8)
    network = trained(build_model(name, classes=3, width=4))
    x = torch.rand(1, 3, 32, 32)
    with torch.inference_mode():
        before = network(x)
        network.calibrate(0.7, -1.25)
        after = network(x)
    z = before[:, 1] - before[:, 2]
    torch.testing.assert_close(after[:, 1] - after[:, 2], 0.7 * z - 1.25, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(after[:, 0], 0.7 * before[:, 0], rtol=1e-4, atol=1e-4)


# ---- any size


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(37, 50), (64, 33), (64, 96), (1, 1)])
def test_logits_have_the_images_size_whatever_the_stride(name, size):
    network = build_model(name, classes=4, width=2).eval()
    x = torch.rand(2, 3, *size)
    found = network.outputs(x)
    assert [tuple(logits.shape) for logits in found] == len(found) * [(2, 4, *size)]
    assert len(found) == (2 if name == "wnet" else 1)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_added_repeats_the_edge_and_is_cut_off_again(name):
    network = trained(build_model(name, classes=3, width=2))
    x = torch.rand(1, 3, 37, 50)
    stride = network.STRIDE
    rows, columns = (np.arange(-(-n // stride) * stride).clip(max=n - 1) for n in (37, 50))
    padded = x[:, :, rows][..., columns]
    for found, whole in zip(network.outputs(x), network.logits(padded), strict=True):
        assert (found == whole[..., :37, :50]).all()


def test_strides_are_those_of_the_poolings():
    strides = {name: MODELS[name].STRIDE for name in NAMES}
    assert strides == {
        "segnet-lite": 2,
        "segnet": 32,
        "unet": 16,
        "wnet": 4,
        "resunet": 16,
        "fineunet": 32,
    }


GIB, MIB = 2**30, 2**20


@pytest.mark.parametrize(
    ("free", "canvas", "wanted"),
    [
        (80 * GIB, 100 * MIB, 16),
        (2 * 16 * 100 * MIB, 100 * MIB, 16),
        (2 * 16 * 100 * MIB - 1, 100 * MIB, 15),
        (GIB, 100 * MIB, 5),
        (150 * MIB, 100 * MIB, 1),  # tried, as nothing smaller can be
        (0, 100 * MIB, 1),
        (GIB, 0, 16),
    ],
)
def test_a_gpu_takes_sixteen_canvases_at_once_or_what_half_of_its_free_memory_holds(
    free, canvas, wanted
):
    assert gpu_batch(free, canvas) == wanted


def test_a_card_is_asked_for_its_memory_once_and_only_where_no_batch_size_is_given():
    class Card(Predictor):
        """A CPU that measures what a card holds."""

        def __init__(self, batch_size: int | None) -> None:
            super().__init__(Echo())
            self.batch_size, self.asked, self.sizes = batch_size, 0, []

        def _batch_of(self, canvas):
            self.asked += 1
            assert canvas.shape == (1, 8, 8, 3)
            return 3

        def _scores(self, batch):
            self.sizes.append(len(batch))
            return super()._scores(batch)

    canvases = np.random.default_rng(0).integers(0, 256, (7, 8, 8, 3), dtype=np.uint8)
    own, named, wanted = Card(None), Card(5), Predictor(Echo()).scores(canvases)
    for card, sizes in ((own, [3, 3, 1]), (named, [5, 2])):
        np.testing.assert_array_equal(card.scores(canvases), wanted)
        assert card.sizes == sizes
    own.scores(canvases[:0])
    own.scores(canvases[:2])
    assert (own.asked, named.asked) == (1, 0)


class Echo(Network):
    STRIDE = 8

    def logits(self, x: Tensor) -> tuple[Tensor]:
        self.seen = x
        return (x,)


def test_nothing_is_copied_where_the_stride_divides_the_size():
    network, x = Echo(), torch.rand(1, 3, 16, 24)
    assert network(x) is x
    assert network.seen is x
    assert (network(x[..., :17]) == x[..., :17]).all()
    assert network.seen.shape == (1, 3, 16, 24)


def test_hooks_of_the_module_see_each_call():
    network, seen = Echo(), []
    network.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    network(torch.rand(1, 3, 5, 6))
    assert seen == [(1, 3, 5, 6)]


# ---- loss


def labelled(height: int, width: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    images = torch.randint(0, 256, (2, height, width, 3), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, 3, (2, height, width), generator=generator, dtype=torch.uint8)
    return images, labels


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_is_the_mean_over_pixels_summed_over_outputs(name):
    torch.manual_seed(5)
    network = build_model(name, classes=3, width=4).eval()
    images, labels = labelled(21, 30)
    x = torch.from_numpy(images.numpy().transpose(0, 3, 1, 2).astype(np.float32) / 255)
    wanted = 0.0
    for logits in network.outputs(x):
        of_truth = logits.softmax(dim=1).gather(1, labels[:, None].long())
        wanted += -of_truth.log().mean().item()
    found = Loss(network)(images, labels)
    assert found.shape == ()
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(wanted, rel=1e-5)


def test_the_soft_dice_of_certain_classes_is_sklearns_f1():
    """Of the vessels of each crop; a crop without any in truth or mask costs nothing."""
    generator = torch.Generator().manual_seed(6)
    truth, found = torch.randint(0, 3, (2, 3, 20, 30), generator=generator)
    truth[2] = found[2] = 2
    certain = 50.0 * F.one_hot(found, 3).permute(0, 3, 1, 2).float()
    scores = [
        f1_score(t.ravel() == VESSEL, f.ravel() == VESSEL)
        for t, f in zip(truth[:2], found[:2], strict=True)
    ]
    wanted = 1 - (sum(scores) + 1) / 3
    assert dice_loss(certain, (truth == VESSEL).float()).item() == pytest.approx(
        wanted, abs=2e-3
    )  # one smoothing px


def test_with_dice_the_loss_is_the_sum_of_both():
    network = build_model("wnet", classes=3, width=4).eval()
    images, labels = labelled(24, 32)
    vessels = (labels == VESSEL).float()
    dice = sum(dice_loss(logits, vessels) for logits in network.outputs(to_planes(images)))
    plain, both = (Loss(network, loss=loss)(images, labels) for loss in LOSSES)
    assert both.item() == pytest.approx((plain + dice).item(), rel=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
def test_soft_labels_that_are_sure_give_the_loss_of_classes(loss):
    network = build_model("wnet", classes=3, width=4).eval()
    images, labels = labelled(24, 32)
    assert set(labels.unique().tolist()) == {OUTSIDE, VESSEL, BACKGROUND}
    soft = torch.tensor([0, 254, 1], dtype=torch.uint8)[labels.long()]
    hard = Loss(network, loss=loss)(images, labels)
    assert Loss(network, loss=loss, soft=True)(images, soft).item() == pytest.approx(hard.item())


def test_a_soft_labels_loss_is_least_where_the_network_says_the_same():
    """Of a pixel midway: as much a vessel as background, and its entropy is ln 2."""
    soft = torch.full((1, 1, 1), 127.5)
    losses = []
    for vessel in (0.3, 0.5, 0.7):
        logits = torch.tensor([1e-30, vessel, 1 - vessel]).log().reshape(1, 3, 1, 1)
        losses.append(F.cross_entropy(logits, probabilities(soft)).item())
    assert losses[1] == pytest.approx(math.log(2))
    assert losses[1] < min(losses[0], losses[2])


@pytest.mark.parametrize("name", NAMES)
def test_bf16_is_near_fp32_and_not_it(name):
    torch.manual_seed(6)
    network = trained(build_model(name, classes=3, width=4))
    images, labels = labelled(37, 50)
    exact, half = (Loss(network, precision)(images, labels) for precision in ("fp32", "bf16"))
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(exact.item(), rel=0.02)
    assert half != exact
    seen: list[torch.dtype] = []
    layer = convolutions(network)[-1]
    layer.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    Loss(network, "bf16")(images, labels)
    assert set(seen) == {torch.bfloat16}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_loss_waits_for_no_value(name, precision):
    """On tensors without values; a device would be waited for where one is asked for."""
    with FakeTensorMode():
        loss = Loss(build_model(name, classes=3, width=4), precision)
        images = torch.empty(2, 37, 50, 3, dtype=torch.uint8)
        loss(images, torch.empty(2, 37, 50, dtype=torch.uint8)).backward()
        assert all(p.grad is not None for p in loss.parameters())


# ---- checkpoints

CARD = Card("wnet", 540.0, 0.25, "drawn", CLASSES, "0", width=5)


def dumped(network: nn.Module, card: Card) -> bytes:
    state = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    return checkpoint.dump(state, card)


@pytest.mark.parametrize(
    ("name", "width"), [*((name, 5) for name in NAMES), ("segnet-lite", None), ("wnet", None)]
)
def test_a_checkpoint_gives_the_network_of_its_width(name, width):
    network = trained(build_model(name, classes=3, width=width))
    card = Card(name, 540.0, 0.25, "drawn", CLASSES, "0", width)
    loaded = checkpoint.load(dumped(network, card), "x")
    assert loaded.card == card
    again = load_network(loaded)
    x = torch.rand(1, 3, 20, 30)
    assert (again(x) == network(x)).all()
    assert list(again.state_dict()) == list(network.state_dict())
    assert not again.training
    assert all(p.requires_grad for p in again.parameters())


def with_card(data: bytes, **values: object) -> bytes:
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    card = json.loads(header["__metadata__"]["card"]) | values
    if values.get("width", 0) == "absent":
        del card["width"]
    header["__metadata__"]["card"] = json.dumps(card)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def test_an_older_file_without_a_width_has_the_networks_own():
    network = trained(WNet())
    data = with_card(dumped(network, CARD), width="absent")
    loaded = checkpoint.load(data, "x")
    assert loaded.card.width is None
    x = torch.rand(1, 3, 20, 30)
    assert (load_network(loaded)(x) == network(x)).all()


@pytest.mark.parametrize("width", [4, 0, -5, 2.5, "5", 10**6, 10**30])
@pytest.mark.parametrize("name", ["wnet", "segnet"])
def test_a_width_that_the_weights_do_not_have_is_refused(name, width):
    data = with_card(dumped(build_model(name, 3, 5), CARD), width=width, model=name)
    with pytest.raises(UserError, match=r"there/model.*does not fit together"):
        load_network(checkpoint.load(data, "there/model"))


def test_such_a_width_costs_no_memory():
    """A W-Net of 600 channels takes 1.5 GB."""
    data = with_card(dumped(WNet(width=5), CARD), width=600)
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match="does not fit together"):
        load_network(checkpoint.load(data, "x"))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before_kb + 200_000


def test_weights_of_half_precision_become_float32():
    network = WNet(width=5)
    data = dumped(network.half(), CARD)
    assert {p.dtype for p in load_network(checkpoint.load(data, "x")).parameters()} == {
        torch.float32
    }


# ---- learning

RECIPES = {  # width, side of the crops in px, highest learning rate, steps
    "segnet-lite": (128, 32, 0.02, 800),  # sees 7 px around a pixel: 0.93 on crops of 48 px
    "segnet": (8, 64, 0.01, 150),
    "unet": (8, 64, 0.003, 200),
    "wnet": (8, 64, 0.02, 100),
    "resunet": (8, 64, 0.01, 150),
}


def crops_of(drive: Path, side: int) -> tuple[Tensor, Tensor]:
    """Of two training photographs the crop with most vessels: images, labels."""
    store = open_store(str(drive))
    images, labels = [], []
    for example in open_labelled(store).training[:2]:
        found = load_example(store, example)
        vessel = torch.from_numpy(found.label == VESSEL)[None].float()
        dense = F.avg_pool2d(vessel, side, stride=1)[0]
        top, left = divmod(int(dense.argmax()), dense.shape[1])
        images.append(found.image[top : top + side, left : left + side])
        labels.append(found.label[top : top + side, left : left + side])
    return torch.from_numpy(np.stack(images)), torch.from_numpy(np.stack(labels))


def dice(network: Network, images: Tensor, labels: Tensor) -> float:
    with torch.inference_mode():
        found = network(to_planes(images)).argmax(dim=1) == VESSEL
    truth = labels == VESSEL
    return (2 * (found & truth).sum() / (found.sum() + truth.sum())).item()


@pytest.mark.parametrize(
    "name",
    [
        name if name == "resunet" else pytest.param(name, marks=pytest.mark.nightly)
        for name in NAMES
    ],
)
def test_a_network_learns_two_crops_of_drive_by_heart(name, drive):
    width, side, lr, steps = RECIPES[name]
    torch.manual_seed(0)
    images, labels = crops_of(drive, side)
    network = build_model(name, classes=3, width=width)
    loss = Loss(network.to(memory_format=torch.channels_last))
    optimizer = torch.optim.Adam(loss.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, steps)
    assert dice(network.eval(), images, labels) < 0.85  # all vessel is 0.8 on the smaller crops
    network.train()
    for _ in range(steps):
        optimizer.zero_grad()
        loss(images, labels).backward()
        optimizer.step()
        schedule.step()
    assert dice(network.eval(), images, labels) > 0.95


@pytest.mark.parametrize(("name", "left"), [("resunet", 0), ("segnet", 0), ("wnet", 24)])
def test_folded_networks_give_what_plain_ones_give(name, left):
    """A W-Net keeps those that follow an activation, where nothing can be folded."""
    network = trained(build_model(name, len(CLASSES), 8)).double()
    x = torch.rand(1, 3, 64, 96, dtype=torch.double)
    wanted = network(x).detach()
    found = folded(network)
    torch.testing.assert_close(found(x), wanted, rtol=1e-9, atol=1e-9)
    assert sum(isinstance(layer, nn.BatchNorm2d) for layer in found.modules()) == left


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch has no oneDNN here")
@pytest.mark.parametrize("order", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize(
    ("name", "width", "left", "precision"),
    [
        ("resunet", 8, 1, "fp32"),
        ("unet", 8, 1, "fp32"),
        ("segnet", 8, 1, "fp32"),  # in bf16 its pooling chooses other pixels, fused or not
        ("resunet", 8, 1, "bf16"),
        ("resunet", 1, 3, "bf16"),
        ("unet", 8, 1, "bf16"),
    ],
)
def test_fused_networks_give_what_plain_ones_give(name, width, left, precision, order):
    """All of their convolutions are fused but the last, which nothing follows, and those of one
    channel behind which another is added.
    """
    if precision == "bf16" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("no bfloat16 on this CPU")
    network = trained(build_model(name, len(CLASSES), width)).eval()
    x = torch.rand(2, 3, 64, 96).contiguous(memory_format=order)
    wanted = network(x).detach()
    found = fused(copy.deepcopy(network), "cpu", precision)
    with torch.inference_mode(), autocast(torch.device("cpu"), precision):
        logits = found(x).float()
    near = {"fp32": 1e-4, "bf16": 0.05}[precision] * float(wanted.std())
    assert float((logits - wanted).square().mean().sqrt()) < near
    assert sum(isinstance(layer, nn.Conv2d) for layer in found.modules()) == left


def test_networks_for_other_devices_are_not_fused():
    network = build_model("resunet", len(CLASSES), 8).eval()
    wanted = [type(layer) for layer in folded(copy.deepcopy(network)).modules()]
    assert [type(layer) for layer in fused(network, "cuda", "fp32").modules()] == wanted
