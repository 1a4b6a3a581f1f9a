"""`make perf`: finding the sites of ResNet-50 and removing half of its units, beside Torch-Pruning doing the same.

Both build their dependencies and cut the same units of the same network. Ours also looks for what is dead besides, and
folds constants; the proof of equality, which Torch-Pruning does not have, is timed apart."""

from __future__ import annotations

import argparse
import copy
import gc
import statistics
import time
from collections.abc import Callable
from unittest import mock

import torch
import torch_pruning
from torch import Tensor, nn

from bench.compaction import compact, find_sites, removal
from bench.compaction.sites import switch_off
from bench.compaction.survey import half_off, randomise
from methods.base import Site, SparsityPlan


def ours(network: nn.Module, plan: SparsityPlan, example: Tensor) -> nn.Module:
    """Sites and compact network."""
    find_sites(network, example)
    return compact(network, plan, example).network


def without_proof(network: nn.Module, plan: SparsityPlan, example: Tensor) -> nn.Module:
    """The same, nothing compared."""
    with mock.patch.object(removal, "certify"):
        return ours(network, plan, example)


def torch_prunings(network: nn.Module, sites: list[Site], plan: SparsityPlan, example: Tensor) -> nn.Module:
    """Site after site, by index, in a copy."""
    pruned = copy.deepcopy(network)
    switch_off(pruned, sites, plan)
    dependencies = torch_pruning.DependencyGraph().build_dependency(pruned, example_inputs=example)
    for site in sites:
        gone = (~plan.kept[site.name]).nonzero().flatten().tolist()
        layer = pruned.get_submodule(site.name)
        dependencies.get_pruning_group(layer, torch_pruning.prune_conv_out_channels, idxs=gone).prune()
    return pruned


def seconds(work: Callable[[], nn.Module]) -> tuple[float, int]:
    """Of CPU time, which other processes disturb less, and the parameters that are left. What the one before has left
    behind is not cleared away at its expense."""
    gc.collect()
    began = time.process_time()
    network = work()
    return time.process_time() - began, sum(parameter.numel() for parameter in network.parameters())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", default="resnet50", help="of torchvision, convolutions alone")
    parser.add_argument("--side", type=int, default=64, help="of the image")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    from torchvision import models

    network = randomise(models.get_model(options.network, weights=None)).eval()
    example = torch.randn(1, 3, options.side, options.side)
    sites = find_sites(network, example)
    plan = half_off(sites)
    rivals = {
        "Torch-Pruning": lambda: torch_prunings(network, sites, plan, example),
        "ours, without the proof": lambda: without_proof(network, plan, example),
        "ours": lambda: ours(network, plan, example),
    }
    times: dict[str, list[float]] = {name: [] for name in rivals}
    left = {}
    for _ in range(options.rounds):
        for name, work in rivals.items():
            taken, left[name] = seconds(work)
            times[name].append(taken)
    print(
        f"{options.network}, {options.side}×{options.side}, {len(sites)} sites, one thread; median CPU seconds"
    )
    first = statistics.median(times["Torch-Pruning"])
    for name, taken in times.items():
        median = statistics.median(taken)
        print(
            f"  {name:<24} {median:7.2f} s   {median / first:5.2f}×   {left[name] / 1e6:.2f} M parameters left"
        )


if __name__ == "__main__":
    main()
