"""Where a network lies: `bench.device`."""

from __future__ import annotations

import pytest
import torch

from bench import networks
from bench.device import exact_float32, place, use


def test_placing_changes_the_layout_and_not_one_value() -> None:
    torch.manual_seed(0)
    network = networks.build("digits-cnn", (1, 8, 8), 10)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    placed = place(network, torch.device("cpu"))
    assert placed is network
    assert all(torch.equal(value, before[name]) for name, value in placed.state_dict().items())
    inner = [module for module in placed.modules() if isinstance(module, torch.nn.Conv2d)][1]
    assert inner.weight.stride()[1] == 1


def test_float32_is_exact_inside_and_as_before_outside() -> None:
    convolutions, products = torch.backends.cudnn.conv, torch.backends.cuda.matmul
    before = convolutions.fp32_precision, products.fp32_precision  # type: ignore[attr-defined]
    with exact_float32():
        assert (convolutions.fp32_precision, products.fp32_precision) == ("ieee", "ieee")  # type: ignore[attr-defined]
    assert (convolutions.fp32_precision, products.fp32_precision) == before  # type: ignore[attr-defined]


def test_a_device_in_use_is_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    current: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    assert [use(name) for name in ("cpu", "cuda", "cuda:1")] == [
        torch.device("cpu"),
        torch.device("cuda"),
        torch.device("cuda:1"),
    ]
    assert current == [torch.device("cuda:1")]
