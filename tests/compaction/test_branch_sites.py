"""Residual branches as sites: which are found, what they cost, and that any of them can be dropped together."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import pytest
import torch
from small_networks import Residual, check, images, parameters, plan_of, randomise
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.convnext import CNBlockConfig, ConvNeXt

import methods
from bench import networks
from bench.compaction import apply_architecture, compact, find_branches, find_sites
from bench.measure.macs import count_macs
from bench.offer import offered_sites
from methods.base import Site, SparsityPlan

EXAMPLE = images(2, 3, 8, 8)


def dropping(names: Iterable[str]) -> SparsityPlan:
    return plan_of([("drop", (name,)) for name in names])


def test_a_branch_as_a_site() -> None:
    network = randomise(Residual()).eval()
    before = copy.deepcopy(network.state_dict())
    (site,) = find_branches(network, EXAMPLE)
    weights = 6 * 5 * 9
    assert site == Site(
        name="bn2",
        size=1,
        kind="branch",
        producers=("conv1", "conv2"),
        norms=("bn1", "bn2"),
        ends=("bn2",),
        readers=(),
        parameters_per_unit=2 * weights + 2 * 5 + 2 * 6,
        macs_per_unit=2 * weights * 8 * 8,
    )
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert "branch" not in {site.kind for site in find_sites(network, EXAMPLE)}


def test_where_both_ways_have_layers_neither_is_a_branch() -> None:
    assert find_branches(randomise(Residual(shortcut=True)), EXAMPLE) == []


# Of resnet20 every block: its shortcut of option A halves the stream and pads it without parameters.
EXPECTED = {"resnet20": 9, "resnet20-b": 7, "preact-resnet20": 7, "mobilenetv2": 10, "digits-cnn": 0}


@pytest.mark.parametrize("name", EXPECTED)
def test_half_of_the_branches_of_a_known_network(name: str) -> None:
    """A random half at once, with the certificate; what the sites cost is gone from the network exactly."""
    torch.manual_seed(0)
    example = torch.zeros(1, 3, 16, 16)
    network = randomise(networks.build(name, (3, 16, 16), 10)).eval()
    sites = find_branches(network, example)
    assert len(sites) == len({site.name for site in sites}) == EXPECTED[name]
    if not sites:
        return
    chosen = [sites[at] for at in torch.randperm(len(sites))[: (len(sites) + 1) // 2].sort().values]
    result = compact(network, dropping(site.name for site in chosen), example)
    assert result.certificate.passed, result.certificate
    assert result.certificate.difference_float64 <= 1e-9
    assert result.collapsed == ()
    lost = parameters(network) - parameters(result.network)
    assert lost == sum(site.parameters_per_unit for site in chosen)
    lost = count_macs(network, example) - count_macs(result.network, example)
    assert lost == sum(site.macs_per_unit for site in chosen)


class Gated(nn.Module):
    """A squeeze and excitation inside a branch, a dropout behind it, a layer scale and an offset by place."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.squeeze, self.down = nn.Conv2d(6, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 6, 1)
        self.scale = nn.Parameter(torch.rand(4, 1, 1) + 0.5)
        self.offset = nn.Parameter(torch.rand(1, 4, 8, 1))
        self.drop = nn.Dropout()

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.up(x)) * self.scale + self.offset[:, :, : x.shape[2]]
        y = y * torch.sigmoid(self.squeeze(y.mean((2, 3), keepdim=True)))
        return x + self.drop(self.down(y))


