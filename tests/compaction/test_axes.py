"""Channels on other dims than 1: tokens, permutations, layer scales; and what pins them."""

from __future__ import annotations

import pytest
import torch
from small_networks import check, images, off, plan_of, randomise, shapes
from torch import Tensor, nn

from bench.compaction import apply_architecture, find_sites
from bench.compaction.gating import check_gates
from methods.input_gate import InputGate

EXAMPLE = images(2, 3, 8, 8)


class NextBlock(nn.Module):
    """As in ConvNeXt: depthwise convolution, linear layers on the last dim, a scale per channel, a sum."""

    def __init__(self, norm: bool) -> None:
        super().__init__()
        self.stem, self.depthwise = nn.Conv2d(3, 6, 2, 2), nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.norm = nn.LayerNorm(6) if norm else nn.Identity()
        self.up, self.gelu, self.down = nn.Linear(6, 10), nn.GELU(), nn.Linear(10, 6)
        self.layer_scale = nn.Parameter(torch.rand(6, 1, 1) + 0.5)
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        out = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        out = self.down(self.gelu(self.up(out))).permute(0, 3, 1, 2)
        x = x + self.layer_scale * out
        return self.fc(x.mean((-1, -2)))


def test_layer_scale_is_cut_with_the_stream() -> None:
    network = randomise(NextBlock(norm=False))
    sites = {site.name: site for site in find_sites(network, EXAMPLE)}
    assert {name: (site.size, site.tokens) for name, site in sites.items()} == {
        "stem": (6, True),
        "up": (10, True),
    }
    assert sites["stem"].producers == ("stem", "depthwise", "down")
    # Two rows of the depthwise and the linear layer, two columns, a scale: all a unit's own.
    assert sites["stem"].parameters_per_unit == 12 + 1 + 9 + 1 + 10 + 10 + 1 + 1 + 3
    assert sites["up"].macs_per_unit == 16 * 12
    result = check(network, plan_of(stem=off(6, 1, 5), up=off(10, 0, 2, 9)), EXAMPLE)
    assert result.certificate.removed_units == 5
    assert shapes(result.network)["layer_scale"] == (4, 1, 1)
    rebuilt = apply_architecture(network, result.architecture, EXAMPLE)
    assert torch.equal(rebuilt.get_parameter("layer_scale"), result.network.get_parameter("layer_scale"))


def test_layer_norm_pins_the_stream_alone() -> None:
    network = randomise(NextBlock(norm=True))
    assert [site.name for site in find_sites(network, EXAMPLE)] == ["up"]
    result = check(network, plan_of(up=off(10, 0, 2, 9)), EXAMPLE)
    assert shapes(result.network)["down.weight"] == (6, 7)
    assert result.pinned == ("norm: LayerNorm",)


class Tokens(nn.Module):
    """A transformer's layer on patches, with a class token."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.token = nn.Conv2d(3, 8, 4, 4), nn.Parameter(torch.randn(1, 1, 8))
        self.norm, self.attention = nn.LayerNorm(8), nn.MultiheadAttention(8, 2, batch_first=True)
        self.up, self.down, self.head = nn.Linear(8, 12), nn.Linear(12, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[0]
        x = self.patches(x).reshape(n, 8, 4).permute(0, 2, 1)
        x = torch.cat([self.token.expand(n, -1, -1), x], dim=1)
        y = self.norm(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return self.head((x + self.down(torch.relu(self.up(self.norm(x)))))[:, 0])


def test_tokens() -> None:
    network = randomise(Tokens())
    (site,) = find_sites(network, EXAMPLE)
    assert (site.name, site.size, site.tokens, site.ends, site.readers) == (
        "up",
        12,
        True,
        ("up",),
        ("down",),
    )
    assert site.parameters_per_unit == 8 + 1 + 8
    assert site.macs_per_unit == 5 * 16
    result = check(network, plan_of(up=off(12, 0, 1, 7)), EXAMPLE)
    assert shapes(result.network)["up.weight"] == (9, 8)
    whole = "attention: MultiheadAttention in one piece (see bench.networks.separate_attention)"
    assert whole in result.pinned
    with pytest.raises(ValueError, match="'up' is of tokens"):
        check_gates({"up": InputGate(*torch.ones(3, 12))}, [site])


class Broadcast(nn.Module):
    """Gates (N, C, 1, 1) and (N, C) laid upon maps; the second would meet them along the width."""

    def __init__(self, wrong: bool) -> None:
        super().__init__()
        self.wrong = wrong
        self.conv, self.gate = nn.Conv2d(3, 8, 1), nn.Linear(8, 8)
        self.after, self.fc = nn.Conv2d(8, 4, 3, padding=1), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        gate = torch.sigmoid(self.gate(x.mean((2, 3))))
        gate = gate[:, None, None, :].mean(0) if self.wrong else gate.view(x.size(0), 8, 1, 1)
        return self.fc(torch.relu(self.after(x * gate)).mean((2, 3)))


def test_broadcast_products() -> None:
    network = randomise(Broadcast(wrong=False))
    conv, _ = find_sites(network, EXAMPLE)
    assert conv.producers == ("conv", "gate")
    assert check(network, plan_of(conv=off(8, 3, 4)), EXAMPLE).architecture.kept["conv"] == [0, 1, 2, 5, 6, 7]
    assert [site.name for site in find_sites(randomise(Broadcast(wrong=True)), EXAMPLE)] == ["after"]


def test_depthwise_behind_a_concatenation() -> None:
    """It reads two spaces at once, and is cut with both."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 3, 1)
            self.depthwise, self.bn = nn.Conv2d(7, 7, 3, padding=1, groups=7), nn.BatchNorm2d(7)
            self.after, self.fc = nn.Conv2d(7, 4, 1), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.cat([self.left(x), self.right(x)], 1)
            return self.fc(torch.relu(self.after(torch.sigmoid(self.bn(self.depthwise(x))))).mean((2, 3)))

    network = randomise(Net())
    assert [site.name for site in find_sites(network, EXAMPLE)] == ["left", "right", "after"]
    result = check(network, plan_of(left=off(4, 0), right=off(3, 0, 2)), EXAMPLE)
    assert shapes(result.network)["depthwise.weight"] == (4, 1, 3, 3)
    assert result.certificate.removed_units == 3


def test_transposed_convolution_reads() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.ConvTranspose2d(6, 4, 3, 2, padding=1), nn.ReLU(), nn.Flatten()
    )
    network.append(nn.Linear(4 * 121, 2))
    randomise(network)
    result = check(network, plan_of(**{"0": off(6, 2, 3)}), EXAMPLE)
    assert shapes(result.network)["2.weight"] == (4, 4, 3, 3)
    assert result.pinned == ("2: outputs of ConvTranspose2d",)


def test_norm_without_scale_and_shift() -> None:
    """A unit that is off behind it is zero, though the mean of a unit is not."""
    network = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6, affine=False), nn.ReLU(), nn.Conv2d(6, 4, 3, padding=1)
    )
    network.extend([nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)])
    randomise(network)
    result = check(network, plan_of(**{"0": off(6, 1, 2)}), EXAMPLE)
    assert result.architecture.kept["0"] == [0, 3, 4, 5]
