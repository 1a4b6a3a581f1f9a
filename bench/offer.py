"""What of a network a method is offered, and why it does not run there."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from bench.compaction import find_branches, find_sites
from methods.base import Method, Site


def all_sites(network: nn.Module, example: Tensor) -> list[Site]:
    """Groups of units first, then branches; example and errors as of `find_sites`."""
    return [*find_sites(network, example), *find_branches(network, example)]


def offered_sites(sites: Sequence[Site], method: Method, streams: bool) -> list[Site]:
    """Of all sites of a network, those that a method may work on.

    Units of a stream go from all layers that share them or from none, so they are offered on request (streams). Where
    no units are removed that does not matter: a method of single weights may take them from any layer. And where the
    config of a method says what goes, as that of a control does, it may name a stream: weights that were removed may
    have taken units of one with them. Branches have no units, and are offered where whole layers go.
    """
    granularity = method.traits.granularity
    whole = streams or granularity in ("none", "weight") or method.traits.prescribed
    refused = ({"stream"} if not whole else set()) | ({"branch"} if granularity != "layer" else set())
    return [site for site in sites if site.kind not in refused]


def skip_reason(method: Method, network: nn.Module, sites: Sequence[Site], streams: bool) -> str | None:
    """None, or why a method does not run on a network with these sites."""
    offered = offered_sites(sites, method, streams)
    if sites and not offered:
        return "all units of it that could go lie on residual streams or in concatenations (see `streams`)"
    return method.supports(network, offered)
