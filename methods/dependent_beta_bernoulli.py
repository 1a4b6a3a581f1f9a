"""Dependent beta-Bernoulli dropout: on top of beta-Bernoulli dropout, gates that close units for single images.

Lee et al., Adaptive Network Sparsification with Dependent Variational Beta-Bernoulli Dropout, arXiv
1805.10896; code OpenXAIProject/Variational_Dropouts at 61ac484 and ICLR2020anonymous/bbdrop at 99fa411.

Symbols of the paper: unit k, image n; z = z^BB ⊙ z^dep.
- s_nk: the mean over places of the unit's value before its gate, constant for autograd; ŝ: s normalised over the
  minibatch (running statistics in evaluation).
- β_k = η_k + κ_k ε_k with ε_k ~ N(0, 1), one draw per minibatch; κ through softplus.
- φ_k(x_n) = clip(g_k ŝ_nk + β_k, ε, 1 − ε); z^dep_nk is relaxed Bernoulli(φ_k(x_n)).
- prior: β_k ~ N(0, ρ²), ρ = √5; KL = Σ log(ρ/κ) + (κ² + η²)/(2ρ²) − ½.
- objective: cross-entropy + KL/N; the posterior of beta-Bernoulli dropout is frozen, but its z is still drawn.
- test: z_nk = E[π_k]·1[E[π_k] ≥ threshold]·φ_k(x_n), with ε = 0; zero where it is not above the threshold.

Stages: plain pretraining; beta-Bernoulli dropout; then the dependent gates and the weights together.

What can be removed is what beta-Bernoulli dropout removes; it is cut out before the dependent stage begins
(`removable`): the same function for less work.

The other gates are part of the delivered network (`input_gates`): with E[π] folded into the weights, φ is
clip(slope·s + offset), two numbers and a threshold for each unit. A closed gate saves work only in the layers that
read the unit: to know the gate, the unit itself must have been computed.

Deviations, beside those of beta-Bernoulli dropout, with reasons:
- s is the value before the activation for dense layers too, where the paper has the input of the next layer.
- At the units of several producers (residual streams) the first to run decides for all; the paper has no such net.
- ε = 1e-6 in the clip: the code's 1 − 1e-10 is 1 in float32, its logit infinite.
- η starts at 1, as in the PyTorch code. The TensorFlow code's 10 leaves every φ in the clip's flat part.
- The scale and shift of the network's own normalisations train on; the PyTorch code freezes them, but not their
  running statistics.
- Strength scales both divergences; the paper's is 1 in both stages.
- Minibatches are the workload's. ŝ is of the minibatch, so φ is noisy where one has few images; a single one is
  normalised by the running statistics.
- The mean number of active units is taken on the validation split; the paper takes it on the test split.
- Strength 0: no prior, so no dependent gates; the second stage of beta-Bernoulli dropout goes on to the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from methods.base import Evaluation, Phase, Request, Site, SparsityPlan, StepContext, Traits
from methods.beta_bernoulli import BetaBernoulli, BetaBernoulliConfig, PosteriorGate, relaxed_bernoulli
from methods.finetuning import plain_training
from methods.gates import Gate
from methods.input_gate import InputGate
from methods.random_bits import logistic

RHO = math.sqrt(5)
CLIP = 1e-6
"""ε of the clip in training."""

ETA, KAPPA_UC = 1.0, 0.5413
"""Where η and κ_uc (κ = 1) start."""

MOMENTUM, EPSILON = 0.1, 1e-5
"""Of the running statistics, and added to the variance: torch's defaults."""


class DependentBetaBernoulliConfig(BetaBernoulliConfig):
    """pretrain, dependent: the first and the last fraction of the budget; what lies between is beta-Bernoulli
    dropout. gate_learning_rate: for the dependent gates too."""

    pretrain: float = Field(default=1 / 3, ge=0, lt=1)
    dependent: float = Field(default=1 / 3, gt=0, lt=1)

    @model_validator(mode="after")
    def _leave_time_for_the_posterior(self) -> DependentBetaBernoulliConfig:
        if self.pretrain + self.dependent >= 1:
            raise ValueError("pretrain and dependent together leave no time for beta-Bernoulli dropout")
        return self


