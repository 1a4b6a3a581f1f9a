"""L0-ARM: Bernoulli gates on all units, trained with the weights by the ARM estimator in one go.

Li & Ji, L0-ARM: Network Sparsification via Stochastic Binary Optimization, arXiv 1904.04432; code leo-yangli/l0-arm at
ca103e0. π = σ(kφ) with k = 7 throughout; z ~ Bernoulli(π) in training, z = π where π ≥ ½ and 0 elsewhere at test time.
One stage, no hardening, no fine-tuning: what the gates have become is folded into the weights.

Deviations: those of `methods/arm.py` and `methods/l0_penalty.py`; and the gates begin at π = .9 instead of the ½ of the
released LeNet setting. At ½ every gate is undecided, half of the units are off at test time, and a short training
ends so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from pydantic import Field

from methods.arm import ANTITHETIC_PASS, ArmMethod, BernoulliGate, starting_noise
from methods.base import Phase, Site, Traits
from methods.l0_penalty import L0Config


class L0ArmConfig(L0Config):
    """k: slope of the gates. initial_drop: 1 − π at the start."""

    k: float = Field(default=7.0, gt=0)
    initial_drop: float = Field(default=0.1, gt=0, lt=1)


class L0Arm(ArmMethod):
    """Stochastic binary gates with a penalty on the expected number of weights."""

    name = "l0-arm"
    title = "L0-ARM"
    paper = (
        "Li & Ji 2019, L0-ARM: Network Sparsification via Stochastic Binary Optimization, arXiv 1904.04432"
    )
    strengths = (0.03, 0.1, 0.3, 1.0)
    Config = L0ArmConfig

    @property
    def traits(self) -> Traits:
        return Traits(
            granularity="unit", strength="penalty", trains_once=False, forward_passes=1 + ANTITHETIC_PASS
        )

    def phases(self, epochs: int) -> Sequence[Phase]:
        return (Phase("sparsify", 1.0),)

    @property
    def k(self) -> float:
        return float(self.config.k)

    def make_gate(self, site: Site) -> BernoulliGate:
        noise = starting_noise(site.size, self.k, self.context.generator)
        drop = self.config.initial_drop
        return BernoulliGate(math.log((1 - drop) / drop) / self.k + noise, lambda: self.k)
