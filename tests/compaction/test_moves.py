"""Channels that the code moves elsewhere: views, chunks, padding, shuffles, permutations."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from small_networks import check, images, off, plan_of, random_plan, randomise, shapes
from torch import Tensor, fx, nn

from bench.compaction import apply_architecture, compact, find_sites
from bench.compaction.own_layers import Select
from methods.base import SparsityPlan

EXAMPLE = images(2, 3, 8, 8)


class Moving(nn.Module):
    """Eight channels, moved by a function, then read by a convolution."""

    def __init__(self, move: Callable[[Tensor], Tensor], channels: int = 8) -> None:
        super().__init__()
        self.move = move
        self.conv, self.bn = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.after, self.fc = nn.Conv2d(channels, 5, 3, padding=1), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.move(torch.relu(self.bn(self.conv(x))))
        return self.fc(torch.relu(self.after(x)).mean((2, 3)))


def shuffle(x: Tensor, groups: int = 2) -> Tensor:
    n, channels, height, width = x.size()
    x = x.view(n, groups, channels // groups, height, width)
    return torch.transpose(x, 1, 2).contiguous().view(n, channels, height, width)


def swapped_halves(x: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=1)
    return torch.cat((second, first), 1)


def split_of_many(x: Tensor) -> Tensor:
    first, _, third = torch.split(x, [2, 3, 3], 1)
    return torch.cat([third, first], 1)


MOVES: list[tuple[Callable[[Tensor], Tensor], int, str]] = [
    (lambda x: x[:, :, ::2, 1:], 8, ""),
    (lambda x: x[:, 2:5], 3, "select"),
    (lambda x: x.narrow(1, 0, 8), 8, "pinned"),
    (lambda x: x[..., 1:], 8, ""),
    (lambda x: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2)), 12, "select"),
    (lambda x: F.pad(x, (1, 1, 1, 1)), 8, ""),
    (lambda x: F.pad(x, (1, 1, 0, 0, 1, 0)), 9, "pinned"),
    (lambda x: F.pad(x, (1, 1), value=2.0), 8, "pinned"),
    (shuffle, 8, "select"),
    (lambda x: shuffle(x, 4), 8, "select"),
    (nn.ChannelShuffle(2).forward, 8, "select"),
    (swapped_halves, 8, "select"),
    (split_of_many, 5, "select"),
    (lambda x: x.permute(0, 2, 3, 1).permute(0, 3, 1, 2), 8, ""),
    (lambda x: x.flip(1), 8, "select"),
    (lambda x: torch.flatten(x, 2).transpose(1, 2).transpose(1, 2).view(-1, 8, 8, 8), 8, "size"),
    (lambda x: x.reshape(x.size(0), x.size(1), 64).reshape(x.size(0), -1, 8, 8), 8, "size"),
    (lambda x: F.pixel_shuffle(x, 2), 2, "pinned"),
    (lambda x: x.view(-1, 2, 4, 8, 8).sum(1), 4, "pinned"),
    (lambda x: x[:, list(range(8))], 8, "select"),
    (lambda x: x[..., [*range(8), *range(7, -1, -1)], :, :], 16, "select"),
    (lambda x: x.permute(0, 2, 3, 1)[:, ::2, :, list(range(8))].permute(0, 3, 1, 2), 8, "pinned"),
    (lambda x: x[:, :, [0, 3, 5]], 8, ""),
    (lambda x: x.split([8], 1)[0], 8, "select"),
    (lambda x: torch.split(x, [8], dim=1)[::1][0], 8, "select"),
    (lambda x: x.split([3, 5], 2)[0], 8, ""),
    (lambda x: x.split(8, 1)[0], 8, ""),
    (lambda x: x.roll(8, 1), 8, "select"),
    (lambda x: torch.roll(x, (3, 1), dims=(2, 3)), 8, ""),
]


@pytest.mark.parametrize("number", range(len(MOVES)))
def test_moves(number: int) -> None:
    move, channels, how = MOVES[number]
    network = randomise(Moving(move, channels))
    sites = {site.name for site in find_sites(network, EXAMPLE)}
    assert sites == ({"after"} if how == "pinned" else {"conv", "after"})
    plan = random_plan(network, EXAMPLE, seed=number)
    if "conv" in sites:
        plan = plan_of(conv=off(8, 1, 4, 7), after=plan.kept["after"])
    result = check(network, plan, EXAMPLE)
    assert isinstance(result.network, fx.GraphModule) == (how in ("select", "size"))
    assert any(isinstance(m, Select) for m in result.network.modules()) == (how == "select")
    assert bool(result.pinned) == (how == "pinned")
    rebuilt = apply_architecture(network, result.architecture, EXAMPLE).eval()
    assert shapes(rebuilt) == shapes(result.network)
    rebuilt.load_state_dict(result.network.state_dict())
    assert torch.equal(rebuilt(EXAMPLE), result.network(EXAMPLE))
    again = compact(result.network, SparsityPlan(), EXAMPLE)
    assert again.certificate.passed
    assert shapes(again.network) == shapes(result.network)


class Halves(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.branch, self.fc = nn.Conv2d(3, 4, 1), nn.Conv2d(2, 3, 1), nn.Linear(5 * 64, 3)

    def forward(self, x: Tensor) -> Tensor:
        first, second = torch.relu(self.conv(x)).chunk(2, dim=1)
        return self.fc(torch.cat([torch.relu(self.branch(second)), first], 1).flatten(1))


@pytest.mark.parametrize("units", [(2, 3), (0, 1), (0, 1, 2, 3)])
def test_a_half_of_which_nothing_is_left(units: tuple[int, ...]) -> None:
    network = randomise(Halves())
    for branch in ((), (0, 1, 2)):
        result = check(network, plan_of(conv=off(4, *units), branch=off(3, *branch)), EXAMPLE)
        rebuilt = apply_architecture(network, result.architecture, EXAMPLE)
        assert shapes(rebuilt) == shapes(result.network)


class OptionA(nn.Module):
    """A residual block that halves the image and doubles the channels, the new ones without a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv1 = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 8, 3, 2, padding=1)
        self.bn0, self.bn1 = nn.BatchNorm2d(4), nn.BatchNorm2d(8)
        self.conv2, self.bn2, self.fc = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn0(self.stem(x)))
        out = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        out = torch.relu(out + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2)))
        return self.fc(out.mean((2, 3)))