class Dependence(nn.Module):
    """q(z^dep | x) of the units of all sites, side by side: of the small operations that the posterior and the noise
    take, one for all sites instead of one for each. K: the number of units."""

    mean: Tensor
    variance: Tensor

    def __init__(self, sizes: Sequence[int], tau: float, generator: torch.Generator) -> None:
        """sizes: of the sites, in their order."""
        super().__init__()
        self.sizes, self.tau, self.generator = tuple(sizes), tau, generator

        def full(value: float) -> Tensor:
            return torch.full((sum(sizes),), value, device=generator.device)

        self.g, self.eta = nn.Parameter(full(1.0)), nn.Parameter(full(ETA))
        self.kappa_uc = nn.Parameter(full(KAPPA_UC))
        self.register_buffer("mean", full(0.0))
        self.register_buffer("variance", full(1.0))

    def parts(self, values: Tensor) -> tuple[Tensor, ...]:
        """(…, K) → by site, (…, size) each."""
        return values.split(self.sizes, dim=-1)

    def noise(self, batch: int) -> Noise:
        """Of one pass of `batch` images in training."""
        size = len(self.eta)
        epsilon = torch.randn(size, generator=self.generator, device=self.generator.device)
        beta = self.eta + functional.softplus(self.kappa_uc) * epsilon
        return Noise(
            self.parts(self.g), self.parts(beta), self.parts(logistic((batch, size), self.generator))
        )

    def phi(self, at: int, values: Tensor) -> Tensor:
        """φ of the `values` (N, size, …) of one site, the `at`-th, in evaluation, (N, size)."""
        g, eta = (self.parts(each)[at] for each in (self.g, self.eta))
        return self._shifted(at, values, g, eta, training=False).clamp(0.0, 1.0)

    def noisy_phi(self, at: int, values: Tensor, noise: Noise) -> Tensor:
        """φ in training before its clip, with the noise of β, (N, size)."""
        return self._shifted(at, values, noise.g[at], noise.beta[at], training=True)

    def draw(self, at: int, values: Tensor, noise: Noise) -> Tensor:
        """z^dep, (N, size)."""
        log_odds = torch.logit(self.noisy_phi(at, values, noise), eps=CLIP)
        return relaxed_bernoulli(log_odds, noise.z[at], self.tau)

    def _shifted(self, at: int, values: Tensor, g: Tensor, beta: Tensor, training: bool) -> Tensor:
        """g ŝ + β, float32 whatever the network computes in: in bf16 1 − ε is 1. In training the running statistics
        move on, in place."""
        running = (self.parts(self.mean)[at], self.parts(self.variance)[at])
        s = values.detach()
        s = s.flatten(2).mean(2, dtype=g.dtype) if s.dim() > 2 else s.to(g)
        by_batch = training and len(s) > 1  # of a single image there is no variance
        return functional.batch_norm(s, *running, g, beta, by_batch, MOMENTUM, EPSILON)

    @torch.no_grad()
    def folded(self, at: int, expected: Tensor, threshold: float) -> InputGate:
        """The gate of one site in evaluation, for values that come multiplied by `expected`, (size,)."""
        g, eta, mean, variance = (
            self.parts(each)[at] for each in (self.g, self.eta, self.mean, self.variance)
        )
        expected, deviation = expected.double(), (variance.double() + EPSILON).sqrt()
        alive = expected > 0
        scale = torch.where(alive, expected, 1.0)
        slope, offset = g / (deviation * scale), eta - g * mean / deviation
        floor = torch.where(alive, threshold / scale, torch.inf)
        return InputGate(slope.to(g), offset.to(g), floor.to(g))


@dataclass(frozen=True)
class Noise:
    """What one pass in training draws for all its images and sites: g and β, (size,) by site, and `logistic` noise,
    (N, size) by site."""

    g: tuple[Tensor, ...]
    beta: tuple[Tensor, ...]
    z: tuple[Tensor, ...]


def divergence(eta: Tensor, kappa_uc: Tensor) -> Tensor:
    """Σ_k KL(N(η_k, κ_k²) ‖ N(0, ρ²)), a scalar; both (K,)."""
    kappa = functional.softplus(kappa_uc)
    return (torch.log(RHO / kappa) + (kappa**2 + eta**2) / (2 * RHO**2) - 0.5).sum()


class DependentGate(Gate):
    """z^BB ⊙ z^dep of one site. The gates of a network are drawn in their order, and the first draws the noise of all.

    seen: in evaluation, of each batch the images, and over them the sums of active units and of those whose φ is at its
    clip, where its noise is all that could still move it."""

    noise: Noise | None

    def __init__(
        self, static: PosteriorGate, dependence: Dependence, threshold: float, first: DependentGate | None
    ) -> None:
        """first: the gate of the first site, None if this is it."""
        super().__init__(static.size)
        self.static, self.dependence, self.threshold = static, dependence, threshold
        self.seen: list[tuple[int, Tensor, Tensor]] = []
        self._first = (first,)  # in a tuple: it is not a part of this module

    def draw(self, training: bool, batch: int) -> Tensor:
        """z^BB; `see` completes it."""
        first = self._first[0]
        if first is not None:
            self.noise = first.noise
        else:
            self.noise = self.dependence.noise(batch) if training else None
        return self.static.draw(training, batch)

    def see(self, values: Tensor) -> None:
        at = self.static.at
        if self.noise is not None:
            self.value = self.value * self.dependence.draw(at, values, self.noise)
            return
        phi = self.dependence.phi(at, values)
        z = self.value * phi
        on = z > self.threshold
        self.value = z * on
        self.seen.append((len(on), on.sum(), ((phi == 0) | (phi == 1)).sum()))


