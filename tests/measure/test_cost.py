"""Sizes, and MACs by two counters, against hand computation."""

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet18

from bench.errors import CellFailed
from bench.measure import macs, size
from bench.measure.cost import cost
from bench.measure.macs import count_macs


def convolutional() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=2),  # 9 × 9 → 5 × 5
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.Conv2d(8, 6, (3, 1), bias=False),  # → 3 × 5
        nn.AvgPool2d((3, 1)),  # → 1 × 5
        nn.Flatten(),
        nn.Linear(30, 7),
        nn.Linear(7, 3, bias=False),
    )


CONVOLUTIONAL_MACS = 8 * 5 * 5 * (4 // 2) * 9 + 6 * 3 * 5 * 8 * 3 + 30 * 7 + 7 * 3


def test_macs_by_hand() -> None:
    assert count_macs(convolutional(), torch.randn(1, 4, 9, 9)) == CONVOLUTIONAL_MACS


def test_depthwise_and_dilation() -> None:
    network = nn.Sequential(
        nn.Conv2d(6, 6, 3, padding=2, dilation=2, groups=6), nn.Conv2d(6, 5, 1), nn.Flatten()
    )
    assert count_macs(network, torch.randn(1, 6, 4, 4)) == 6 * 16 * 9 + 5 * 16 * 6


def test_macs_of_a_known_network() -> None:
    assert count_macs(resnet18(), torch.zeros(1, 3, 224, 224)) == 1_813_561_344 + 512_000


def test_a_network_that_multiplies_nothing() -> None:
    assert count_macs(nn.Sequential(nn.Flatten(), nn.ReLU()), torch.randn(1, 4, 9, 9)) == 0


def test_counting_leaves_the_network_alone(recwarn: pytest.WarningsRecorder) -> None:
    network = convolutional().train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    count_macs(network, torch.randn(1, 4, 9, 9))
    assert all(module.training for module in network.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not recwarn.list


def test_a_wrong_counter_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = macs._count_by_fvcore
    monkeypatch.setattr(macs, "_count_by_fvcore", lambda *arguments: honest(*arguments) + 1)
    with pytest.raises(CellFailed, match=f"fvcore counts {CONVOLUTIONAL_MACS + 1}") as failure:
        count_macs(convolutional(), torch.randn(1, 4, 9, 9))
    assert failure.value.kind == "unequal"


def test_work_that_only_one_counter_sees_is_refused() -> None:
    class Projection(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.matrix = nn.Parameter(torch.randn(12, 5))

        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1) @ self.matrix

    with pytest.raises(CellFailed, match="disagree"):
        count_macs(Projection(), torch.randn(1, 3, 2, 2))


def test_macs_are_for_one_image() -> None:
    with pytest.raises(ValueError, match="the example has 2"):
        count_macs(convolutional(), torch.randn(2, 4, 9, 9))


def test_sizes_by_hand() -> None:
    network = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3, 2, bias=False))
    nn.init.constant_(network[0].weight, 1.0)
    nn.init.zeros_(network[0].bias)
    nn.init.constant_(network[3].weight, 0.5)
    with torch.no_grad():
        network[3].weight[0, 1] = 0
    parameters = 54 + 3 + 3 + 3 + 6
    assert size.parameters(network) == parameters
    assert size.nonzero(network) == 54 + 3 + 5  # biases of convolution and normalisation start at zero
    assert (
        size.weight_bytes(network) == 4 * (parameters + 3 + 3) + 8
    )  # running mean and variance, batch counter


def test_prunable_weights_are_those_of_layers_without_biases() -> None:
    network = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3, 2))
    with torch.no_grad():
        network[0].weight.fill_(1.0)
        network[3].weight.copy_(torch.tensor([[1.0, 0.0, 2.0], [0.0, 0.0, 3.0]]))
    assert size.weights(network) == 54 + 6
    assert size.nonzero_weights(network) == 54 + 3


def test_shared_weights_count_once() -> None:
    layer = nn.Linear(4, 4)
    tied = nn.Linear(4, 4)
    tied.weight = layer.weight
    network = nn.Sequential(layer, layer, tied)
    assert size.parameters(network) == 16 + 4 + 4
    assert size.weights(network) == 16
    assert size.weight_bytes(network) == 4 * 24


def test_half_precision_weighs_half() -> None:
    assert size.weight_bytes(nn.Linear(4, 4).bfloat16()) == 2 * 20


def test_cost_puts_all_together() -> None:
    network, example = convolutional(), torch.randn(1, 4, 9, 9)
    found = cost(network, example)
    assert found.parameters == size.parameters(network)
    assert found.nonzero == size.nonzero(network)
    assert found.macs == CONVOLUTIONAL_MACS
    assert found.weights == found.nonzero_weights == 8 * 2 * 9 + 6 * 8 * 3 + 30 * 7 + 7 * 3
    assert (found.layers, found.active_layers) == (4, 2), "two pairs with nothing but a pooling in between"
    assert found.weight_bytes == size.weight_bytes(network)
    # the widest moment: input, first convolution's output and that of its normalisation
    assert found.peak_bytes == found.weight_bytes + 4 * (4 * 81 + 2 * 8 * 25)
