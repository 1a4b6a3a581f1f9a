"""Units taken away in the middle of a training: what the method is handed afterwards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
import torch
from torch import Tensor

from bench import networks
from bench.compaction import find_sites
from bench.device import memory_format_of, place
from bench.offer import offered_sites
from bench.records.schema import MemoryFormat
from bench.training.thinning import take_away
from methods.base import Method, Site, SparsityPlan, Traits


class Removing(Method):
    name = "removing"
    strengths = (0.5,)

    @property
    def traits(self) -> Traits:
        return Traits("unit", "ratio", trains_once=False)

    def transfer(self, sites: Sequence[Site], kept: Mapping[str, Tensor]) -> None:
        self.sites = sites

    def plan(self, strength: float) -> SparsityPlan:
        return SparsityPlan()


def test_a_method_gets_the_sites_that_it_was_offered() -> None:
    network, example = networks.build("resnet20-b", (3, 4, 4), 4), torch.zeros(1, 3, 4, 4)
    method = Removing()
    sites = offered_sites(find_sites(network, example), method, streams=False)
    kept = {sites[0].name: torch.arange(sites[0].size) < 5}
    left = take_away(network, method, sites, kept, example)
    assert left == method.sites
    assert [site.name for site in left] == [site.name for site in sites]
    assert [site.size for site in left] == [5, *(site.size for site in sites[1:])]
    assert network(torch.rand(2, 3, 4, 4)).shape == (2, 4)


@pytest.mark.parametrize("memory_format", ["channels-last", "contiguous"])
def test_the_weights_stay_in_their_format(memory_format: MemoryFormat) -> None:
    network, example = networks.build("digits-cnn", (1, 8, 8), 4), torch.zeros(1, 1, 8, 8)
    place(network, torch.device("cpu"), memory_format)
    kept = {"conv1": torch.arange(16) < 5}
    take_away(network, Removing(), find_sites(network, example), kept, example)
    assert memory_format_of(network) == memory_format
