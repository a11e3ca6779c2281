"""What needs a card: the same losses and masks as on the CPU. Skipped clearly without one.

Run: make gpu
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from ranks import history
from verbs import run

from segpipe.models import networks
from segpipe.models.loss import Loss
from segpipe.models.predict import GPU_BATCH, Predictor, channels_last

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"),
]
SMALL = ["--recipe", "lecture", "--epochs", 2]
SMALL += ["--crops-per-image", 20, "--crop-size", 64, "--batch-size", 10]
MODELS = {name: 64 if name == "segnet-lite" else 8 for name in networks.MODELS}
"""Widths of all networks."""
CROP, CANVAS = 64, 96  # px, multiples of every network's stride


def losses(device: str, model: str, precision: str, steps: int = 10) -> list[float]:
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    network = channels_last(networks.build_model(model, 3, MODELS[model]).to(device))
    loss = Loss(network, precision)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, fused=True)
    rng, found = np.random.default_rng(0), []
    for _ in range(steps):
        images = torch.from_numpy(rng.integers(0, 256, (4, CROP, CROP, 3), dtype=np.uint8)).to(
            device
        )
        labels = (images[..., 1] // 86).to(torch.uint8)
        value = loss(images, labels)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        found.append(value.item())
    return found


@pytest.mark.parametrize("model", list(MODELS))
def test_the_losses_are_the_cpus(model):
    assert losses("cuda", model, "fp32") == pytest.approx(losses("cpu", model, "fp32"), rel=1e-3)


@pytest.mark.parametrize("model", list(MODELS))
def test_bf16_loses_nearly_alike(model):
    assert losses("cuda", model, "bf16") == pytest.approx(losses("cpu", model, "fp32"), rel=0.05)


@pytest.mark.parametrize("model", list(MODELS))
def test_the_scores_are_the_cpus(model):
    torch.manual_seed(0)
    network = networks.build_model(model, 3, MODELS[model])
    canvases = np.random.default_rng(0).integers(0, 256, (5, CANVAS, CANVAS, 3), dtype=np.uint8)
    wanted = Predictor(network, "cpu").scores(canvases)
    np.testing.assert_allclose(Predictor(network, "cuda").scores(canvases), wanted, atol=2e-3)


@pytest.mark.parametrize("model", list(MODELS))
def test_the_batch_that_a_card_takes_fits_and_changes_no_score(model):
    torch.manual_seed(0)
    network = networks.build_model(model, 3, MODELS[model])
    canvases = np.random.default_rng(0).integers(0, 256, (GPU_BATCH + 1, CANVAS, CANVAS, 3))
    one, many = Predictor(network, "cuda", batch_size=1), Predictor(network, "cuda")
    wanted, found = (each.scores(canvases.astype(np.uint8)) for each in (one, many))
    assert 1 <= many.batch_size <= GPU_BATCH
    np.testing.assert_allclose(found, wanted, atol=2e-3)


def test_training_and_segmenting_on_a_card_do_what_they_do_on_the_cpu(
    labelled: Path, tmp_path: Path, ray_cluster: None
):
    """One worker, nccl."""

    for device in ("cpu", "gpu"):
        words = ["--data", labelled, "--output", tmp_path / device, *SMALL, "--device", device]
        assert run("train", *words, "--backend", "torch") == 0
    tables = [history(tmp_path / device) for device in ("cpu", "gpu")]
    on_cpu, on_gpu = ([float(row["train_loss"]) for row in table] for table in tables)
    assert on_gpu == pytest.approx(on_cpu, rel=1e-3)
    images = labelled / "test" / "images"
    for device in ("cpu", "gpu"):
        words = ["--input", images, "--output", tmp_path / f"masks-{device}", "--device", device]
        assert run("segment", *words) == 0
    for path in (tmp_path / "masks-cpu" / "masks").iterdir():
        one = np.asarray(Image.open(path))
        other = np.asarray(Image.open(tmp_path / "masks-gpu" / "masks" / path.name))
        assert (one != other).mean() < 1e-3
