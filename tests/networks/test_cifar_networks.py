"""The families of CIFAR size: as large as the literature has them, analysable, and removable with proof."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bench import networks
from bench.compaction import compact, find_sites
from bench.errors import BadInput
from tests.compaction.small_networks import random_plan, randomise

CIFAR = (3, 32, 32)


@pytest.mark.parametrize(
    ("name", "classes", "parameters"),
    [
        ("vgg16", 10, 14_991_946),
        ("vgg19", 10, 20_304_202),
        ("resnet20", 10, 269_722),
        ("resnet32", 10, 464_154),
        ("resnet56", 10, 853_018),
        ("resnet110", 10, 1_727_962),
        ("resnet20-b", 10, 269_722 + 16 * 32 + 2 * 32 + 32 * 64 + 2 * 64),
        ("td-resnet32", 10, 1_857_498),
        ("td-resnet32-narrow", 10, 468_890),
        ("preact-resnet56", 10, 855_578),
        ("wrn-16-4", 10, 2_748_890),
        ("wrn-28-10", 10, 36_479_194),
        ("mobilenetv2", 10, 2_236_682),
        ("densenet-bc-100-12", 10, 769_162),
        ("alexnet-cifar", 100, 23_631_552),
    ],
)
def test_parameters_of_the_literature(name: str, classes: int, parameters: int) -> None:
    network = networks.outline(name, CIFAR, classes)
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters


@pytest.mark.parametrize(("name", "prunable"), [("td-resnet32", 1_849_344), ("td-resnet32-narrow", 463_616)])
def test_prunable_weights_of_targeted_dropout(name: str, prunable: int) -> None:
    """Convolutions behind the stem; a 1×1 convolution in the first block of every stage."""
    network = networks.outline(name, CIFAR, 10)
    weights = {at: p.numel() for at, p in network.named_parameters() if p.dim() == 4 and at != "conv1.weight"}
    assert sum(weights.values()) == prunable
    assert [at for at in weights if "shortcut" in at] == [
        f"stages.{stage}.0.shortcut.weight" for stage in range(3)
    ]


def test_macs_of_the_literature() -> None:
    """vgg16: as counted for beta-Bernoulli dropout; resnet20: convolutions of the paper's table, and the classifier."""
    stages = (32 * 32 * 16, 16 * 16 * 32, 8 * 8 * 64)
    first = sum(9 * places * width for places, width in zip(stages, (3, 16, 32), strict=True))
    others = sum(
        9 * places * width * n for places, width, n in zip(stages, (16, 32, 64), (6, 5, 5), strict=True)
    )
    for name, macs in (("vgg16", 313_463_808), ("resnet20", first + others + 640)):
        with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
            networks.build(name, CIFAR, 10)  # runs one image
        assert counter.get_total_flops() == 2 * macs, name


@pytest.mark.parametrize(
    ("name", "smallest"),
    [
        ("resnet20", 4),
        ("resnet20-b", 4),
        ("preact-resnet20", 4),
        ("mobilenetv2", 8),
        ("vgg16", 32),
        ("alexnet-cifar", 32),
    ],
)
def test_images_of_any_size_that_makes_sense(name: str, smallest: int) -> None:
    with torch.device("meta"):
        for shape in ((1, smallest, smallest), (3, smallest + 13, smallest + 4)):
            network = networks.build(name, shape, 7)
            assert network.training
            assert network(torch.zeros(2, *shape)).shape == (2, 7)
        with pytest.raises(BadInput, match=f"at least {smallest}×{smallest}, got {smallest}×{smallest - 1}"):
            networks.build(name, (3, smallest, smallest - 1), 10)


def sites_of(name: str, side: int = 8) -> dict[str, tuple[int, str]]:
    network = networks.build(name, (3, side, side), 10)
    return {site.name: (site.size, site.kind) for site in find_sites(network, torch.zeros(1, 3, side, side))}


def test_sites_of_a_residual_network() -> None:
    """Of option A, the streams run through operations on channels; with projections each stage has its own."""
    inner = {
        f"stages.{stage}.{block}.conv1": (width, "inner")
        for stage, width in enumerate((16, 32, 64))
        for block in range(3)
    }
    assert inner.items() <= sites_of("resnet20").items()
    streams = {
        "conv1": (16, "stream"),
        "stages.1.0.conv2": (32, "stream"),
        "stages.2.0.conv2": (64, "stream"),
    }
    assert sites_of("resnet20-b") == inner | streams


def test_sites_of_an_inverted_residual_network() -> None:
    """The narrow ends are streams where they are added, and the wide middles never are."""
    sites = sites_of("mobilenetv2")
    streams = sorted(size for size, kind in sites.values() if kind == "stream")
    assert streams == [24, 32, 64, 96, 160]
    assert [size for size, kind in sites.values() if kind == "inner" and size >= 96] == [
        *[96, 144], *[144, 192, 192], *[192] + [384] * 3, *[384, 576, 576], *[576, 960, 960], 960, 320, 1280
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("resnet20", 8),
        ("resnet20-b", 8),
        ("preact-resnet20", 8),
        ("mobilenetv2", 8),
        ("td-resnet32-narrow", 8),
        ("wrn-16-4", 8),
        ("densenet-bc-100-12", 8),
        ("vgg16", 32),
        ("alexnet-cifar", 32),
    ],
)
def test_half_of_all_units_go_exactly(name: str, side: int) -> None:
    network = randomise(networks.build(name, (3, side, side), 10)).eval()
    example = torch.zeros(1, 3, side, side)
    plan = random_plan(network, example)
    result = compact(network, plan, example)
    assert result.certificate.passed
    assert result.certificate.difference_float64 <= 1e-9
    # A unit of a stream that is off may stay as a constant before a normalisation, one of the middle never.
    inner = [
        s for s in find_sites(network, example) if s.kind == "inner" and s.name in result.architecture.kept
    ]
    for site in inner:
        assert len(result.architecture.kept[site.name]) == max(1, int(plan.kept[site.name].sum()))


def test_a_padded_shortcut_adds_no_parameters_and_starts_as_the_paper_says() -> None:
    """Zero channels on either side, every second pixel."""
    network = networks.build("resnet20", CIFAR, 10).eval()
    maps = torch.rand(2, 16, 32, 32)
    shortcut = network.get_submodule("stages.1.0.shortcut")
    given = shortcut(maps)
    assert given.shape == (2, 32, 16, 16)
    assert torch.equal(given[:, 8:24], maps[:, :, ::2, ::2])
    assert not given[:, :8].any()
    assert not given[:, 24:].any()


@pytest.mark.parametrize("name", ["resnet20", "preact-resnet20", "mobilenetv2"])
def test_every_parameter_gets_a_gradient_and_the_signal_keeps_its_scale(name: str) -> None:
    torch.manual_seed(0)
    network = networks.build(name, (3, 16, 16), 10)
    logits = network(torch.randn(16, 3, 16, 16))
    assert 0.1 < float(logits.detach().std()) < 10
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())
