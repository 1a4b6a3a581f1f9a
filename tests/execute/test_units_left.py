"""What a point's record says is left of each site, where whole layers went."""

from __future__ import annotations

import torch

from bench import networks
from bench.compaction import compact, find_sites
from bench.execute.subject import units_left
from methods.base import LayerAction, SparsityPlan


def test_dropped_branches_take_their_units_but_not_their_stream() -> None:
    """The stream of the second stage is named by a layer of its first block, which goes; the others are left."""
    example = torch.zeros(1, 3, 8, 8)
    network = networks.build("resnet20", (3, 8, 8), 10).eval()
    sites = find_sites(network, example)
    sizes = {site.name: site.size for site in sites}
    assert sizes["stages.1.0.conv2"] == 32
    dropped = ["stages.1.0", "stages.2.0", "stages.2.1", "stages.2.2"]
    actions = tuple(LayerAction("drop", (f"{block}.bn2",)) for block in dropped)
    half = torch.arange(16) < 8
    plan = SparsityPlan(kept={"stages.0.0.conv1": half}, layer_actions=actions)
    left = units_left(compact(network, plan, example), sites)
    gone = {f"{block}.conv1": 0 for block in dropped}
    assert left == sizes | gone | {"stages.0.0.conv1": 8, "stages.2.0.conv2": 0}
