"""Which layers lie between two ReLUs, and runs of linear maps against the layers they are made of."""

from __future__ import annotations

import copy
from collections import OrderedDict
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from bench import networks
from methods.linear_runs import find_holder, find_inner, find_runs, hold, multiply


def layers_of(name: str, input_shape: tuple[int, int, int] = (1, 28, 28)) -> list[str]:
    return [inner.layer for inner in find_inner(networks.build(name, input_shape, 10))]


def test_inner_layers_of_the_suites_networks() -> None:
    assert layers_of("mlp-deep") == ["fc2", "fc3", "fc4", "fc5", "fc6"]
    assert layers_of("mlp-300-100") == ["fc2"]
    assert layers_of("lenet5") == ["conv2", "fc1"]
    assert layers_of("digits-cnn") == ["conv2", "conv3"]
    assert layers_of("cnn-deep") == [f"conv{number}" for number in range(2, 9)]


def test_readers_and_norms() -> None:
    inner = {each.layer: each for each in find_inner(networks.build("digits-cnn", (1, 8, 8), 10))}
    assert (inner["conv2"].norm, inner["conv2"].activation) == ("bn2", "relu2")
    assert inner["conv2"].reader is None  # max pooling lies between
    assert [each.reader for each in find_inner(networks.build("lenet5", (1, 28, 28), 10))] == [None, "fc2"]


class Odd(nn.Module):
    """Layers that are not inner, each for another reason, and one that is."""

    def __init__(self) -> None:
        super().__init__()
        for number in range(1, 8):
            self.add_module(f"fc{number}", nn.Linear(4, 4))
        self.relu, self.twice, self.gelu = nn.ReLU(), nn.ReLU(), nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.get_submodule("fc1")(x))  # input of both signs
        x = self.relu(self.get_submodule("fc2")(x))  # the one
        x = functional.relu(self.get_submodule("fc3")(x))  # no module to take away
        x = self.twice(self.get_submodule("fc4")(x))  # a module that is called twice
        x = self.twice(self.get_submodule("fc5")(x))
        x = self.gelu(self.get_submodule("fc6")(x))  # no ReLU
        return self.get_submodule("fc7")(x)


def test_layers_that_are_not_inner() -> None:
    assert [each.layer for each in find_inner(Odd())] == ["fc2"]


def test_a_layer_that_is_read_before_its_relu_is_not_inner() -> None:
    class Skip(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)
            self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            y = self.two(self.relu1(self.one(x)))
            return self.relu2(y) + y

    assert find_inner(Skip()) == ()


def chain(*widths: int, bias: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    parts: list[tuple[str, nn.Module]] = []
    for at, (inputs, outputs) in enumerate(pairwise(widths)):
        parts += [(f"fc{at}", nn.Linear(inputs, outputs, bias=bias)), (f"relu{at}", nn.ReLU())]
    return nn.Sequential(OrderedDict(parts[:-1]))


def test_merging_pays_or_not() -> None:
    """p₂p₀ < p₁(p₀ + p₂): the papers file's LeNet-300-100."""
    lenet = chain(784, 784, 300, 100, 10)  # one layer before, so that the former first is inner
    inner = find_inner(lenet)
    assert find_runs(lenet, inner[:1]) == [["fc1", "fc2"]]
    weights = [multiply([lenet.get_submodule(n) for n in pair])[0].numel() for pair in (("fc1", "fc2"),)]
    assert weights == [78_400]
    assert 784 * 300 + 300 * 100 == 265_200
    assert find_runs(lenet, inner[1:]) == [["fc2", "fc3"]]
    assert multiply([lenet.get_submodule("fc2"), lenet.get_submodule("fc3")])[0].numel() == 3_000
    bottleneck = chain(50, 50, 20, 50, 10)
    assert find_runs(bottleneck, find_inner(bottleneck)[:1]) == []


def test_two_full_convolutions_are_not_merged() -> None:
    """18 C² → 25 C²: more parameters, and no exact product behind padding."""
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU()
    )
    inner = find_inner(network)
    assert [each.layer for each in inner] == ["2", "4"]
    assert find_runs(network, inner) == []


