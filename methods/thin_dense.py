"""The same architecture with fewer units, trained from scratch.

The baseline that a structured method has to beat: Liu et al., Rethinking the Value of Network Pruning, arXiv
1810.05270; Tessier et al., ThinResNet, arXiv 2309.12854. Every site keeps the same fraction of its units.
Here the thin network has the same number of epochs as all others ("Scratch-E" in the former).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from methods.base import Method, Site, SparsityPlan, Traits
from methods.ranking import removed_count


class ThinDense(Method):
    """Plain training of a network that is uniformly thin from the start."""

    name = "thin-dense"
    title = "Thin dense network, trained from scratch"
    paper = "Liu et al. 2019, Rethinking the Value of Network Pruning, arXiv 1810.05270"
    strengths = (0.5, 0.75, 0.85, 0.9)
    capturable = True
    strength_meaning = "The fraction of every site's units that is left out before training."

    @property
    def traits(self) -> Traits:
        return Traits(granularity="unit", strength="ratio", trains_once=False)

    def shape(self, sites: Sequence[Site], strength: float) -> SparsityPlan | None:
        """The last units of each site stay: before initialisation all units are alike."""
        if strength == 0:
            return None
        return SparsityPlan(
            kept={site.name: torch.arange(site.size) >= removed_count(strength, site.size) for site in sites}
        )

    def plan(self, strength: float) -> SparsityPlan:
        """Keeps all: the units were gone before training."""
        return SparsityPlan()
