"""Train, prune, fine-tune: what the baselines that rank once have in common.

Fine-tuning runs the recipe's learning-rate schedule again, from its full base rate and in the shorter time
(learning-rate rewinding: Renda et al., arXiv 2003.02389). The rate of this phase alone can decide a ranking,
and a large one that anneals recovers more than the small last rate of training (Le & Hua, arXiv 2105.03193;
Wang et al., arXiv 2301.05219), so a smaller rate would only make the baselines weak.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field
from torch import Tensor, nn

from methods.base import Config, Method, Phase, Site, SparsityPlan, StepContext
from methods.masks import Masks


def plain_training(fraction: float) -> Phase:
    """Training that no method influences; the whole of it where `fraction` is 1."""
    return Phase("train" if fraction == 1 else "pretrain", fraction, shared=True)


class FinetunedConfig(Config):
    """finetune: the last fraction of the budget, in which the pruned network recovers. At 0 the network is
    pruned after all training, and one training serves every strength."""

    finetune: float = Field(default=0.25, ge=0, lt=1)


class FinetunedMethod(Method):
    """Base of methods that choose what to remove by `select` when fine-tuning begins, then hold those
    masks."""

    Config = FinetunedConfig
    masks: Masks

    @abstractmethod
    def select(self, strength: float) -> SparsityPlan:
        """What to remove from the network as it stands. Must not change it."""

    def phases(self, epochs: int) -> Sequence[Phase]:
        finetune = self.config.finetune
        if finetune == 0:
            return (plain_training(1.0),)
        return (plain_training(1 - finetune), Phase("finetune", finetune))

    def attach(self, network: nn.Module, sites: Sequence[Site], context: StepContext) -> None:
        super().attach(network, sites, context)
        self.masks = Masks(network, sites)

    def start_phase(self, phase: Phase) -> None:
        if phase.name == "finetune":
            assert self.context.strength is not None
            self.masks.set(self.select(self.context.strength))
            self.masks.enforce()

    def after_step(self) -> None:
        self.masks.enforce()

    def state_dict(self) -> dict[str, Tensor | float | int | str]:
        return {**self.masks.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.masks.load_state_dict(state)

    def plan(self, strength: float) -> SparsityPlan:
        if not self.masks:
            return self.select(strength)
        if strength != self.context.strength:
            raise ValueError(f"{self.name} was trained for strength {self.context.strength}, not {strength}")
        return self.masks.plan()
