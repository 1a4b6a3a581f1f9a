"""What is a site, what is not, and what a unit costs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from small_networks import Residual, check, images, off, parameters, plan_of, randomise
from torch import Tensor, nn
from torch.nn.utils import prune

from bench.compaction import compact, find_sites
from bench.errors import BadInput
from methods.base import SparsityPlan

EXAMPLE = images(2, 3, 8, 8)


def plain() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(4 * 9, 7),
        nn.Dropout(),
        nn.Linear(7, 5),
    )


def test_plain_network() -> None:
    network = plain().train()
    conv, linear = find_sites(network, EXAMPLE)
    assert network.training
    assert (conv.name, conv.size, conv.kind) == ("0", 4, "inner")
    assert (conv.producers, conv.norms, conv.ends, conv.readers) == (("0",), ("1",), ("1",), ("5",))
    assert conv.parameters_per_unit == 27 + 1 + 2 + 9 * 7
    assert conv.macs_per_unit == 27 * 36 + 9 * 7
    assert (linear.name, linear.size, linear.ends, linear.readers) == ("5", 7, ("5",), ("7",))
    assert linear.parameters_per_unit == 36 + 1 + 5
    assert linear.macs_per_unit == 36 + 5


def test_cost_per_unit_is_what_removing_one_saves() -> None:
    network = randomise(Residual(shortcut=True))
    for site in find_sites(network, EXAMPLE):
        result = check(network, SparsityPlan(kept={site.name: off(site.size, 0)}), EXAMPLE)
        assert parameters(network) - parameters(result.network) == site.parameters_per_unit


def test_residual_stream_is_one_site() -> None:
    stem, inner = find_sites(Residual(), EXAMPLE)
    assert (stem.name, stem.kind, stem.producers) == ("stem", "stream", ("stem", "conv2"))
    assert stem.ends == stem.norms == ("bn0", "bn2")
    assert set(stem.readers) == {"conv1", "fc"}
    assert (inner.name, inner.kind, inner.readers) == ("conv1", "inner", ("conv2",))


@pytest.mark.parametrize(
    ("name", "spaces"),
    [("resnet18", 12), ("mobilenet_v2", 25), ("densenet121", 120), ("squeezenet1_1", 25)],
)
def test_spaces_of_known_networks(name: str, spaces: int) -> None:
    network = torchvision.models.get_model(name, weights=None, num_classes=10)
    assert len(find_sites(network, images(1, 3, 32, 32))) == spaces


def test_a_network_without_sites() -> None:
    network = randomise(nn.Sequential(nn.Flatten(), nn.Linear(192, 4)))
    assert find_sites(network, EXAMPLE) == []
    result = check(network, SparsityPlan(), EXAMPLE)
    assert result.certificate.removed_units == 0


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x
        return -x


def test_untraceable_network_is_named() -> None:
    with pytest.raises(
        BadInput, match=r"Branching cannot be traced.*control flow.*test_sites\.py:\d+: if x\.sum"
    ):
        find_sites(Branching(), EXAMPLE)


def test_example_that_does_not_fit() -> None:
    with pytest.raises(BadInput, match=r"Sequential does not take an input of shape \(2, 3, 5, 5\)"):
        find_sites(plain(), images(2, 3, 5, 5))


@pytest.mark.parametrize("example", [None, (EXAMPLE,)])
def test_example_that_is_no_tensor(example: Any) -> None:
    with pytest.raises(BadInput, match=r"an example is one tensor.* not a"):
        find_sites(plain(), example)


def test_plans_that_do_not_fit() -> None:
    network = plain()
    with pytest.raises(ValueError, match="'6', which there is not"):
        compact(network, plan_of(**{"6": off(7, 0)}), EXAMPLE)
    with pytest.raises(ValueError, match=r"site '5' is torch.bool \(6,\); torch.bool \(7,\) is needed"):
        compact(network, plan_of(**{"5": off(6, 0)}), EXAMPLE)
    with pytest.raises(ValueError, match=r"site '5' is torch.float32 \(7,\)"):
        compact(network, plan_of(**{"5": torch.ones(7)}), EXAMPLE)
    with pytest.raises(ValueError, match=r"parameter '5.weigth'.*did you mean '5.weight'"):
        compact(network, SparsityPlan(weight_masks={"5.weigth": torch.ones(7, 36).bool()}), EXAMPLE)
    with pytest.raises(ValueError, match=r"parameter '5.weight' is torch.bool \(36, 7\)"):
        compact(network, SparsityPlan(weight_masks={"5.weight": torch.ones(36, 7).bool()}), EXAMPLE)


class LiteralView(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv0, self.conv = nn.Conv2d(3, 5, 3), nn.Conv2d(5, 4, 3)
        self.fc = nn.Linear(64, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(torch.relu(self.conv0(x))).view(-1, 64))


class SizedView(LiteralView):
    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(torch.relu(self.conv0(x)))
        return self.fc(x.view(x.size(0), x.shape[1] * 16))


class Repeated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv0, self.conv, self.after = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 5, 1)
        self.fc = nn.Linear(5 * 64, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.after(self.conv(self.conv(self.conv0(x))).relu()).flatten(1))


class NormalisedTwice(Repeated):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(4, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(self.norm(self.conv0(x))))
        return self.fc(self.after(x).relu().flatten(1))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.fc = nn.Linear(192, 192), nn.Linear(192, 192), nn.Linear(192, 4)
        self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.two(self.one(x.flatten(1)).relu()).relu())


class DividesByWidth(LiteralView):
    def forward(self, x: Tensor) -> Tensor:
        x = self.conv0(x)
        x = self.conv(torch.relu(x / x.size(1)))
        return self.fc(torch.flatten(x, 1))


class Unknown(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.conv0, self.layer, self.conv = nn.Conv2d(3, 4, 3), layer, nn.Conv2d(4, 6, 3)
        self.fc = nn.Linear(6 * 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(self.layer(self.conv0(x))).relu().flatten(1))


@pytest.mark.parametrize(
    ("network", "sites", "named"),
    [
        (LiteralView(), ["conv0", "conv"], None),
        (SizedView(), ["conv0", "conv"], None),
        (Repeated(), ["after"], "conv: Conv2d used more than once"),
        (NormalisedTwice(), ["after"], "norm: BatchNorm2d used more than once"),
        (Tied(), [], "one: Linear used more than once"),
        (DividesByWidth(), ["conv"], "truediv: truediv"),
        (Unknown(nn.GroupNorm(2, 4)), ["conv"], "layer: GroupNorm"),
        (Unknown(nn.Softmax(1)), ["conv"], "layer: Softmax"),
        (
            Unknown(nn.BatchNorm2d(4, track_running_stats=False)),
            ["conv"],
            "layer: BatchNorm2d with statistics of the batch",
        ),
        (Unknown(nn.BatchNorm2d(4, affine=False)), ["conv0", "conv"], None),
        (Unknown(nn.PReLU(4)), ["conv0", "conv"], None),
    ],
)
def test_what_pins(network: nn.Module, sites: list[str], named: str | None) -> None:
    randomise(network)
    assert [site.name for site in find_sites(network, EXAMPLE)] == sites
    plan = SparsityPlan(kept={s.name: off(s.size, 0, 2) for s in find_sites(network, EXAMPLE)})
    result = check(network, plan, EXAMPLE)
    assert result.certificate.removed_units == 2 * len(sites)
    assert named is None if not result.pinned else named in result.pinned


def hooked(conv: nn.Module) -> None:
    conv.register_forward_hook(lambda module, inputs, output: output + 1)


def hooked_before(conv: nn.Module) -> None:
    conv.register_forward_pre_hook(lambda module, inputs: (inputs[0] + 1,))


def frozen(conv: nn.Module) -> None:
    weight = conv.get_parameter("weight").detach()
    del conv.weight
    conv.register_buffer("weight", weight)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (hooked, "layer: Conv2d with hooks"),
        (hooked_before, "layer: Conv2d with hooks"),
        (nn.utils.weight_norm, "layer: Conv2d with hooks"),
        (nn.utils.spectral_norm, "layer: Conv2d with hooks"),
        (lambda conv: prune.random_unstructured(conv, "weight", 0.5), "layer: Conv2d with hooks"),
        (frozen, "layer: Conv2d whose weights are no parameters"),
    ],
    ids=["hook", "pre-hook", "weight norm", "spectral norm", "pruning", "buffer"],
)
@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
def test_a_layer_that_computes_other_than_its_parameters_say_stays(
    change: Callable[[nn.Module], object], named: str
) -> None:
    network = randomise(Unknown(nn.Conv2d(4, 4, 1)))
    change(network.get_submodule("layer"))
    assert [site.name for site in find_sites(network, EXAMPLE)] == ["conv"]
    assert named in check(network, plan_of(conv=off(6, 0, 2)), EXAMPLE).pinned


class ReadsOverwritten(nn.Module):
    """The second reader sees the rectified tensor, though it reads the convolution's node."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.one, self.two = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        y = self.one(torch.sigmoid_(x))
        return self.fc((y + self.two(x)).relu().mean((2, 3)))


