"""One learned gate per unit under an L0 penalty: what hard-concrete and Bernoulli gates have in common.

The objective of Louizos et al. (arXiv 1712.01312), Li & Ji (L0-ARM, arXiv 1904.04432) and Neural Plasticity
Networks (arXiv 1908.08118):

    E_z[ task loss of the network with gates z ] + λ/N · Σ_j |g_j| · P(z_j ≠ 0),

with N training images. Gates sit on the suite's sites, after the affine chain of their unit, and are folded into the
weights when training ends.

Deviations, the same for all three methods, with reasons:
- Gates multiply the outputs of convolutions and of fully connected layers. The papers gate the *inputs* of the latter,
  pixels and flattened features included; a unit of the suite is a channel or a feature and the input is not
  removable. A gate on a channel before a flattening therefore stands for all the features that come of it.
- |g_j| is what removing unit j alone saves: its rows in the layers that produce it and its columns in those that
  read it (`Site.parameters_per_unit`). The papers count rows (convolutions) or columns (inputs), which needs one λ
  per layer to give sensible widths. On LeNet-5 ours are 1276, 8501 and 811, in the ratio 1.6 : 10.5 : 1; the
  released settings λ = (10, .5, .1, 10) times their |g| amount to 250, 1050 (a channel with its 16 features) and 100,
  a ratio of 2.5 : 10.5 : 1. One λ of about 0.12 to 0.2 here is that setting.
- λ is divided by N for every network (released: for LeNet and MLP only; ResNet-56's λ = 1e-5 is 0.5 here).
- No L2 term weighted by the gates: weight decay is the recipe's, the same for every method of a workload. The released
  LeNet settings divide theirs by N, which leaves nothing of it.
- The gates' learning rate is thirty times the papers' 1e-3: their LeNet trainings have 90,000 to 230,000 steps, and
  at 1e-3 the gates of a training of a few thousand would hardly have moved.
- No exponential moving average of the weights, which only some of the released settings use.
- At λ = 0 nothing is to be closed and the whole network stays: no gate is placed, the training is that of `dense`, in
  the phases of the method (the plastic gates have three, each with the recipe's schedule) and in its precision.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from methods.base import Config, Method, Site, SparsityPlan, StepContext
from methods.gates import Gate, Placement, fold, unfoldable

_GATE = "gate/"


class L0Gate(Gate):
    """A gate with a learned parameter per unit. `draw` in evaluation mode gives the test-time gate."""

    location: nn.Parameter
    """(size,): the larger, the more open."""

    def probability(self) -> Tensor:
        """P(z_j ≠ 0), (size,), differentiable in `location`."""
        raise NotImplementedError


def expected_weights(gates: Mapping[str, L0Gate], sites: Sequence[Site]) -> Tensor:
    """Σ_j |g_j| · P(z_j ≠ 0), a scalar with gradient, over the sites that have a gate."""
    terms = [
        site.parameters_per_unit * gates[site.name].probability().sum()
        for site in sites
        if site.name in gates
    ]
    return torch.stack(terms).sum()


class L0Config(Config):
    """gate_rate: Adam's learning rate for the gates."""

    gate_rate: float = Field(default=3e-2, gt=0)


class L0Method(Method):
    """Base of the methods: places the gates, penalises them, folds them. λ is the strength."""

    strength_meaning = "λ, the price of a weight: the loss grows by λ/N for each weight expected to be there."
    Config = L0Config
    gates: dict[str, L0Gate]
    """Site → gate. Empty at strength 0."""

    @abstractmethod
    def make_gate(self, site: Site) -> L0Gate:
        """A fresh gate, on the device of the context."""

    @property
    def gates_learn(self) -> bool:
        """Whether the gates have gradients in the present phase."""
        return bool(self.gates)

    def supports(self, network: nn.Module, sites: Sequence[Site]) -> str | None:
        return unfoldable(network, sites)

    def attach(self, network: nn.Module, sites: Sequence[Site], context: StepContext) -> None:
        super().attach(network, sites, context)
        self.gates = {site.name: self.make_gate(site) for site in sites} if context.strength else {}
        self._placement = Placement(network, sites, self.gates)
        self._kept: dict[str, Tensor] = {}

    def parameter_groups(self) -> list[dict[str, Any]]:
        if not self.gates_learn:
            return []
        locations = [gate.location for gate in self.gates.values()]
        return [{"params": locations, "optimizer": "adam", "lr": self.config.gate_rate, "weight_decay": 0.0}]

    def penalty(self) -> Tensor | None:
        if not self.gates_learn:
            return None
        assert self.context.strength is not None
        return self.context.strength / self.context.train_size * expected_weights(self.gates, self.sites)

    def state_dict(self) -> dict[str, Tensor | float | int | str]:
        return {_GATE + name: gate.location.detach() for name, gate in self.gates.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        with torch.no_grad():
            for name, gate in self.gates.items():
                gate.location.copy_(state[_GATE + name])

    @torch.no_grad()
    def detach(self) -> None:
        """Folds the test-time gates. A unit whose gate is zero is off and not kept."""
        self._placement.remove()
        for site in self.sites:
            if site.name in self.gates:
                value = self.gates[site.name].draw(training=False, batch=1)
                fold(self.network, site, value)
                self._kept[site.name] = value > 0

    def plan(self, strength: float) -> SparsityPlan:
        if strength != self.context.strength:
            raise ValueError(f"{self.name} was trained for strength {self.context.strength}, not {strength}")
        return SparsityPlan(kept=dict(self._kept), notes=self.notes())

    def notes(self) -> tuple[str, ...]:
        """What a reader of the record should know; called after `detach`."""
        return ()
