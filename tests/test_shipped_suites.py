"""Every suite that ships can be planned: its networks, methods, settings and published figures fit together."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import bench.plan
from bench import data, networks, suite
from bench.data.split import Dataset, Split
from bench.filters import Filters
from bench.measure.macs import count_macs
from bench.offer import all_sites
from bench.plan import make_plan

IMAGES = {"mnist": (1, 28, 28), "digits": (1, 8, 8), "imagenet": (3, 64, 64)}
CLASSES = {"imagenet": 1000, "cifar100": 100}


def stand_in(name: str, root: object = None) -> Dataset:
    """The shape of a data set, without its images (ImageNet's smaller: planning only traces)."""
    shape, classes = IMAGES.get(name, (3, 32, 32)), CLASSES.get(name, 10)
    few = Split(torch.zeros(4, *shape, dtype=torch.uint8), torch.arange(4))
    ones = torch.ones(shape[0])
    return Dataset(name, few, few, classes, ones, ones, name != "mnist", "none", 4)


@functools.cache
def built(name: str, input_shape: tuple[int, int, int], classes: int) -> nn.Module:
    return networks.build(name, input_shape, classes)


class OncePerNetwork:
    """Planning leaves a network as it is, so suites may share one, and what is found out about it. No
    pretrained weights are loaded: they would have to be downloaded."""

    build = staticmethod(built)

    @staticmethod
    def load_start(network: nn.Module, name: str, checkpoint: object = None) -> None:
        assert checkpoint is None


class Once:
    """A function of (network, example), called once per network."""

    def __init__(self, function: Callable[[nn.Module, torch.Tensor], Any]) -> None:
        self.function = function
        self.found: dict[nn.Module, Any] = {}

    def __call__(self, network: nn.Module, example: torch.Tensor) -> Any:
        if network not in self.found:
            self.found[network] = self.function(network, example)
        return self.found[network]


SITES, MACS = Once(all_sites), Once(count_macs)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "load", stand_in)
    monkeypatch.setattr(bench.plan, "networks", OncePerNetwork)
    monkeypatch.setattr(bench.plan, "all_sites", SITES)
    monkeypatch.setattr(bench.plan, "count_macs", MACS)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("name", suite.shipped())
def test_plans(name: str) -> None:
    loaded = suite.load(name)
    plan = make_plan(loaded, Filters(seeds=(loaded.seeds[0],)), None)
    labels = {cell.method.label for cell in plan.cells}
    skipped = {skip.label for skip in plan.skips}
    assert labels | skipped == {entry.shown for entry in loaded.methods}
    assert all(cell.steps > 0 for cell in plan.cells)


@pytest.mark.parametrize("name", suite.shipped())
def test_published_figures_have_a_source(name: str) -> None:
    for published in suite.load(name).published:
        assert published.source
        assert published.provenance or not published.has_figures
