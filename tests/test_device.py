"""Where a network lies: `bench.device`."""

from __future__ import annotations

import torch

from bench import networks
from bench.device import place


def test_placing_changes_the_layout_and_not_one_value() -> None:
    torch.manual_seed(0)
    network = networks.build("digits-cnn", (1, 8, 8), 10)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    placed = place(network, torch.device("cpu"))
    assert placed is network
    assert all(torch.equal(value, before[name]) for name, value in placed.state_dict().items())
    inner = [module for module in placed.modules() if isinstance(module, torch.nn.Conv2d)][1]
    assert inner.weight.stride()[1] == 1
