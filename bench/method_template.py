"""MY_METHOD: say in one sentence what it removes, and cite the paper (arXiv number) that says why.

This file is a whole method and runs as it stands:

    bench run digits --method ./MY_METHOD.py

It trains, removes the units of the smallest norm, and fine-tunes what is left. Change what differs in yours; every
hook that you leave out has a default (`methods/base.py` says what each one owes). The harness calls them in this order:

    shape → attach → start_phase → (training_step → after_step)* → after_epoch → … → detach → plan

Two rules. A unit that is off gives exactly zero after its weights, bias and normalisation. And randomness comes from
`self.context.generator` alone, so that a run that was interrupted goes on as if it had not been.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field
from torch import Tensor, nn

from methods.base import Config, Method, Phase, Site, SparsityPlan, StepContext, Traits
from methods.masks import Masks
from methods.ranking import removed_count, smallest, unit_norms


class MyMethodConfig(Config):
    """Settings, which a suite may give as `config = { finetune = 0.5 }`; anything else there is refused.

    finetune: the last fraction of the epochs, in which the pruned network recovers.
    """

    finetune: float = Field(default=0.25, gt=0, lt=1)


class MyMethod(Method):
    """What tables cannot say: the idea, its symbols, and where this differs from the paper."""

    name = "my-method"
    title = "The title as the paper has it"
    paper = "Author et al. 2026, Title, arXiv 0000.00000"
    strengths = (0.5, 0.75, 0.9)  # the default grid, weakest first; at 0 a method keeps the whole network
    strength_meaning = "The fraction of every site's units that is removed."
    Config = MyMethodConfig
    masks: Masks

    @property
    def traits(self) -> Traits:
        """granularity: `unit`, `weight` or `layer`. strength: `ratio`, `penalty`, `tolerance` or `self`. trains_once:
        whether one training serves every strength, so that a strength matters in `plan` alone."""
        return Traits(granularity="unit", strength="ratio", trains_once=False)

    def phases(self, epochs: int) -> Sequence[Phase]:
        """Parts of the budget; the fractions sum to 1. A `shared` first phase is plain training, done once for all
        methods that ask for the same."""
        finetune = self.config.finetune
        return (Phase("pretrain", 1 - finetune, shared=True), Phase("finetune", finetune))

    def attach(self, network: nn.Module, sites: Sequence[Site], context: StepContext) -> None:
        """The place for gates, hooks and parameters of your own; whatever you put in, `detach` has to take out."""
        super().attach(network, sites, context)
        self.masks = Masks(network, sites)

    # parameter_groups(): learnables of your own, with their optimiser settings
    # penalty(): a scalar that is added to the task loss
    # training_step(batch): your own forward and backward passes, in place of the usual one

    def start_phase(self, phase: Phase) -> None:
        """Here the units are chosen, once, between training and fine-tuning."""
        if phase.name == "finetune":
            assert self.context.strength is not None
            self.masks.set(self.select(self.context.strength))
            self.masks.enforce()

    def select(self, strength: float) -> SparsityPlan:
        """Your criterion. Site → bool (size,), True where a unit stays."""
        kept = {}
        for site in self.sites:
            norms = unit_norms([self.network.get_parameter(f"{layer}.weight") for layer in site.producers])
            kept[site.name] = ~smallest(norms, removed_count(strength, site.size))
        return SparsityPlan(kept=kept)

    def after_step(self) -> None:
        """After the optimiser: what was removed stays at zero, whatever momentum makes of it."""
        self.masks.enforce()

    # after_epoch(validate): thresholds, ramps; may ask for the next phase, a stop, or the best state back

    def state_dict(self) -> dict[str, Tensor | float | int | str]:
        """All that a resume needs beside the network's own parameters and buffers."""
        return {**self.masks.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.masks.load_state_dict(state)

    # detach(): the plain network again; gates folded into weights, no hook left behind

    def plan(self, strength: float) -> SparsityPlan:
        """What the harness is to remove from the network that `detach` left. Must not change the network."""
        return self.masks.plan()