class Nested(nn.Module):
    """A block within a block, and an in-place ReLU of the stream between two blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner, self.last = (
            nn.Conv2d(6, 5, 1),
            nn.Conv2d(5, 5, 3, padding=1),
            nn.Conv2d(5, 6, 1),
        )
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.first(x))
        y = y + self.inner(y)
        return self.relu(x + self.last(torch.relu(y)))


class Parallel(nn.Module):
    """Two branches of one stream, one of a pooled stream that is added to nothing of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.bn = nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.pool, self.halved = nn.AvgPool2d(2), nn.Conv2d(6, 6, 3, stride=2, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.one(x) + self.bn(self.two(torch.relu(x)))
        return self.pool(x) + self.halved(x)


class Behind(nn.Module):
    """What keeps zero behind the last layer: an activation; a scale by a parameter, and a pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm, self.two = nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6), nn.Conv2d(6, 6, 1)
        self.scale = nn.Parameter(torch.rand(6, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = x + functional.silu(self.norm(self.one(x)))
        return x + functional.avg_pool2d(self.scale * self.two(x), 3, 1, 1)


def stacked(*blocks: nn.Module) -> nn.Sequential:
    """The blocks between a stem and a classifier."""
    head = (nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4))
    return randomise(nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), *blocks, *head)).eval()  # type: ignore[return-value]


OWN = ["1.inner", "1.last", "2.one", "2.bn", "2.halved", "3.down", "4.norm", "4.two"]


def test_blocks_of_all_kinds() -> None:
    network = stacked(Nested(), Parallel(), Gated(), Behind())
    sites = {site.name: site for site in find_branches(network, EXAMPLE)}
    assert list(sites) == OWN
    assert sites["1.last"].producers == ("1.first", "1.inner", "1.last")
    assert sites["2.bn"].producers == ("2.two",)
    assert sites["2.halved"].macs_per_unit == 6 * 6 * 9 * 4 * 4
    assert sites["3.down"].producers == ("3.up", "3.squeeze", "3.down")
    assert sites["3.down"].parameters_per_unit == sum(p.numel() for p in network[3].parameters())
    assert sites["4.two"].parameters_per_unit == 6 * 6 + 6 + 6


@pytest.mark.parametrize(
    "names", [*([name] for name in OWN), OWN, OWN[::2], OWN[1::2]], ids=lambda names: " ".join(names)
)
def test_each_alone_and_all_together(names: list[str]) -> None:
    network = stacked(Nested(), Parallel(), Gated(), Behind())
    result = check(network, dropping(names), EXAMPLE)
    assert result.certificate.difference_float64 <= 1e-9
    left = dict(result.network.named_modules())
    assert not [name for name in names if hasattr(left.get(name), "weight")]
    rebuilt = apply_architecture(network, result.architecture, EXAMPLE).eval()
    rebuilt.load_state_dict(result.network.state_dict())
    assert torch.equal(rebuilt(EXAMPLE), result.network(EXAMPLE))


def test_a_branch_is_zero_where_the_parameters_of_its_last_layer_are() -> None:
    """What a method relies on that trains with a branch switched off."""
    network = stacked(Nested(), Parallel(), Gated(), Behind())
    plan = dropping(OWN)
    with torch.no_grad():
        for site in find_branches(network, EXAMPLE):
            for parameter in network.get_submodule(site.ends[0]).parameters():
                parameter.zero_()
        assert torch.equal(compact(network, plan, EXAMPLE).network(EXAMPLE), network(EXAMPLE))


class Odd(nn.Module):
    """Sums of which no branch may be offered, one after the other."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.one, self.two = nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 1)
        self.affine = nn.BatchNorm2d(6, affine=False)
        self.relu = nn.ReLU(inplace=True)
        self.position = nn.Parameter(torch.rand(1, 6, 8, 8))

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "overwrites the stream":
            return x + self.one(self.relu(x))
        if self.kind == "adds a parameter":
            return self.one(x) + self.position
        if self.kind == "broadcasts":
            return x.mean((2, 3), keepdim=True) + self.one(x)
        if self.kind == "two layers":
            return self.one(x) + self.two(x)
        if self.kind == "is read elsewhere":
            y = self.one(x)
            return (x + y) * y
        if self.kind == "is read by what is not known":
            y = self.one(x)
            deviation, _ = torch.std_mean(y, (2, 3), keepdim=True)
            return (x + y) * deviation
        if self.kind == "called twice":
            return x + self.one(self.one(x))
        if self.kind == "no parameters at its end":
            return x + self.affine(self.one(x))
        return x + torch.sigmoid(self.one(x))


@pytest.mark.parametrize(
    "kind",
    [
        "overwrites the stream",
        "adds a parameter",
        "broadcasts",
        "two layers",
        "is read elsewhere",
        "is read by what is not known",
        "called twice",
        "no parameters at its end",
        "ends in what does not keep zero",
    ],
)
def test_what_is_no_branch(kind: str) -> None:
    assert find_branches(stacked(Odd(kind)), EXAMPLE[:1]) == []


def test_blocks_with_a_layer_scale() -> None:
    """ConvNeXt, small."""
    blocks = [CNBlockConfig(6, 8, 2), CNBlockConfig(8, None, 1)]
    network = randomise(ConvNeXt(blocks, num_classes=4)).eval()
    example = images(1, 3, 16, 16)
    sites = find_branches(network, example)
    assert len(sites) == 3
    result = check(network, dropping(site.name for site in sites[:2]), example)
    lost = parameters(network) - parameters(result.network)
    assert lost == sum(site.parameters_per_unit for site in sites[:2])


class Sharing(nn.Module):
    """The first layer of the branch is called before it as well."""

    def __init__(self) -> None:
        super().__init__()
        self.shared, self.end = nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.shared(x))
        return x + self.end(torch.relu(self.shared(x)))


def test_a_layer_that_is_called_elsewhere_too_costs_the_branch_nothing() -> None:
    network = stacked(Sharing())
    (site,) = find_branches(network, EXAMPLE)
    assert site.producers == ("1.end",)
    result = check(network, dropping(["1.end"]), EXAMPLE)
    assert parameters(network) - parameters(result.network) == site.parameters_per_unit == 6 * 6 * 9 + 6


def test_only_methods_of_whole_layers_are_offered_branches() -> None:
    network = randomise(Residual()).eval()
    sites = [*find_sites(network, EXAMPLE), *find_branches(network, EXAMPLE)]
    for name in methods.available():
        method = methods.create(name)
        for streams in (False, True):
            kinds = {site.kind for site in offered_sites(sites, method, streams)}
            assert ("branch" in kinds) == (method.traits.granularity == "layer"), name
            anywhere = method.traits.granularity in ("none", "weight") or method.traits.prescribed
            assert ("stream" in kinds) == (streams or anywhere), name
