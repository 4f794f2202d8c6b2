"""Fitting on two processes gives what one process gives with the same global batches."""

from __future__ import annotations

import os
import socket
import warnings

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from captum_mi import InfoBottleneckAttribution, ranks

OPTIONS = [{}, {"finetune_base": True}, {"steps": 2, "beta2": 0.1}]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stage1 = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
        self.stage2 = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        return self.fc(self.stage2(self.stage1(x)).mean((2, 3)))


def global_batches():
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(n, 3, 8, 8, generator=generator).double() for n in (12, 12, 10)]


def outcome(loader, steps=6, **options):
    """Maps, dataset figures and history of a fit."""
    attr = InfoBottleneckAttribution(Net().double(), ["stage1", "stage2"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        history = attr.fit(loader, steps, progress=False, bank_size=512, **options)
    probe = global_batches()[0][:4]
    return {
        "map": attr.attribute(probe, target=1),
        "general": attr.attribute(probe, information="general"),
        "bank": torch.stack([bank.clean.mean(0) for bank in attr.networks.banks]),
        "distortion": torch.tensor(history.distortion),
        "head": torch.tensor(history.head),
        "info_nce": torch.tensor(history.info_nce),
        "beta2": torch.tensor(history.beta2),
        "figures": torch.tensor([
            [one.mean, one.standard_error]
            for one in attr.information(loader, progress=False)["stage1"].values()
        ])[[0, 3]],
    }


def run_rank(rank, port, path):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    try:
        # The processes' shares differ in size.
        cuts = [(slice(0, 7), slice(7, None))[rank] for _ in range(3)]
        shares = [batch[cut] for batch, cut in zip(global_batches(), cuts)]
        results = [outcome(shares, **options) for options in OPTIONS]
        assert ranks.world() == 2
        torch.save(results, f"{path}/{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    path = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(run_rank, (port, str(path)), nprocs=2)
    return [torch.load(path / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("case", range(len(OPTIONS)))
def test_two_processes_fit_as_one_does(two_processes, case):
    alone = outcome(global_batches(), **OPTIONS[case])
    for results in two_processes:
        for name, value in results[case].items():
            if name == "bank":  # other positions are drawn: alike, not equal
                torch.testing.assert_close(value, alone[name], atol=0.2, rtol=0.2)
            else:
                torch.testing.assert_close(value, alone[name], atol=1e-7, rtol=1e-5,
                                           equal_nan=True, msg=lambda m, n=name: f"{n}: {m}")


def test_both_processes_end_up_with_the_same_bank(two_processes):
    first, second = two_processes
    for a, b in zip(first, second):
        assert torch.equal(a["bank"], b["bank"])


def test_one_process_is_left_alone():
    rows = torch.randn(3, 2, requires_grad=True)
    assert ranks.gather_rows(rows) is rows
    assert ranks.total(rows) is rows
    assert (ranks.world(), ranks.rank(), ranks.first_row(3, rows.device)) == (1, 0, 0)
    torch.manual_seed(0)
    drawn = ranks.randn_rows(rows)
    torch.manual_seed(0)
    assert torch.equal(drawn, torch.randn_like(rows))
