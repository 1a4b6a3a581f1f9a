"""The gather path computes what the gated network does, and less of it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from small_networks import random_gate, randomise
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from bench import networks
from bench.compaction import find_sites
from bench.compaction.gather import gather_path
from bench.compaction.gating import with_gates
from bench.compaction.verify import FLOAT32_BOUND, difference
from methods.input_gate import InputGate


def constant_gate(multipliers: list[float]) -> InputGate:
    """The same for every image."""
    values = torch.tensor(multipliers)
    return InputGate(torch.zeros_like(values), values, torch.zeros_like(values))


def check(network: nn.Module, images: Tensor, gathered: tuple[str, ...]) -> None:
    """Gates on every site, of which `gathered` are gathered: the same outputs image by image, and not those of the
    network without gates."""
    sites = find_sites(network, images[:1])
    gates = {site.name: random_gate(site.size, seed) for seed, site in enumerate(sites)}
    path = gather_path(network, gates, images[:1])
    assert path.sites == gathered
    gated = with_gates(network, sites, gates)
    assert difference(gated, path.network, images.split(1)) <= FLOAT32_BOUND
    assert difference(network, path.network, images.split(1)) > 100 * FLOAT32_BOUND


@pytest.mark.parametrize(
    ("name", "shape", "gathered"),
    [
        ("lenet5", (1, 28, 28), ("conv1", "conv2", "fc1")),
        ("mlp-300-100", (1, 8, 8), ("fc1", "fc2")),
        ("digits-cnn", (1, 8, 8), ("conv1", "conv2", "conv3")),
    ],
)
def test_networks_of_the_suite(name: str, shape: tuple[int, int, int], gathered: tuple[str, ...]) -> None:
    network = randomise(networks.build(name, shape, 10)).eval()
    generator = torch.Generator().manual_seed(1)
    check(network, torch.randn(8, *shape, generator=generator), gathered)


class Small(nn.Module):
    """Two convolutions and a linear layer, with something between the first two."""

    def __init__(self, between: Callable[[Tensor], Tensor], reader: nn.Module | None = None) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 6, 3, padding=1)
        self.between = between
        self.second = nn.Conv2d(6, 6, 3, padding=1) if reader is None else reader
        self.head = nn.Linear(6, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(torch.relu(self.second(self.between(self.first(images)))).mean((2, 3)))


@pytest.mark.parametrize(
    ("between", "reader"),
    [
        (torch.sigmoid, None),
        (nn.PReLU(6), None),
        (nn.Sequential(nn.ReLU(), nn.BatchNorm2d(6)), None),
        (lambda x: torch.relu(x) + functional.max_pool2d(torch.relu(x), 3, 1, 1), None),
        (lambda x: functional.adaptive_avg_pool2d(torch.relu(x), x.size(2)), None),
        (torch.relu, nn.Conv2d(6, 6, 3, padding=1, groups=2)),
        (torch.relu, nn.Conv2d(6, 6, 3, padding=1, groups=6)),
        (torch.relu, nn.ConvTranspose2d(6, 6, 3, padding=1)),
    ],
    ids=["sigmoid", "prelu", "late-norm", "two-readers", "size", "grouped", "depthwise", "transposed"],
)
def test_what_cannot_be_gathered_is_multiplied(
    between: Callable[[Tensor], Tensor], reader: nn.Module
) -> None:
    network = randomise(Small(between, reader)).eval()
    images = torch.randn(6, 1, 6, 6, generator=torch.Generator().manual_seed(2))
    sites = find_sites(network, images[:1])
    gates = {site.name: random_gate(site.size) for site in sites if site.name == "first"}
    path = gather_path(network, gates, images[:1])
    assert path.sites == ()
    assert difference(with_gates(network, sites, gates), path.network, [images]) <= FLOAT32_BOUND


def test_a_residual_stream_is_multiplied_and_its_branch_gathered() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.norm = nn.Conv2d(1, 5, 3, padding=1), nn.BatchNorm2d(5)
            self.inner = nn.Conv2d(5, 7, 3, padding=1, padding_mode="reflect")
            self.outer = nn.Conv2d(7, 5, 3, padding=1, padding_mode="circular", bias=False)
            self.head = nn.Linear(5 * 9, 3)

        def forward(self, images: Tensor) -> Tensor:
            stream = torch.relu(self.norm(self.stem(images)))
            stream = torch.relu(stream + self.outer(functional.leaky_relu(self.inner(stream))))
            return self.head(functional.max_pool2d(stream, 2).flatten(1))

    network = randomise(Block()).eval()
    check(network, torch.randn(6, 1, 6, 6, generator=torch.Generator().manual_seed(3)), ("inner",))


def test_closed_units_cost_their_reader_nothing() -> None:
    """LeNet-5: 5 of conv1's 20 units, 10 of conv2's 50 and 100 of fc1's 500 are open."""
    network = networks.build("lenet5", (1, 28, 28), 10).eval()
    gates = {
        name: constant_gate([0.5] * active + [0.0] * (size - active))
        for name, active, size in (("conv1", 5, 20), ("conv2", 10, 50), ("fc1", 100, 500))
    }
    image = torch.randn(1, 1, 28, 28)
    path = gather_path(network, gates, image)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        path.network(image)
    macs = 20 * 25 * 576 + 50 * 5 * 25 * 64 + 500 * 10 * 16 + 10 * 100
    assert counter.get_total_flops() == 2 * macs


def test_an_image_that_closes_everything() -> None:
    network = randomise(networks.build("lenet5", (1, 28, 28), 10)).eval()
    image = torch.randn(1, 1, 28, 28)
    gates = {name: constant_gate([0.0] * size) for name, size in (("conv1", 20), ("conv2", 50), ("fc1", 500))}
    with torch.no_grad():
        got = gather_path(network, gates, image).network(image)
        torch.testing.assert_close(got, network.get_submodule("fc2").bias[None])


def test_more_than_one_image_is_refused() -> None:
    network = networks.build("mlp-300-100", (1, 8, 8), 10).eval()
    path = gather_path(network, {"fc1": random_gate(300)}, torch.zeros(1, 1, 8, 8))
    with pytest.raises(ValueError, match="one image at a time, not for 2"):
        path.network(torch.zeros(2, 1, 8, 8))
