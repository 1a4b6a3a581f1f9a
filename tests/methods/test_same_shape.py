"""The controls: a given shape from scratch, and random units at given ratios."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import methods
from bench import networks
from bench.compaction import find_sites
from bench.offer import all_sites, offered_sites, skip_reason
from methods.base import LayerAction, Site, StepContext
from methods.errors import BadConfig
from tests.contract.families import resnet

Network = tuple[nn.Module, list[Site]]


def lenet() -> tuple[nn.Module, list[Site]]:
    network = networks.build("mlp-300-100", (1, 8, 8), 10)
    return network, find_sites(network, torch.zeros(1, 1, 8, 8))


def test_the_shape_of_the_config() -> None:
    _, sites = lenet()
    method = methods.create("same-shape", kept={"fc1": 20, "fc2": 100}, layer_actions=["merge fc2 fc3"])
    plan = method.shape(sites, 0.5)
    assert plan is not None
    assert {site: int(kept.sum()) for site, kept in plan.kept.items()} == {"fc1": 20}
    assert plan.layer_actions == (LayerAction("merge", ("fc2", "fc3")),)
    assert method.plan(0.5).kept == {}


def test_a_whole_network_is_left_alone() -> None:
    """So that it keeps the initial weights that all methods of a seed share."""
    _, sites = lenet()
    assert methods.create("same-shape").shape(sites, 1.0) is None
    assert methods.create("same-shape", kept={"fc1": 300}).shape(sites, 1.0) is None
    assert methods.create("same-shape", kept={"fc1": 20}).shape(sites, 0.0) is None


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"kept": {"fc9": 3}}, "it has no layer 'fc9'"),
        ({"kept": {"fc1": 301}}, "fc1 has 300 units, not 301"),
        ({"layer_actions": ["linearise relu9"]}, "it has no layer 'relu9'"),
    ],
)
def test_a_shape_that_does_not_fit_is_refused(config: dict[str, Any], reason: str) -> None:
    assert methods.create("same-shape", **config).supports(*lenet()[:2]) == reason


@pytest.mark.parametrize("config", [{"kept": {"fc1": 0}}, {"layer_actions": ["melt fc1"]}])
def test_a_shape_that_is_none_is_refused(config: dict[str, Any]) -> None:
    with pytest.raises(BadConfig):
        methods.create("same-shape", **config)


def test_random_units_at_ratios(make_context: Callable[..., StepContext]) -> None:
    """Of the sites named, at any strength but zero, and exactly as many as a kept count stands for."""
    network, sites = lenet()
    for kept in (1, 93, 299):
        method = methods.create("random", ratios={"fc1": 1 - kept / 300}, finetune=0)
        method.attach(network, sites, make_context())
        counts = {site: int(mask.sum()) for site, mask in method.plan(0.7).kept.items()}
        assert counts == {"fc1": kept, "fc2": 100}
        assert all(bool(mask.all()) for mask in method.plan(0.0).kept.values())


@pytest.mark.parametrize(
    ("name", "config"),
    [("same-shape", {"kept": {"conv": 3, "fc3": 3}}), ("random", {"ratios": {"fc3": 0.5}})],
)
def test_a_layer_that_is_no_site_is_refused(name: str, config: dict[str, Any]) -> None:
    """Ignored, it would leave a control larger than what it controls for."""
    network, sites = lenet()
    network.add_module("conv", nn.Conv2d(1, 5, 1))
    reason = methods.create(name, **config).supports(network, sites)
    assert reason == f"{'conv' if name == 'same-shape' else 'fc3'} names no units that could be removed"


def test_controls_are_offered_the_streams_that_they_name(make_context: Callable[..., StepContext]) -> None:
    """Weights that went may have taken units of a stream with them, in a workload whose methods are offered none."""
    network = resnet((1, 8, 8), 10)
    sites = all_sites(network, torch.zeros(1, 1, 8, 8))
    (stream, *_) = (site for site in sites if site.kind == "stream")
    shape = methods.create("same-shape", kept={stream.name: 4})
    assert skip_reason(shape, network, sites, streams=False) is None
    plan = shape.shape(offered_sites(sites, shape, streams=False), 1.0)
    assert plan is not None
    assert int(plan.kept[stream.name].sum()) == 4
    random = methods.create("random", ratios={stream.name: 1 - 4 / stream.size}, finetune=0)
    assert skip_reason(random, network, sites, streams=False) is None
    random.attach(network, offered_sites(sites, random, streams=False), make_context())
    kept = random.plan(0.1).kept
    assert int(kept[stream.name].sum()) == 4
    assert all(bool(mask.all()) for name, mask in kept.items() if name != stream.name)
    assert not any(
        site.kind == "stream" for site in offered_sites(sites, methods.create("random"), streams=False)
    )


def test_random_ratios_out_of_range() -> None:
    with pytest.raises(BadConfig):
        methods.create("random", ratios={"fc1": 1.0})
    assert methods.create("random", ratios={"fc": 0.5}).supports(*lenet()[:2]) == "it has no layer 'fc'"
