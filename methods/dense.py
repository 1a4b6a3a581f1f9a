"""The full network: what every other method is compared with."""

from __future__ import annotations

from collections.abc import Sequence

from methods.base import Method, Phase, SparsityPlan, Traits
from methods.finetuning import plain_training


class Dense(Method):
    """Plain training with the whole budget. Nothing is removed."""

    name = "dense"
    title = "Dense network"
    paper = "none (reference)"
    strengths = (0.0,)
    capturable = True
    strength_meaning = "There is one point, the full network."

    @property
    def traits(self) -> Traits:
        return Traits(granularity="none", strength="none", trains_once=True)

    def phases(self, epochs: int) -> Sequence[Phase]:
        return (plain_training(1.0),)

    def plan(self, strength: float) -> SparsityPlan:
        return SparsityPlan()
