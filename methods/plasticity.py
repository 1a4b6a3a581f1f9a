"""Neural Plasticity Networks: units are pruned, or grown, by Bernoulli gates whose slope k says how plastic they are.

Li & Ji, Neural Plasticity Networks, arXiv 1908.08118; code leo-yangli/npns at d71bb37. π_j = σ(kφ_j), z_j ~
Bernoulli(π_j). k = 0 is dropout at rate ½ whatever φ; k = ∞ is ordinary training of the units with φ > 0. Three stages:
1. k = ∞: the units that are active at first are trained;
2. finite k: φ by ARM and the L0 penalty, along with the weights; units close, and open if the network expands;
3. k = ∞: every gate is fixed at 1[φ > 0] (hardening), the weights go on.
Active units begin at φ ~ N(3/k, ·), so π = .95, hibernating ones at N(−40/k, ·), from where growth alone wakes them.

`mode="sparsify"`: all units are active at first. `mode="expand"`: a few of each site are, and after an epoch of stage 2
in which validation loss plus penalty came below its value at the last growth, every site opens closed units.

Deviations beyond those of `methods/arm.py` and `methods/l0_penalty.py`, with reasons:
- k = ∞ is taken literally (z = 1[φ > 0], φ has no gradient); the code has k = 5000.
- φ is initialised with the k of stage 2. The code initialises with 7 also where k is 1, so units begin at π = .61.
- Stages are fractions of the budget, by default the code's 100 : 250 : 150 epochs for LeNet-5; each runs the
  schedule of the recipe, as all phases of the suite do. Stage 1 of `sparsify` is the pretraining that methods share.
- Growth looks at the validation split; the code at the test split. It opens the closed units that come next, those that
  were never open first; the code stops at the first opened unit that has died. No growth after the last epoch
  of stage 2, when nothing could learn any more.
- Hibernating gates are held at −40/k. In the code they follow the estimator's noise, too slowly to matter at its rate
  of 1e-3; at thirty times that some would wake by themselves.
- A channel before a flattening is grown whole; the code grows one of its 16 features.
- In `expand` the network has no weight decay: it wears down the weights of units that hibernate, and Adam, which
  divides it by its own size, has them at zero within tens of steps. The code weighs its L2 term by π.
- A start of three units may be dead: no unit of a layer is ever positive, nothing learns, nothing grows, and the run is
  recorded as collapsed. LeNet-5 began so for one seed of the five that were looked at.
- Strength 0 keeps the whole network, also in `expand`; growth without a price is a strength next to 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from methods.arm import ANTITHETIC_PASS, ArmMethod, BernoulliGate, starting_noise
from methods.base import Evaluation, Phase, Request, Site, StepContext, Traits
from methods.finetuning import plain_training
from methods.l0_penalty import L0Config

ACTIVE, HIBERNATING = 3.0, -40.0
"""kφ of units at the start."""
_OPENED = "opened/"


class PlasticityConfig(L0Config):
    """k: slope of the gates in stage 2 (the paper: 7, and 1 to expand LeNet-5). pretrain, harden: the fractions of the
    budget that stages 1 and 3 take.

    Of `expand` alone: start_units: active units of each site at first; start_fraction: the same as a fraction of each
    site, in its place. grow_per_event: units that a site opens at a time; fill: kφ that they get; patience: epochs
    of stage 2 without improvement after which growth ends, None for never.
    """

    mode: Literal["sparsify", "expand"] = "sparsify"
    k: float = Field(default=7.0, gt=0)
    pretrain: float = Field(default=0.2, gt=0, lt=1)
    harden: float = Field(default=0.3, gt=0, lt=1)
    start_units: int = Field(default=3, gt=0)
    start_fraction: float | None = Field(default=None, gt=0, le=1)
    grow_per_event: int = Field(default=1, gt=0)
    fill: float = 0.0
    patience: int | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _leave_time(self) -> PlasticityConfig:
        if self.pretrain + self.harden >= 1:
            raise ValueError("pretrain and harden together leave no time for the gates to learn")
        return self


class Plasticity(ArmMethod):
    """Stages of k over Bernoulli gates, for pruning a network or for growing one."""

    name = "plasticity"
    title = "Neural plasticity networks"
    paper = "Li & Ji 2019, Neural Plasticity Networks, arXiv 1908.08118"
    strengths = (0.03, 0.1, 0.3, 1.0)
    Config = PlasticityConfig

    opened: dict[str, Tensor]
    """Site → bool (size,): units that were active at first or have been opened since."""
    best: float
    """Validation loss plus penalty at the last growth."""
    stalled: int
    """Epochs of stage 2 since then."""

    @property
    def traits(self) -> Traits:
        return Traits(
            granularity="unit",
            strength="penalty",
            trains_once=False,
            needs_validation=self.config.mode == "expand",
            forward_passes=1.0 + ANTITHETIC_PASS * (1 - self.config.pretrain - self.config.harden),
        )

    def phases(self, epochs: int) -> Sequence[Phase]:
        first, last = self.config.pretrain, self.config.harden
        start = plain_training(first) if self.config.mode == "sparsify" else Phase("start", first)
        return (start, Phase("plastic", 1 - first - last), Phase("harden", last))

    @property
    def k(self) -> float:
        return float(self.config.k) if self.context.phase.name == "plastic" else math.inf

    def supports(self, network: nn.Module, sites: Sequence[Site]) -> str | None:
        for site in sites:
            if (start := self.active_at_first(site)) > site.size:
                return f"{site.name} has {site.size} units at full width, and the growth would start from {start}"
        return super().supports(network, sites)

    def attach(self, network: nn.Module, sites: Sequence[Site], context: StepContext) -> None:
        self.opened, self.best, self.stalled = {}, math.inf, 0
        super().attach(network, sites, context)

    def make_gate(self, site: Site) -> BernoulliGate:
        generator = self.context.generator
        active = torch.arange(site.size, device=generator.device) < self.active_at_first(site)
        self.opened[site.name] = active
        start = torch.where(active, ACTIVE, HIBERNATING)
        noise = starting_noise(site.size, self.config.k, generator)
        return BernoulliGate(start / self.config.k + noise, lambda: self.k)

    def active_at_first(self, site: Site) -> int:
        """Where growth starts from so many units, that may be more than the site has: see `supports`."""
        if self.config.mode == "sparsify":
            return site.size
        if self.config.start_fraction is not None:
            return max(1, round(self.config.start_fraction * site.size))
        return int(self.config.start_units)

    def parameter_groups(self) -> list[dict[str, Any]]:
        groups = super().parameter_groups()
        if self.gates and self.config.mode == "expand":
            groups.append({"params": list(self.network.parameters()), "weight_decay": 0.0})
        return groups

    def after_step(self) -> None:
        """Gates that were never open stay where they are: the estimator's noise, which Adam brings to full size, would
        open them in a long run. Adam goes on following it, so that an opened gate moves as its neighbours do."""
        super().after_step()
        if self.config.mode == "expand" and self.gates_learn:
            with torch.no_grad():
                for name, gate in self.bernoulli_gates.items():
                    gate.location.masked_fill_(~self.opened[name], HIBERNATING / self.config.k)

    def after_epoch(self, validate: Callable[[], Evaluation]) -> Request | None:
        phase_ends = self.context.phase_step >= self.context.phase_steps
        if self.config.mode == "expand" and self.gates_learn and not phase_ends:
            penalty = self.penalty()
            assert penalty is not None
            self.consider_growth(validate().loss + penalty.item())
        return None

    def consider_growth(self, loss: float) -> None:
        """The grow rule. loss: on the validation split, with the penalty."""
        if self.config.patience is not None and self.stalled >= self.config.patience:
            return
        if loss >= self.best:
            self.stalled += 1
            return
        self.best, self.stalled = loss, 0
        for name, gate in self.bernoulli_gates.items():
            self._open(name, gate)

    @torch.no_grad()
    def _open(self, name: str, gate: BernoulliGate) -> None:
        """The closed units that come next: never opened ones first, then in order of index."""
        closed = (gate.location <= 0).nonzero().flatten()
        order = self.opened[name][closed].to(torch.int8).argsort(stable=True)
        chosen = closed[order[: self.config.grow_per_event]]
        noise = starting_noise(len(chosen), self.config.k, self.context.generator)
        gate.location[chosen] = self.config.fill / self.config.k + noise
        self.opened[name][chosen] = True

    def state_dict(self) -> dict[str, Tensor | float | int | str]:
        opened = {_OPENED + name: mask for name, mask in self.opened.items()}
        return super().state_dict() | opened | {"best": self.best, "stalled": self.stalled}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.opened = {name: state[_OPENED + name].to(mask.device) for name, mask in self.opened.items()}
        self.best, self.stalled = float(state["best"]), int(state["stalled"])

    def detach(self) -> None:
        """What `plan` tells of the gates, they say before they are hardened for good."""
        self._undecided = sum(
            int(((self.config.k * gate.location).abs() < ACTIVE).sum()) for gate in self.gates.values()
        )
        super().detach()

    def notes(self) -> tuple[str, ...]:
        if not self.gates:
            return ()
        total = sum(gate.size for gate in self.gates.values())
        opened = sum(int(mask.sum()) for mask in self.opened.values())
        return (f"{self._undecided} of {total} gates hardened while .05 < π < .95; {opened} were ever open",)
