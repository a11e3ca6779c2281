"""Batch norm over all ranks is torch's batch norm on all their rows.

Run: pytest tests/test_norm.py
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from processes import wait_until
from ranks import CONTEXT  # whose fork server has imported torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from segpipe.models import torch_compat
from segpipe.models.loss import Loss
from segpipe.models.norm import GlobalBatchNorm2d, synchronise
from segpipe.models.wnet import WNet

CPU = torch.device("cpu")
DEADLINE_S = 120.0
ROWS = {2: [3, 1], 3: [2, 1, 4]}  # of each rank


def ranks(num: int, work: Callable[[int, int], Any], folder: Path) -> list[Any]:
    """What work(rank, num) gave in each of `num` processes that form a gloo group."""
    started = mp.start_processes(
        _rank, (num, work, folder), num, join=False, start_method=CONTEXT.get_start_method()
    )
    try:
        wait_until(lambda: started.join(timeout=0.02), "end of all ranks", DEADLINE_S)
    finally:
        for process in started.processes:
            process.kill()
    return [torch.load(folder / f"{rank}.pt") for rank in range(num)]


def _rank(rank: int, num: int, work: Callable[[int, int], Any], folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=num)
    torch.save(work(rank, num), folder / f"{rank}.pt")
    torch_compat.leave_group()


def share(values: Tensor, rank: int, num: int) -> Tensor:
    return values.split(ROWS[num])[rank]


def passed(
    norm: nn.BatchNorm2d, batches: list[Tensor], weights: list[Tensor]
) -> dict[str, list[Tensor] | Tensor]:
    """Two training batches and an evaluated one through the norm, and all that came of it."""
    found: dict[str, Any] = {"outputs": [], "gradients": []}
    for x, weight in zip(batches, weights, strict=True):
        leaf = x.detach().requires_grad_()
        output = norm(leaf)
        (output * weight).sum().backward()
        found["outputs"].append(output.detach())
        found["gradients"].append(leaf.grad)
    found["evaluated"] = norm.eval()(batches[0]).detach()
    found |= {name: tensor.detach() for name, tensor in norm.state_dict().items()}
    return found | {f"of {name}": p.grad for name, p in norm.named_parameters()}


def drawn(num: int, dtype: torch.dtype, offset: float) -> tuple[list[Tensor], list[Tensor]]:
    """Two batches of all ranks' rows, and the weights of their outputs in a loss."""
    generator = torch.Generator().manual_seed(num)
    shape = (sum(ROWS[num]), 5, 6, 4)
    spread = torch.arange(1, 6)[:, None, None]
    batches = [offset + spread * torch.randn(shape, generator=generator) for _ in range(2)]
    weights = [torch.randn(shape, generator=generator) for _ in range(2)]
    return [x.to(dtype) for x in batches], [w.to(dtype) for w in weights]


def fresh(norm: type[nn.BatchNorm2d], dtype: torch.dtype) -> nn.BatchNorm2d:
    made = norm(5, eps=1e-3, momentum=0.3).to(dtype)
    with torch.no_grad():
        made.weight.copy_(torch.linspace(0.5, 2, 5))
        made.bias.copy_(torch.linspace(-1, 1, 5))
    return made


CASES = [(torch.float64, 0.0), (torch.float32, 0.0), (torch.float32, 1000.0)]


def ours(rank: int, num: int) -> list[dict[str, Any]]:
    found = []
    for dtype, offset in CASES:
        norm = synchronise(fresh(nn.BatchNorm2d, dtype), CPU)
        assert isinstance(norm, GlobalBatchNorm2d)
        batches, weights = (
            [share(values, rank, num) for values in both] for both in drawn(num, dtype, offset)
        )
        found.append(passed(norm, batches, weights))
    return found


@pytest.mark.parametrize("num", [2, 3])
def test_ranks_with_uneven_rows_give_what_torch_gives_on_all_rows(num, tmp_path):
    """Outputs, gradients, running statistics; in float32 also far from 0, against float64."""
    by_rank = ranks(num, ours, tmp_path)
    for case, (dtype, offset) in enumerate(CASES):
        found = [of_rank[case] for of_rank in by_rank]
        batches, weights = drawn(num, dtype, offset)
        exact = [[values.double() for values in both] for both in (batches, weights)]
        wanted = passed(fresh(nn.BatchNorm2d, torch.float64), *exact)
        near = {"rtol": 1e-10, "atol": 1e-10}
        if dtype == torch.float32:  # a value near 1000 is known to 6e-5, and 96 of them are summed
            near = {"rtol": 1e-4, "atol": 5e-3 if offset else 1e-5}
        for name in ("outputs", "gradients"):
            for batch in range(2):
                got = torch.cat([of_rank[name][batch] for of_rank in found])
                torch.testing.assert_close(got.double(), wanted[name][batch], **near)
        got = torch.cat([of_rank["evaluated"] for of_rank in found])
        torch.testing.assert_close(got.double(), wanted["evaluated"], **near)
        for name in ("of weight", "of bias"):  # of the sum of all ranks' losses
            got = torch.stack([of_rank[name] for of_rank in found]).sum(dim=0)
            torch.testing.assert_close(got.double(), wanted[name], **near)
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            for of_rank in found:
                assert (of_rank[name] == found[0][name]).all()
            torch.testing.assert_close(found[0][name].double(), wanted[name].double(), **near)


