"""Operands of a concatenation that lose all their units: they go, with all that served them alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_networks import check, images, off, plan_of, randomise, shapes
from torch import Tensor, nn

from bench import networks
from bench.compaction import apply_architecture, compact, find_sites, load_compact, save_compact
from bench.compaction.architecture import Architecture
from methods.base import SparsityPlan

EXAMPLE = images(2, 3, 8, 8)


class Dense(nn.Module):
    """Two layers that each read all before them, as in a DenseNet."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.norm1, self.narrow1 = nn.BatchNorm2d(4), nn.Conv2d(4, 6, 1, bias=False)
        self.wide1 = nn.Conv2d(6, 3, 3, padding=1)
        self.norm2, self.narrow2 = nn.BatchNorm2d(7), nn.Conv2d(7, 6, 1, bias=False)
        self.wide2 = nn.Conv2d(6, 3, 3, padding=1)
        self.norm3, self.fc = nn.BatchNorm2d(10), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        first = self.stem(x)
        second = self.wide1(torch.relu_(self.narrow1(torch.relu(self.norm1(first)))))
        third = self.wide2(torch.relu_(self.narrow2(torch.relu(self.norm2(torch.cat([first, second], 1))))))
        return self.fc(torch.relu(self.norm3(torch.cat([first, second, third], 1))).mean((2, 3)))


@pytest.mark.parametrize("gone", [("wide1",), ("wide2",), ("wide1", "wide2"), ("stem",), ("stem", "wide2")])
def test_a_whole_operand_goes(gone: tuple[str, ...]) -> None:
    """Also what stands before it, which nobody else reads. A stem that is off has readers, which get its constants."""
    network = randomise(Dense())
    sizes = {site.name: site.size for site in find_sites(network, EXAMPLE)}
    result = check(
        network, plan_of(**{name: off(sizes[name], *range(sizes[name])) for name in gone}), EXAMPLE
    )
    left = {name.partition(".")[0] for name in shapes(result.network)}
    if "stem" not in gone:
        assert left.isdisjoint(gone)
        assert left.isdisjoint({name.replace("wide", "narrow") for name in gone})
        assert result.collapsed == ()
        assert shapes(result.network)["fc.weight"] == (3, 10 - 3 * len(gone))
        assert all(result.architecture.kept[name] == [] for name in gone)
        removed = sum(sizes[name] + sizes[name.replace("wide", "narrow")] for name in gone)
        assert result.certificate.removed_units == removed
    rebuilt = apply_architecture(network, result.architecture, EXAMPLE)
    assert shapes(rebuilt) == shapes(result.network)
    rebuilt.load_state_dict(result.network.state_dict())
    assert torch.equal(rebuilt.eval()(EXAMPLE), result.network(EXAMPLE))


class Grouped(nn.Module):
    """An operand that begins with a grouped convolution, of whose inputs one is a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 2, 1)
        self.grouped, self.last = nn.Conv2d(2, 4, 1, groups=2, bias=False), nn.Conv2d(4, 3, 1)
        self.fc = nn.Linear(5, 3)
        with torch.no_grad():
            self.stem.weight[1], self.stem.bias[1] = 0.0, 1.0

    def forward(self, x: Tensor) -> Tensor:
        first = torch.relu(self.stem(x))
        second = self.last(torch.relu(self.grouped(first)))
        return self.fc(torch.cat([second, first], 1).mean((2, 3)))


def test_groups_that_nobody_reads_are_not_kept_for_their_inputs() -> None:
    network = Grouped()
    result = check(network, plan_of(last=off(3, 0, 1, 2)), EXAMPLE)
    assert {name.partition(".")[0] for name in shapes(result.network)} == {"stem", "fc"}
    assert result.architecture.kept == {"stem": [0], "grouped": [], "last": []}
    assert result.certificate.removed_units == 1 + 4 + 3
    assert result.collapsed == ()


def test_where_nothing_is_left_a_unit_stays_and_is_told() -> None:
    network = randomise(Dense())
    plan = SparsityPlan(
        kept={site.name: torch.zeros(site.size, dtype=torch.bool) for site in find_sites(network, EXAMPLE)}
    )
    result = check(network, plan, EXAMPLE)
    assert result.collapsed != ()


def test_an_architecture_that_empties_a_layer_with_readers_is_refused() -> None:
    """The layers that `narrow1` serves want an input."""
    with pytest.raises(ValueError, match="leaves 'narrow1' without a unit"):
        apply_architecture(randomise(Dense()), Architecture(kept={"narrow1": []}), EXAMPLE)


def test_densenet_without_some_of_its_layers_is_stored_and_read_again(tmp_path: Path) -> None:
    shape = (3, 32, 32)
    network = randomise(networks.build("densenet-bc-100-12", shape, 10)).eval()
    example = images(1, *shape)
    sites = [site for site in find_sites(network, example) if site.kind == "stream"][1:]
    chosen = [sites[0], sites[3], sites[4], sites[-1]]
    plan = SparsityPlan(kept={site.name: torch.zeros(site.size, dtype=torch.bool) for site in chosen})
    result = compact(network, plan, example)
    assert result.certificate.passed, result.certificate
    assert result.collapsed == ()
    modules = dict(result.network.named_modules())
    assert not any(site.name in modules for site in chosen)
    save_compact(tmp_path, result, "densenet-bc-100-12", shape, 10)
    assert torch.equal(load_compact(tmp_path)(example), result.network(example))


class FoldsOnTheWay(nn.Module):
    """A constant of the branch that is strung on is folded into a layer in its midst."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.middle, self.last = (
            nn.Conv2d(size, out, 1) for size, out in ((3, 8), (8, 6), (6, 6), (6, 4))
        )
        self.norm, self.fc = nn.GroupNorm(2, 6), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        more = self.last(self.norm(self.middle(torch.sigmoid(self.first(x)))))
        return self.fc(torch.relu(torch.cat([x, more], 1)).mean((2, 3)))


def test_what_is_folded_into_a_layer_that_goes_is_forgotten() -> None:
    network = randomise(FoldsOnTheWay())
    result = check(network, plan_of(first=off(6, 0, 3), last=off(4, *range(4))), EXAMPLE)
    assert not {"first.weight", "middle.weight", "last.weight"} & shapes(result.network).keys()
