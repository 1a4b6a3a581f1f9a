"""Beta-Bernoulli dropout: a keep probability for every unit, learnt under a prior that wants most of them near
zero.

Lee et al., Adaptive Network Sparsification with Dependent Variational Beta-Bernoulli Dropout, arXiv
1805.10896; code OpenXAIProject/Variational_Dropouts at 61ac484 and ICLR2020anonymous/bbdrop at 99fa411.

Symbols of the paper: unit k, image n.
- prior: π_k ~ Beta(α/K, 1), z_nk | π_k ~ Bernoulli(π_k); the code fixes α' = α/K (`prior_ratio`).
- posterior: q(π_k) = Kumaraswamy(a_k, b_k), q(z | π) = Bernoulli(π); a, b through softplus of `a_uc`, `b_uc`.
- training: π_k = (1 − u^(1/b_k))^(1/a_k), one draw per minibatch;
  z_nk = σ((logit π_k + logit u_nk)/τ), one draw per image; the unit is multiplied by z_nk.
- objective: cross-entropy + (s/N) Σ_k KL(q(π_k) ‖ p(π_k)); the divergence of z given π cancels. s, the paper's
  KL scale, is the strength.
- test: z_k = E[π_k]·1[E[π_k] ≥ threshold], folded into the weights by `detach`.

Stages: plain pretraining; then gates and weights together. No fine-tuning.

Deviations, with reasons:
- The gate of a hidden layer sits before its activation, or behind the pooling that follows a ReLU (`Site.outlets`).
  Where the paper gates the input of a layer, which comes out of a ReLU, that is the same function, as a gate is not
  negative.
- No gates on what is no unit of the suite: the input pixels (784 of the paper's LeNet-500-300), nor the single
  features of a flattened map (800 of LeNet-5: there the channel is the unit).
- Behind a normalisation, not before it (VGG): a gate before it leaves a constant instead of zero, which the
  authors' compressor drops.
- Strength is the KL scale at one learning rate of the gates; the published sweeps of the LeNets move that learning
  rate at scale 1 (`gate_learning_rate`), and that of the weights with it, a tenth of it. Here the weights keep theirs.
- One scale for all layers; the PyTorch code has one for each (LeNet-5: 40, 16, 1, 1), which presses on maps harder.
- The weights keep the optimiser, schedule and weight decay of the workload, like those of every method. Paper:
  Adam, ½·1e-4‖θ‖², 200 epochs for each stage, ×0.1 at 50 % and 80 % (LeNets: 50 % and 70 %). The stages share one
  budget (`pretrain`).
- Dropout layers of the network, if any, stay through both stages; the PyTorch code takes them away with the
  pretraining, the TensorFlow code in part.
- u_nk has 16 bits and so stays 2⁻¹⁷ from 0 and 1, where the code has 10⁻⁶ (`logistic`).
- Sampling in log space, and ψ(b) + 1/b as ψ(b + 1): the same values without underflow.
- Strength 0: there is no prior that could want a unit gone, so no threshold is applied and every unit stays; what is
  left is noise whose rates are fitted to the data alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from methods import kumaraswamy
from methods.base import Config, Method, Phase, Site, SparsityPlan, StepContext, Traits
from methods.finetuning import plain_training
from methods.gates import Gate, Placement, fold, unfoldable
from methods.random_bits import logistic

A_UC_PLAIN, A_UC_NORMALISED = -1.0, 2.0
"""Where a_uc starts: E[π] = .24 as on the paper's LeNets, .68 as on its VGG (every layer normalised)."""

B_UC = 0.5413
"""Where b_uc starts: b = 1."""

UNIFORM_EDGE = 1e-6
"""Uniform draws stay this far from 0 and 1, as in the code."""


