"""Units that a method gives up for good while it trains are taken away at once, not only at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from bench.compaction import Architecture, apply_architecture, find_sites
from bench.device import memory_format_of, place
from methods.base import Method, Site

Removed = dict[str, list[int]]
"""Site → the units that are left, in the numbers of the network that the training began with."""


def take_away(
    network: nn.Module, method: Method, sites: Sequence[Site], kept: Mapping[str, Tensor], example: Tensor
) -> list[Site]:
    """Cut `network`, itself, to the units `kept`, (size,) bool by site, and hand it over to the method; the new sites,
    of those that the method was offered.

    The layers are other objects afterwards, and it may be of another class where calls of its code had to be replaced;
    hooks on the network itself stay. example: on the device that trains.
    """
    thin = apply_architecture(network, Architecture(kept=units_of(kept)), example)
    thin = place(thin, example.device, memory_format_of(network))
    hooks = {name: value for name, value in vars(network).items() if "hooks" in name}
    network.__class__ = type(thin)
    network.__dict__ = {**vars(thin), **hooks}
    offered = {site.name for site in sites}
    found = [site for site in find_sites(network, example) if site.name in offered]
    method.transfer(found, kept)
    return found


def units_of(kept: Mapping[str, Tensor]) -> Removed:
    """Masks, (size,) bool by site, as the units that are left."""
    return {site: mask.nonzero().flatten().tolist() for site, mask in kept.items()}


def composed(before: Removed, now: Removed) -> Removed:
    """What is left after a further removal, in the numbers of the beginning."""
    return before | {
        site: [before[site][unit] for unit in units] if site in before else units
        for site, units in now.items()
    }


def masks_of(removed: Removed, sites: Sequence[Site]) -> dict[str, Tensor]:
    """(size,) bool by site of the network that the training began with."""
    masks: dict[str, Tensor] = {}
    for site in sites:
        if site.name in removed:
            masks[site.name] = torch.zeros(site.size, dtype=torch.bool)
            masks[site.name][removed[site.name]] = True
    return masks