def halves(rank: int, num: int) -> tuple[Tensor, Tensor, Tensor]:
    norm = synchronise(nn.BatchNorm2d(5), CPU)
    [x, _], [weight, _] = drawn(num, torch.bfloat16, 3.0)
    leaf = share(x, rank, num).detach().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        output = norm(leaf)
    (output * share(weight, rank, num)).sum().backward()
    return output.detach(), leaf.grad, norm.running_mean


def test_bfloat16_stays_bfloat16_and_its_statistics_are_precise(tmp_path):
    by_rank = ranks(2, halves, tmp_path)
    [x, _], [weight, _] = drawn(2, torch.bfloat16, 3.0)
    leaf, norm = x.double().requires_grad_(), nn.BatchNorm2d(5).double()
    output = norm(leaf)
    (output * weight).sum().backward()
    outputs, gradients, means = zip(*by_rank, strict=True)
    for got, wanted in ((outputs, output.detach()), (gradients, leaf.grad)):
        together = torch.cat(got)
        assert together.dtype == torch.bfloat16
        torch.testing.assert_close(together.double(), wanted, rtol=2e-2, atol=2e-2)
    for mean in means:
        torch.testing.assert_close(mean.double(), norm.running_mean, rtol=1e-5, atol=1e-6)


def photographs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    images = torch.randint(0, 256, (4, 12, 16, 3), generator=generator, dtype=torch.uint8)
    return images, torch.randint(0, 3, (4, 12, 16), generator=generator, dtype=torch.uint8)


def wnet() -> WNet:
    torch.manual_seed(7)
    return WNet(width=2)


def trained(rank: int, num: int) -> dict[str, Tensor]:
    images, labels = photographs()
    network = synchronise(wnet(), CPU)
    assert sum(isinstance(m, GlobalBatchNorm2d) for m in network.modules()) == 2 * (5 * 3 + 2)
    loss = DistributedDataParallel(Loss(network))
    mine = len(share(images, rank, num)) / len(images)
    part = loss(share(images, rank, num), share(labels, rank, num)) * mine
    (part * num).backward()
    found = {f"of {name}": p.grad for name, p in network.named_parameters()}
    return found | {"loss": part.detach()} | network.state_dict()


def test_a_network_on_two_ranks_learns_what_one_process_learns(tmp_path):
    """Loss, gradients through DDP and running statistics of a W-Net with 3 rows and 1."""
    by_rank = ranks(2, trained, tmp_path)
    network = wnet()
    loss = Loss(network)(*photographs())
    loss.backward()
    wanted = {f"of {name}": p.grad for name, p in network.named_parameters()}
    wanted |= network.state_dict()
    for of_rank in by_rank:
        for name, tensor in wanted.items():
            torch.testing.assert_close(of_rank[name], tensor, rtol=1e-3, atol=1e-5, msg=name)
    torch.testing.assert_close(by_rank[0]["loss"] + by_rank[1]["loss"], loss.detach())


def flat(found: dict[str, Any]) -> dict[str, Tensor]:
    return {
        f"{name} {n}": tensor
        for name, tensors in found.items()
        for n, tensor in enumerate(tensors if isinstance(tensors, list) else [tensors])
    }


def test_one_process_has_torchs_batch_norm_to_the_bit():
    batches, weights = drawn(3, torch.float32, 2.0)
    norm = synchronise(fresh(nn.BatchNorm2d, torch.float32), CPU)
    found = passed(norm, batches, weights)
    wanted = passed(fresh(nn.BatchNorm2d, torch.float32), batches, weights)
    for name, value in wanted.items():
        for a, b in (
            zip(found[name], value, strict=True)
            if value.__class__ is list
            else [(found[name], value)]
        ):
            assert torch.equal(a, b), name


def test_what_is_synchronised_keeps_its_parameters_buffers_and_mode():
    network = wnet().eval()
    before = network.state_dict(keep_vars=True)
    assert synchronise(network, CPU) is network
    after = network.state_dict(keep_vars=True)
    assert list(before) == list(after)
    assert all(after[name] is tensor for name, tensor in before.items())
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms
    assert all(type(m) is GlobalBatchNorm2d and not m.training for m in norms)


def test_gpus_get_torchs_own_synchronisation():
    network = synchronise(wnet(), torch.device("cuda"))
    assert any(isinstance(m, nn.SyncBatchNorm) for m in network.modules())
    assert not any(isinstance(m, nn.BatchNorm2d) for m in network.modules())


def lonely(rank: int, num: int) -> str:
    """One value of a channel in one rank alone: the other has no row."""
    try:
        synchronise(nn.BatchNorm2d(5), CPU)(torch.ones(1 - rank, 5, 1, 1))
    except ValueError as error:
        return str(error)
    return ""


def test_one_value_a_channel_is_refused_on_every_rank(tmp_path):
    assert ranks(2, lonely, tmp_path) == 2 * [
        "batch norm of 1 values of a channel, wanted 2 or more"
    ]