@pytest.mark.parametrize("mode", ["zeros", "reflect", "circular", "replicate"])
def test_a_padded_pointwise_convolution_is_not_merged(mode: Any) -> None:
    """It makes the image larger, whatever it pads with."""
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.ReLU(),
        nn.Conv2d(4, 8, 3),
        nn.ReLU(),
        nn.Conv2d(8, 4, 1, padding=1, padding_mode=mode),
    )
    inner = find_inner(network)
    assert [each.layer for each in inner] == ["2"]
    assert find_runs(network, inner) == []


def test_the_seven_matrices_of_the_papers_file() -> None:
    """64-[50]x6-10 without biases: 16,200 weights in 7 matrices; 6,200 in 3, 3,700 in 2."""
    network = chain(64, *[50] * 6, 10, bias=False)
    assert sum(p.numel() for p in network.parameters()) == 16_200
    inner = find_inner(network)

    def left(active: int) -> int:
        runs = find_runs(network, inner[active:])
        assert len(runs) == 1
        gone = sum(network.get_parameter(f"{name}.weight").numel() for name in runs[0])
        return 16_200 - gone + multiply([network.get_submodule(name) for name in runs[0]])[0].numel()

    assert (left(1), left(0)) == (6_200, 3_700)


@torch.no_grad()
def outputs(layers: list[nn.Module], inputs: Tensor) -> Tensor:
    for layer in layers:
        inputs = layer(inputs)
    return inputs


CONV_RUNS = {
    "3×3, 1×1": [nn.Conv2d(4, 6, 3, 2, padding=1), nn.Conv2d(6, 5, 1)],
    "1×1, 3×3 padded": [nn.Conv2d(4, 6, 1, bias=False), nn.Conv2d(6, 5, 3, padding=1, bias=False)],
    "1×1, 3×3, 1×1": [nn.Conv2d(4, 6, 1), nn.Conv2d(6, 6, 3), nn.Conv2d(6, 4, 1, stride=2)],
    "linear": [nn.Linear(4, 7), nn.Linear(7, 6), nn.Linear(6, 3, bias=False)],
    "no bias to hold": [nn.Linear(4, 7), nn.Linear(7, 3, bias=False)],
    "narrow inside": [nn.Linear(4, 3), nn.Linear(3, 6)],
    "narrow at the end": [nn.Linear(6, 4), nn.Linear(4, 4), nn.Linear(4, 2)],
}


@pytest.mark.parametrize("run", CONV_RUNS.values(), ids=CONV_RUNS.keys())
def test_the_product_is_the_run(run: list[nn.Module]) -> None:
    """In float64 against the layers one after the other, and again from within the run's own layers."""
    torch.manual_seed(1)
    layers = OrderedDict((f"layer{at}", copy.deepcopy(layer).double()) for at, layer in enumerate(run))
    network = nn.Sequential(layers)
    first = next(network.parameters())
    inputs = torch.randn(5, first.shape[1], *([9, 9] if first.dim() == 4 else []), dtype=torch.float64)
    expected = outputs(list(network), inputs)
    weight, bias = multiply(list(network))
    if first.dim() == 2:
        got = functional.linear(inputs, weight[:, :, 0, 0], bias)
        assert (got - expected).abs().max() < 1e-13
    at = find_holder(network, list(layers))
    if at is None:
        assert min(layer.weight.shape[0] for layer in run[:-1]) < 4 or run[-1].bias is None  # type: ignore[union-attr,operator]
        return
    hold(layers, f"layer{at}", weight, bias)
    assert (outputs(list(network), inputs) - expected).abs().max() < 1e-13
    for position, layer in enumerate(layers.values()):
        if position != at:
            values = layer.weight.unique().tolist()  # type: ignore[operator,union-attr]
            assert values in ([0.0, 1.0], [1.0])


def test_holders() -> None:
    found = {}
    for name, run in CONV_RUNS.items():
        network = nn.Sequential(OrderedDict((f"layer{at}", layer) for at, layer in enumerate(run)))
        found[name] = find_holder(network, [f"layer{at}" for at in range(len(run))])
    assert found == {
        "3×3, 1×1": 0,
        "1×1, 3×3 padded": 1,
        "1×1, 3×3, 1×1": 1,
        "linear": 1,
        "no bias to hold": 0,
        "narrow inside": None,
        "narrow at the end": 0,
    }