class DependentBetaBernoulli(BetaBernoulli):
    """Static removal by keep probabilities, then gates that close units for single images."""

    name = "dependent-beta-bernoulli"
    title = "Dependent beta-Bernoulli dropout"
    Config = DependentBetaBernoulliConfig
    capturable = False

    dependence: Dependence
    activity: dict[str, float]
    """Site → mean number of active units, on the validation split after the last epoch."""
    saturated: float
    """There, the share of all φ that are 0 or 1."""

    @property
    def traits(self) -> Traits:
        return Traits(
            granularity="unit", strength="penalty", trains_once=False, needs_validation=True, dynamic=True
        )

    def supports(self, network: nn.Module, sites: Sequence[Site]) -> str | None:
        tokens = next((site.name for site in sites if site.tokens), None)
        if tokens is not None:
            return f"the units of {tokens} are of tokens, and its gates are of whole images"
        return super().supports(network, sites)

    def phases(self, epochs: int) -> Sequence[Phase]:
        pretrain, dependent = self.config.pretrain, self.config.dependent
        first = [plain_training(pretrain)] if pretrain else []
        return (*first, Phase("sparsify", 1 - pretrain - dependent), Phase("dependent", dependent))

    def attach(self, network: nn.Module, sites: Sequence[Site], context: StepContext) -> None:
        super().attach(network, sites, context)
        self.dependence = self._fresh(sites)
        self.dependent, self.activity, self.saturated = False, {}, math.nan

    def _fresh(self, sites: Sequence[Site]) -> Dependence:
        sizes = [site.size for site in sites]
        return Dependence(sizes, self.config.temperature, self.context.generator)

    def removable(self) -> Mapping[str, Tensor]:
        """A site that has lost all its units is left to the plan, which tells of it."""
        if self.context.phase.name != "dependent" or self.strength == 0:
            return {}
        self._take_off()
        kept = self.by_site(self.posterior.kept())
        return {name: mask for name, mask in kept.items() if bool(mask.any())}

    def transfer(self, sites: Sequence[Site], kept: Mapping[str, Tensor]) -> None:
        super().transfer(sites, kept)
        self.dependence = self._fresh(sites)

    def start_phase(self, phase: Phase) -> None:
        super().start_phase(phase)
        if phase.name == "dependent" and self.strength > 0:
            self._begin_dependence()

    def _begin_dependence(self) -> None:
        """Freezes the posterior and puts the dependent gates over it."""
        self._take_off()
        self.dependent = True
        self.posterior.requires_grad_(False)
        self._place()

    def _gates(self) -> dict[str, Gate]:
        gates = super()._gates()
        if not self.dependent:
            return gates
        over: dict[str, Gate] = {}
        first: DependentGate | None = None
        for name, static in gates.items():
            assert isinstance(static, PosteriorGate)
            over[name] = gate = DependentGate(static, self.dependence, self.threshold, first)
            first = first or gate
        return over

    def parameter_groups(self) -> list[dict[str, Any]]:
        if self.dependent:
            return [self._gate_group(list(self.dependence.parameters()))]
        return super().parameter_groups()

    def penalty(self) -> Tensor | None:
        if not self.dependent:
            return super().penalty()
        kl = divergence(self.dependence.eta, self.dependence.kappa_uc)
        return self.strength / self.context.train_size * kl

    def after_epoch(self, validate: Callable[[], Evaluation]) -> Request | None:
        if self.dependent and self.context.phase_step == self.context.phase_steps:
            assert self.placement is not None
            gates = {
                name: gate for name, gate in self.placement.gates.items() if isinstance(gate, DependentGate)
            }
            for gate in gates.values():
                gate.seen.clear()
            validate()
            saturated = 0.0
            for name, gate in gates.items():
                images, active, at_clip = (sum(map(float, each)) for each in zip(*gate.seen, strict=True))
                self.activity[name] = active / images
                saturated += at_clip / images
                gate.seen.clear()
            self.saturated = saturated / sum(gate.size for gate in gates.values())
        return None

    def state_dict(self) -> dict[str, Tensor | float | int | str]:
        state = super().state_dict() | {"dependent": int(self.dependent), "saturated": self.saturated}
        state |= {f"dependence/{name}": value for name, value in self.dependence.state_dict().items()}
        return state | {f"activity/{site}": mean for site, mean in self.activity.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.dependence.load_state_dict(_under("dependence/", state))
        self.activity, self.saturated = _under("activity/", state), float(state.get("saturated", math.nan))
        if state["dependent"] and not self.dependent:
            self._begin_dependence()

    def detach(self) -> None:
        self._input_gates: dict[str, InputGate] = {}
        if self.dependent:
            expected = self.by_site(self.posterior.fixed())
            for at, site in enumerate(self.sites):
                self._input_gates[site.name] = self.dependence.folded(at, expected[site.name], self.threshold)
        super().detach()

    def input_gates(self) -> Mapping[str, InputGate]:
        return self._input_gates

    def plan(self, strength: float) -> SparsityPlan:
        plan = replace(super().plan(strength), expected_activity=self.activity)
        if not self.dependent:
            return plan
        return replace(
            plan, notes=(*plan.notes, f"{self.saturated:.1%} of all φ are 0 or 1 on the validation split")
        )


def _under(prefix: str, state: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of `state` below a prefix, without it."""
    return {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}