def uniform(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Draws from (UNIFORM_EDGE, 1 − UNIFORM_EDGE), on the generator's device."""
    draws = torch.rand(*shape, generator=generator, device=generator.device)
    return draws.clamp_(UNIFORM_EDGE, 1 - UNIFORM_EDGE)


def relaxed_bernoulli(log_odds: Tensor, noise: Tensor, tau: float) -> Tensor:
    """σ((log_odds + noise)/τ), with `logistic` noise: near 1 with probability σ(log_odds), otherwise near 0."""
    return (log_odds + noise).div_(tau).sigmoid_()


class BetaBernoulliConfig(Config):
    """pretrain: the first fraction of the budget, plain training. gate_learning_rate: of Adam, for a_uc and b_uc; it
    follows the schedule of the weights. a_uc: where it starts; None for −1, and 2 at a site that ends in a
    normalisation. prior_ratio: α'. temperature: τ. threshold: units with a smaller E[π] are removed."""

    pretrain: float = Field(default=0.5, ge=0, lt=1)
    gate_learning_rate: float = Field(default=1e-2, gt=0)
    a_uc: float | None = Field(default=None, ge=-10, le=8)
    prior_ratio: float = Field(default=1e-4, gt=0, lt=1)
    temperature: float = Field(default=0.1, gt=0)
    threshold: float = Field(default=1e-3, gt=0, lt=1)


class Posterior(nn.Module):
    """q(π_k) of all units of all sites, side by side: one draw for the whole network costs a third of a draw for
    each site. K: the number of units."""

    def __init__(self, a_uc: Tensor, tau: float, threshold: float, generator: torch.Generator) -> None:
        """a_uc: where it starts, (K,), on the device of the generator."""
        super().__init__()
        self.tau, self.threshold, self.generator = tau, threshold, generator
        self.a_uc = nn.Parameter(a_uc)
        self.b_uc = nn.Parameter(torch.full_like(a_uc, B_UC))

    def draw(self, batch: int) -> Tensor:
        """z of `batch` images, (batch, K)."""
        size = len(self.a_uc)
        log_odds = kumaraswamy.sample_log_odds(*self.shapes(), uniform((size,), self.generator))
        return relaxed_bernoulli(log_odds, logistic((batch, size), self.generator), self.tau)

    def shapes(self) -> tuple[Tensor, Tensor]:
        """a and b, each (K,)."""
        return kumaraswamy.shapes(self.a_uc, self.b_uc)

    def expected(self) -> Tensor:
        """E[π], (K,), float64."""
        return kumaraswamy.mean(*self.shapes())

    def kept(self) -> Tensor:
        """(K,) bool."""
        return self.expected() >= self.threshold

    def fixed(self) -> Tensor:
        """z in evaluation: E[π]·1[E[π] ≥ threshold], (K,)."""
        expected = self.expected()
        return (expected * (expected >= self.threshold)).to(self.a_uc)

    def kl(self, alpha: float) -> Tensor:
        """Σ_k KL(q(π_k) ‖ Beta(alpha, 1)), a scalar."""
        return kumaraswamy.kl_to_beta(*self.shapes(), alpha).sum()


class PosteriorGate(Gate):
    """The gate of one site. The gates of a network are drawn in their order, and the first draws for all."""

    shares: tuple[Tensor, ...]

    def __init__(
        self, posterior: Posterior, sizes: Sequence[int], at: int, first: PosteriorGate | None
    ) -> None:
        """sizes: of all sites; at: which of them this is; first: the gate of the first site, None if this is it."""
        super().__init__(sizes[at])
        self.posterior, self.sizes, self.at = posterior, tuple(sizes), at
        self._first = (first,)  # in a tuple: it is not a part of this module

    def draw(self, training: bool, batch: int) -> Tensor:
        """(batch, size) in training, (size,) otherwise."""
        first = self._first[0]
        if first is None:
            value = self.posterior.draw(batch) if training else self.posterior.fixed()
            self.shares = value.split(self.sizes, dim=-1)
            return self.shares[self.at]
        return first.shares[self.at]


class BetaBernoulli(Method):
    """Units with learnt keep probabilities; those that the prior wins go."""

    name = "beta-bernoulli"
    title = "Beta-Bernoulli dropout"
    paper = (
        "Lee et al. 2018, Adaptive Network Sparsification with Dependent Variational Beta-Bernoulli Dropout, "
        "arXiv 1805.10896"
    )
    strengths = (0.3, 1.0, 3.0, 10.0)
    strength_meaning = (
        "The scale of the KL divergence from the prior (1 in the paper): "
        "more units get a keep probability near 0."
    )
    Config = BetaBernoulliConfig
    capturable = True

    posterior: Posterior
    placement: Placement | None

    @property
    def traits(self) -> Traits:
        return Traits(granularity="unit", strength="penalty", trains_once=False)

    def supports(self, network: nn.Module, sites: Sequence[Site]) -> str | None:
        return unfoldable(network, sites)

    def phases(self, epochs: int) -> Sequence[Phase]:
        pretrain = self.config.pretrain
        first = [plain_training(pretrain)] if pretrain else []
        return (*first, Phase("sparsify", 1 - pretrain))

    def attach(self, network: nn.Module, sites: Sequence[Site], context: StepContext) -> None:
        super().attach(network, sites, context)
        assert context.strength is not None
        self.strength = context.strength
        self.threshold = self.config.threshold if self.strength > 0 else 0.0
        starts = [torch.full((site.size,), self._start(site), device=context.device) for site in sites]
        self.posterior = Posterior(
            torch.cat(starts), self.config.temperature, self.threshold, context.generator
        )
        self.placement = None

    def _start(self, site: Site) -> float:
        if self.config.a_uc is not None:
            return float(self.config.a_uc)
        return A_UC_NORMALISED if site.norms else A_UC_PLAIN

    def start_phase(self, phase: Phase) -> None:
        if phase.name == "sparsify":
            self._place()

    def _place(self) -> None:
        """From here on the units are gated. The pretraining knows no gate."""
        self.placement = Placement(self.network, self.sites, self._gates())

    def transfer(self, sites: Sequence[Site], kept: Mapping[str, Tensor]) -> None:
        """The posterior of the units that are kept; their gates are placed anew by whoever took them off."""
        parts = self.by_site(torch.arange(len(self.posterior.a_uc)))
        left = torch.cat([part[kept[site].cpu()] if site in kept else part for site, part in parts.items()])
        former, self.sites = self.posterior, sites
        self.posterior = Posterior(
            former.a_uc.detach()[left], self.config.temperature, self.threshold, self.context.generator
        )
        with torch.no_grad():
            self.posterior.b_uc.copy_(former.b_uc[left])

    def _gates(self) -> dict[str, Gate]:
        """Of all sites, in their order."""
        sizes = [site.size for site in self.sites]
        first = PosteriorGate(self.posterior, sizes, 0, None)
        rest = [PosteriorGate(self.posterior, sizes, at, first) for at in range(1, len(sizes))]
        return {site.name: gate for site, gate in zip(self.sites, (first, *rest), strict=True)}

    def by_site(self, values: Tensor) -> dict[str, Tensor]:
        """(K,) → site name → (size,)."""
        parts = values.split([site.size for site in self.sites])
        return {site.name: part for site, part in zip(self.sites, parts, strict=True)}

    def parameter_groups(self) -> list[dict[str, Any]]:
        if self.placement is None:
            return []
        return [self._gate_group(list(self.posterior.parameters()))]

    def _gate_group(self, parameters: list[nn.Parameter]) -> dict[str, Any]:
        rate = self.config.gate_learning_rate
        return {"params": parameters, "lr": rate, "optimizer": "adam", "weight_decay": 0.0}

    def penalty(self) -> Tensor | None:
        if self.placement is None or self.strength == 0:
            return None
        return self.strength / self.context.train_size * self.posterior.kl(self.config.prior_ratio)

    def state_dict(self) -> dict[str, Tensor | float | int | str]:
        return {"gated": int(self.placement is not None), **self.posterior.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state["gated"] and self.placement is None:
            self._place()
        self.posterior.load_state_dict({name: state[name] for name in self.posterior.state_dict()})

    def _take_off(self) -> None:
        if self.placement is not None:
            self.placement.remove()
        self.placement = None

    def detach(self) -> None:
        if self.placement is None:
            return
        self._take_off()
        fixed = self.by_site(self.posterior.fixed())
        for site in self.sites:
            fold(self.network, site, fixed[site.name])

    def plan(self, strength: float) -> SparsityPlan:
        if strength != self.strength:
            raise ValueError(f"{self.name} was trained for strength {self.strength}, not {strength}")
        return SparsityPlan(kept=self.by_site(self.posterior.kept()), notes=(self._note(),))

    def _note(self) -> str:
        """How clear the choice was: a run that has settled leaves few units between removed and certain."""
        expected = self.posterior.expected()
        bounds = torch.tensor([self.threshold, 0.1, 0.5, 0.9], dtype=expected.dtype, device=expected.device)
        counts = torch.bucketize(expected, bounds, right=True).bincount(minlength=5).tolist()
        of_kept = ", ".join(
            f"{n} {where}"
            for n, where in zip(counts[1:], ("to 0.1", "to 0.5", "to 0.9", "above"), strict=True)
        )
        return f"E[π] of {len(expected)} units: {counts[0]} below {self.threshold:g}, {of_kept}"