def test_overwritten_tensor() -> None:
    network = randomise(ReadsOverwritten())
    with torch.no_grad():
        network.conv.weight[1], network.conv.bias[1] = 0, 0  # type: ignore[index, union-attr]
    assert [site.name for site in find_sites(network, EXAMPLE)] == ["one"]
    result = check(network, SparsityPlan(), EXAMPLE)
    assert "sigmoid_: overwrites a tensor that is read again" in result.pinned


@pytest.mark.parametrize(
    ("between", "normalised", "free"),
    [
        (nn.ReLU(), True, True),
        (nn.ReLU(), False, False),
        (nn.SiLU(), True, False),
        (nn.PReLU(4), True, True),
        (nn.Sequential(nn.LeakyReLU(), nn.MaxPool2d(2)), True, True),
    ],
)
def test_scale_is_free_where_all_readers_are_normalised(
    between: nn.Module, normalised: bool, free: bool
) -> None:
    """And where one factor on all units really changes nothing."""
    torch.manual_seed(0)
    after = nn.BatchNorm2d(5, eps=1e-12) if normalised else nn.Identity()
    network = nn.Sequential(nn.Conv2d(3, 4, 3), between, nn.Conv2d(4, 5, 1), after, nn.ReLU(), nn.Flatten())
    example = torch.randn(4, 3, 8, 8)
    assert find_sites(network, example)[0].scale_free is free
    network.train()
    before = network(example)
    with torch.no_grad():
        for parameter in network[0].parameters():
            parameter *= 3.0
    assert torch.allclose(network(example), before, atol=1e-4) is free


@pytest.mark.parametrize(
    ("after", "outlet"),
    [
        ([nn.ReLU(), nn.MaxPool2d(2)], "2"),
        ([nn.LeakyReLU(), nn.Identity(), nn.AvgPool2d(2)], "3"),
        ([nn.ReLU()], "0"),
        ([nn.SiLU(), nn.MaxPool2d(2)], "0"),
    ],
)
def test_outlet_is_behind_what_takes_a_multiplier_through(after: list[nn.Module], outlet: str) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), *after, nn.Conv2d(4, 5, 1), nn.Flatten())
    example = torch.randn(2, 3, 8, 8)
    (site,) = find_sites(network, example)
    assert site.outlets == (outlet,)
    multipliers = torch.rand(2, 4)[..., None, None]
    outputs = []
    for layer in (*site.ends, *site.outlets):
        hook = network.get_submodule(layer).register_forward_hook(lambda m, x, y: y * multipliers)
        outputs.append(network(example))
        hook.remove()
    torch.testing.assert_close(*outputs)
