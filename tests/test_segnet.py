"""segnet-lite is the lecture's network, and pooling without indices is torch's own.

Run: pytest tests/test_segnet.py
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from segpipe.models.predict import Predictor, to_input, vessel_score
from segpipe.models.segnet import SegNetLite, unpool_of_pool


def by_torch(x: torch.Tensor) -> torch.Tensor:
    pooled, indices = nn.MaxPool2d(2, 2, return_indices=True)(x)
    return nn.MaxUnpool2d(2, 2)(pooled, indices)


def inputs() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 5, 8, 12, generator=generator)
    return {
        "random": x,
        "ties": (x * 1.5).round(),
        "constant": torch.full_like(x, 0.7),
        "zeros": torch.zeros_like(x),
        "negative": -x.abs() - 1,
        "after relu": x.relu(),
    }


@pytest.mark.parametrize("name", list(inputs()))
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("with_gradient", [True, False])
def test_pooling_without_indices_is_torchs_pool_and_unpool(name, layout, with_gradient):
    x = inputs()[name].contiguous(memory_format=layout)
    with torch.set_grad_enabled(with_gradient):
        torch.testing.assert_close(unpool_of_pool(x), by_torch(x), rtol=0, atol=0)


@pytest.mark.parametrize("name", list(inputs()))
def test_its_gradient_is_torchs(name):
    weights = torch.randn(2, 5, 8, 12, generator=torch.Generator().manual_seed(1))
    gradients = []
    for function in (unpool_of_pool, by_torch):
        x = inputs()[name].requires_grad_()
        (function(x) * weights).sum().backward()
        gradients.append(x.grad)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=0)


def test_its_gradient_agrees_with_finite_differences():
    x = torch.randn(1, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    assert torch.autograd.gradcheck(unpool_of_pool, (x.requires_grad_(),))


def test_segnet_lite_has_the_lectures_parameters():
    """3 x 64 x 9 + 64 and 64 x 3 x 9 + 3."""
    assert sum(p.numel() for p in SegNetLite().parameters()) == 1792 + 1731 == 3523


def test_segnet_lite_is_the_network_of_the_lecture():
    """Output and gradients of every weight, against conv, pool, unpool, conv written out."""
    torch.manual_seed(0)
    network = SegNetLite()
    x, target = torch.rand(2, 3, 16, 20), torch.randint(0, 3, (2, 16, 20))
    F.cross_entropy(network(x), target).backward()
    ours = [p.grad.clone() for p in network.parameters()]
    output = network(x).detach()
    network.zero_grad()
    written_out = network.decoder(by_torch(F.relu(network.encoder(x))))
    F.nll_loss(F.log_softmax(written_out, dim=1), target).backward()
    torch.testing.assert_close(output, written_out)
    for mine, theirs in zip(ours, [p.grad for p in network.parameters()], strict=True):
        torch.testing.assert_close(mine, theirs)


def test_a_score_does_not_depend_on_batch_neighbours():
    torch.manual_seed(0)
    predictor = Predictor(SegNetLite())
    canvases = torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8).numpy()
    together = predictor.scores(canvases)
    alone = predictor.scores(canvases[1:2])
    assert (together[1:2] == alone).all()


def test_the_score_is_the_vessels_share_of_the_two_retinal_classes():
    torch.manual_seed(0)
    network = SegNetLite()
    canvas = torch.randint(0, 256, (1, 32, 32, 3), dtype=torch.uint8).numpy()
    prob = network(to_input(canvas, torch.device("cpu"))).softmax(dim=1)
    wanted = prob[:, 1] / (prob[:, 1] + prob[:, 2])
    torch.testing.assert_close(torch.from_numpy(Predictor(network).scores(canvas)), wanted.detach())
    torch.testing.assert_close(vessel_score(prob.log()), wanted)


def test_scores_of_one_batch_are_the_scores_of_single_canvases():
    """A GPU takes 16 at once; what a canvas gets there must not come from its neighbours."""
    torch.manual_seed(1)
    predictor = Predictor(SegNetLite())
    canvases = torch.randint(0, 256, (5, 32, 32, 3), dtype=torch.uint8).numpy()
    alone = [predictor.scores(canvases[n : n + 1])[0] for n in range(5)]
    for at_once in (1, 2, 16):
        predictor.at_once = at_once
        for wanted, got in zip(alone, predictor.scores(canvases), strict=True):
            torch.testing.assert_close(torch.from_numpy(got), torch.from_numpy(wanted))


def test_canvases_come_as_channels_from_0_to_1():
    canvases = torch.arange(2 * 4 * 4 * 3, dtype=torch.uint8).reshape(2, 4, 4, 3) + 150
    tensor = to_input(canvases.numpy(), torch.device("cpu"))
    assert tensor.shape == (2, 3, 4, 4)
    for n, row, column, channel in [(0, 0, 0, 0), (1, 3, 2, 1), (0, 2, 3, 2)]:
        wanted = canvases[n, row, column, channel].item() / 255
        assert tensor[n, channel, row, column].item() == pytest.approx(wanted, abs=1e-7)


def test_a_score_is_finite_for_any_logits():
    """A softmax written out as exp / exp would give NaN here."""
    logits = torch.tensor([[0.0, 300.0, -300.0], [0.0, -300.0, 300.0], [9.0, -4.0, -4.0]])
    assert vessel_score(logits[..., None, None]).flatten().tolist() == [1.0, 0.0, 0.5]


def test_the_gradient_in_channels_last_is_torchs():
    x = inputs()["ties"].contiguous(memory_format=torch.channels_last)
    gradients = []
    for function in (unpool_of_pool, by_torch):
        leaf = x.clone(memory_format=torch.preserve_format).requires_grad_()
        (function(leaf) ** 2).sum().backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=0)
