"""Hard-concrete L0: gates that are exactly 0 or 1 with positive probability and yet have a gradient.

Louizos, Welling & Kingma, Learning Sparse Neural Networks through L0 Regularization, arXiv 1712.01312; code
AMLab-Amsterdam/L0_regularization at 39a5fe6.

Symbols of the paper, per gate and minibatch:
    u ~ U(0, 1),  s = σ((log u − log(1 − u) + log α) / β),  s̄ = s(ζ − γ) + γ,  z = min(1, max(0, s̄))
    P(z ≠ 0) = σ(log α − β log(−γ/ζ))
    at test time z = min(1, max(0, σ(log α)(ζ − γ) + γ))
β = 2/3, γ = −0.1, ζ = 1.1; log α stays within log 1e-2 … log 1e2, as in the code. One u per gate and minibatch, the
default of the code. The gradient goes through z; one pass, one stage, no fine-tuning. Units with z = 0 at test time go.

Deviations: those of `methods/l0_penalty.py`; and the gates begin at σ(log α) = .9, where the released
settings have .5 for LeNets and .7 for wide ResNets. At .5 a short training ends with gates far from 0 and 1, at some
cost in accuracy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor, nn

from methods.base import Phase, Site, Traits
from methods.l0_penalty import L0Config, L0Gate, L0Method

BETA, GAMMA, ZETA = 2 / 3, -0.1, 1.1
LOG_ALPHA_RANGE = (math.log(1e-2), math.log(1e2))
EPSILON = 1e-6
"""u is drawn from U(ε, 1 − ε), so that its logarithms are finite."""
NOISE = 1e-2
"""Standard deviation of log α about its start."""


class HardConcreteGate(L0Gate):
    """`location` is log α."""

    def __init__(self, log_alpha: Tensor, generator: torch.Generator) -> None:
        super().__init__(len(log_alpha))
        self.location = nn.Parameter(log_alpha)
        self._generator = generator

    def probability(self) -> Tensor:
        return torch.sigmoid(self.location - BETA * math.log(-GAMMA / ZETA))

    def draw(self, training: bool, batch: int) -> Tensor:
        if training:
            u = torch.rand(self.size, generator=self._generator, device=self.location.device)
            u.mul_(1 - 2 * EPSILON).add_(EPSILON)
            s = torch.sigmoid((u.logit_() + self.location) / BETA)
        else:
            s = torch.sigmoid(self.location)
        return (s * (ZETA - GAMMA) + GAMMA).clamp(0.0, 1.0)


class HardConcreteConfig(L0Config):
    """initial_drop: 1 − σ(log α) at the start."""

    initial_drop: float = Field(default=0.1, gt=0, lt=1)


class HardConcrete(L0Method):
    """Hard-concrete gates on all units, trained with the weights in one go."""

    name = "hard-concrete"
    title = "Hard-concrete L0"
    paper = "Louizos et al. 2018, Learning Sparse Neural Networks through L0 Regularization, arXiv 1712.01312"
    strengths = (0.03, 0.1, 0.3, 1.0)
    Config = HardConcreteConfig
    capturable = True

    @property
    def traits(self) -> Traits:
        return Traits(granularity="unit", strength="penalty", trains_once=False)

    def phases(self, epochs: int) -> Sequence[Phase]:
        return (Phase("sparsify", 1.0),)

    def make_gate(self, site: Site) -> HardConcreteGate:
        generator = self.context.generator
        noise = torch.randn(site.size, generator=generator, device=generator.device)
        drop = self.config.initial_drop
        return HardConcreteGate(math.log((1 - drop) / drop) + NOISE * noise, generator)

    @torch.no_grad()
    def after_step(self) -> None:
        for gate in self.gates.values():
            gate.location.clamp_(*LOG_ALPHA_RANGE)
