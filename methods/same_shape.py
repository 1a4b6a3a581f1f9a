"""The shape that another method found, trained from scratch.

The control that any claim for a method's *weights* has to beat: Liu et al., Rethinking the Value of Network Pruning,
arXiv 1810.05270 ("Scratch-E", for the same epochs; "Scratch-B" for the same compute is a matter of the suite, see
`bench.controls`). Which units stay does not matter before initialisation, only how many; layers that a method took
away or merged are gone from the start.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, cast

import torch
from pydantic import Field
from torch import nn

from methods.base import Config, LayerAction, Method, Site, SparsityPlan, Traits, missing_site

Action = Annotated[str, Field(pattern=r"^(drop|linearise|merge|shift)( \S+)+$")]


class SameShapeConfig(Config):
    """kept: site → units that stay, of a site not named all. layer_actions: in their order, each as `kind layer …`,
    the way a point's record tells them (`merge fc2 fc3`)."""

    kept: dict[str, Annotated[int, Field(ge=1)]] = Field(default={})
    layer_actions: tuple[Action, ...] = ()


class SameShape(Method):
    """Plain training of a network of a given shape."""

    name = "same-shape"
    title = "The same shape, trained from scratch"
    paper = "Liu et al. 2019, Rethinking the Value of Network Pruning, arXiv 1810.05270"
    strengths = (1.0,)
    strength_meaning = (
        "Any value above zero builds the shape of the config; it is a label, that of the point of the shape."
    )
    Config = SameShapeConfig
    capturable = True

    @property
    def traits(self) -> Traits:
        # Each strength is a training of its own, for strength zero is the full network.
        return Traits(granularity="unit", strength="none", trains_once=False, prescribed=True)

    def supports(self, network: nn.Module, sites: Sequence[Site]) -> str | None:
        """Also where a site of the config is not among `sites`: without it the shape would be a larger one."""
        if missing := missing_site(network, sites, self.config.kept):
            return missing
        sizes = {site.name: site.size for site in sites}
        for site, count in self.config.kept.items():
            if count > sizes[site]:
                return f"{site} has {sizes[site]} units, not {count}"
        modules = dict(network.named_modules())
        for layer in [layer for action in self.config.layer_actions for layer in action.split()[1:]]:
            if layer not in modules:
                return f"it has no layer {layer!r}"
        return None

    def shape(self, sites: Sequence[Site], strength: float) -> SparsityPlan | None:
        """The first units of each site stay: before initialisation all units are alike."""
        sizes = {site.name: site.size for site in sites}
        kept = {
            name: torch.arange(sizes[name]) < count
            for name, count in self.config.kept.items()
            if count < sizes[name]
        }
        if strength == 0 or not (kept or self.config.layer_actions):
            return None
        words = [action.split() for action in self.config.layer_actions]
        actions = tuple(LayerAction(_kind(word), tuple(layers)) for word, *layers in words)
        return SparsityPlan(kept=kept, layer_actions=actions)

    def plan(self, strength: float) -> SparsityPlan:
        """Keeps all: what is missing was gone before training."""
        return SparsityPlan()


def _kind(word: str) -> Literal["drop", "linearise", "merge", "shift"]:
    return cast(Literal["drop", "linearise", "merge", "shift"], word)