def test_padded_shortcut() -> None:
    network = randomise(OptionA())
    sites = {site.name: (site.size, site.kind) for site in find_sites(network, EXAMPLE)}
    assert sites == {"stem": (4, "inner"), "conv1": (8, "inner"), "conv2": (8, "stream")}
    # Of the stream behind, 0, 1, 6 and 7 have no shortcut; 3 is the stem's 1, and 4 its 2.
    result = check(network, plan_of(stem=off(4, 1), conv1=off(8, 5), conv2=off(8, 0, 3, 4, 7)), EXAMPLE)
    assert result.architecture.kept == {
        "stem": [0, 2, 3],
        "conv1": [0, 1, 2, 3, 4, 6, 7],
        "conv2": [1, 2, 4, 5, 6],  # 4 still gets what the stem's 2 sends
    }
    assert isinstance(result.network.get_submodule("select_pad"), Select)
    assert result.network.get_submodule("select_pad").positions == (-1, 0, 1, 2, -1)  # type: ignore[union-attr]


class PadsAConstant(nn.Module):
    """A unit that is off is 1/2 behind the sigmoid, also where it is padded."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.branch, self.fc = nn.Conv2d(3, 2, 1), nn.Conv2d(2, 4, 1, bias=False), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.sigmoid(self.conv(x))
        return self.fc((self.branch(x) + F.pad(x, (0, 0, 0, 0, 1, 1))).mean((2, 3)))


@pytest.mark.parametrize("multiple", [1, 4])
@pytest.mark.parametrize("branch", [(0, 1, 2, 3), (2,)])
def test_a_constant_that_is_padded(branch: tuple[int, ...], multiple: int) -> None:
    plan = plan_of(conv=off(2, 1), branch=off(4, *branch))
    result = compact(randomise(PadsAConstant()), plan, EXAMPLE, multiple=multiple)
    assert result.certificate.passed, result.certificate
    plan = plan_of(conv=off(2, 0, 1), branch=off(4, *branch))
    result = compact(randomise(PadsAConstant()), plan, EXAMPLE, multiple=multiple)
    assert result.certificate.passed, result.certificate


def test_size_in_the_code_is_rewritten() -> None:
    network = randomise(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), View(4 * 36), nn.Linear(4 * 36, 2)))
    result = check(network, plan_of(**{"0": off(4, 1)}), EXAMPLE)
    assert shapes(result.network)["3.weight"] == (2, 3 * 36)
    assert not isinstance(check(network, SparsityPlan(), EXAMPLE).network, fx.GraphModule)


class View(nn.Module):
    def __init__(self, features: int) -> None:
        super().__init__()
        self.features = features

    def forward(self, x: Tensor) -> Tensor:
        return x.view(-1, self.features)


class InPlaceOnAView(nn.Module):
    """The halves are rectified in place, so the whole is, which is read afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.after, self.fc = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        first, _ = x.chunk(2, 1)
        torch.sigmoid_(first)
        return self.fc(torch.relu(self.after(x)).mean((2, 3)))


def test_a_view_that_is_overwritten() -> None:
    network = randomise(InPlaceOnAView())
    assert [site.name for site in find_sites(network, EXAMPLE)] == ["after"]
    result = check(network, plan_of(after=off(4, 2)), EXAMPLE)
    assert "sigmoid_: overwrites a tensor that is read again" in result.pinned


@pytest.mark.parametrize(
    "positions", [(0, 1, 2), (1, 2), (2, 0), (-1, 0, 1, -1, -1), (-1, 2, 0, -1), (0, -1, 2), (-1, -1), (1, 1)]
)
@pytest.mark.parametrize("axis", [1, 2])
def test_select(positions: tuple[int, ...], axis: int) -> None:
    given = images(2, 3, 3)
    channels = [given.select(axis, p) if p >= 0 else torch.zeros(2, 3) for p in positions]
    assert torch.equal(Select(positions, axis)(given), torch.stack(channels, axis))


@pytest.mark.parametrize("positions", [(2, 0), (-1, 2, 0, -1), (0, -1, 2)])
def test_select_holds_its_places_and_saves_none(
    positions: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is made in a pass would be copied to a GPU in each one, which a CUDA graph cannot record."""
    given, select = images(2, 3, 3), Select(positions)
    expected = select(given)
    assert not select.state_dict()
    twin = copy.deepcopy(select).double()
    moved = Select(positions).to("meta")
    monkeypatch.delattr(torch, "tensor")
    assert torch.equal(select(given), expected)
    assert torch.equal(twin(given.double()), expected.double())
    assert moved(given.to("meta")).shape == expected.shape
