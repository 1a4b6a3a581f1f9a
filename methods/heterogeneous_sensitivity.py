"""Heterogeneous sensitivity: one multiplier s per unit, ‖s‖₁ as small as a bound on the training loss allows.

Cho, Jang, Lee & Yang, Neural Networks 134:95–106, 2021, doi 10.1016/j.neunet.2020.10.017; v1 arXiv 1810.05358.
A faithful RECONSTRUCTION: of the full text only a summary, cut off inside the λ algorithm, could be had. Known from it:
a real s_i^l per unit, the ℓ1 norm as cost under a constraint on the task loss E, a multiplier λ that is found by an
L-curve (v1) or during training from a small λ₀ under a constant ε₀ (final version), random initial weights, and that
units with s = 0 go without retraining. Everything else is ours.

    a_i^l = s_i^l·φ(z̃_i^l)        min Σ_l ‖s^l‖₁  subject to  E(θ, s) ≤ ε        ⇔        min E + λ·Σ_l ‖s^l‖₁

- θ by the recipe's optimiser; s by proximal gradient steps, s ← prox_{η_s λ‖·‖₁}(s − η_s ∇E), hence exact zeros.
- `selection="ratchet"`: Ē ← 0.98·Ē + 0.02·E of each batch; λ ← λ(1 + ρ) while Ē ≤ ε, otherwise λ(1 − ρ). At the end of
  each epoch the state is kept if it is feasible (E ≤ ε) and has the fewest units (then: the smallest E) so far; the
  training ends by going back to it.
- `selection="l-curve"`: after the warm-up, K short trainings from the state that it left, each at its own λ; the corner
  of (log E, log ‖s‖₁) gives the λ of the one long training, which goes on from the same state.
  Within a short budget the short trainings do not come to rest, the curve has no strictly convex corner, and what is
  found is where it is least concave.
- `finetune` > 0: the last part of the budget goes on with λ = 0 and the units as they were left. The paper claims that
  none is needed, so it is off by default; record both.

Choices and deviations, with reasons:
- s sits behind the activation, in front of the readers (`methods/sensitivities.py`); residual streams have no gates,
  nor have units that a reader takes in another order than they are made in (`Site.in_order`): both stay whole.
- E of a state is taken in evaluation mode over the (up to) 4096 training images seen last, with their augmentation: the
  harness hands a method batches, not the training set, and an epoch's end is where a resumed run goes on.
- Weight decay `weight_decay` on all weights next to a gate, in place of the recipe's: without it s → cs, w → w/c drives
  ‖s‖₁ to zero for nothing; with it the pair costs (3/2)·λ^{2/3}·wd^{1/3}·(|s_i|·‖w_i‖)^{2/3}. It is applied as the
  recipe's optimiser does. The plan's notes show ‖W‖ before and after.
- The scale γ of a norm in front of a gate says the same as s; it keeps its initial value.
- ρ is not per step but set by the budget: λ could go from λ₀ to λ_max in the fraction `ratchet` of it. Half a
  percent a step never gets there in the thousand steps that small data sets have. For the same reason λ₀ = 1e-3 is
  also its lower bound: below, nothing shrinks within such a budget, and the way back up is time lost. A tolerance that
  λ₀ cannot meet is not met.
- η_s = `sensitivity_rate`, constant: Adam's rate would leave s, which takes plain gradient steps, where it is, and a
  rate that anneals would stop it just when the loss gets low enough for λ to rise. One step moves s by at most 0.1.
- Where the readers of a site are normalised (`Site.scale_free`), ‖s‖₁ could fall for nothing: there s is scaled back
  to ‖s‖₂ = √size after each step, which changes nothing that the network computes, so that ‖s‖₁ falls by zeros only.
- ε is in nats, where multiples of the loss of an equally trained dense network would compare better across data sets:
  a method knows of no training but its own, and to train that network as well would be a second budget.
- E is the recipe's loss. With label smoothing it has a floor (0.50 nats at 0.1 and ten classes), below which no
  tolerance can be met.
- A strength of 0 removes nothing: a cross-entropy cannot meet such a tolerance. Nothing is attached, and the network
  is trained in the phases of the config, which for the L-curve or with `finetune` is not the schedule of a dense one.
- Where no state meets a tolerance, the last one counts, and the notes say so.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from methods.base import (
    Batch,
    Config,
    Evaluation,
    Method,
    Phase,
    Request,
    Site,
    SparsityPlan,
    StepContext,
    Traits,
)
from methods.l_curve import corner
from methods.sensitivities import Sensitivities, takes_gate

CURVE_STRENGTHS = (0.5, 1.0, 2.0)
"""The default strengths for the L-curve, where they are multiples of its corner's λ and no tolerances."""
LAMBDA_0, LAMBDA_MAX = 1e-3, 0.1
EMA = 0.98
RECENT_IMAGES = 4096
CURVE_RANGE = (1e-3, 3e-2)
"""λ of the first and the last short training of an L-curve."""
CURVE_BUDGET = 0.4
"""Of the budget before fine-tuning: all short trainings of an L-curve together."""

_RECENT = "recent/"


class HeterogeneousSensitivityConfig(Config):
    """warmup: fraction of the budget without λ. ratchet: see the module. curve_points: K."""

    selection: Literal["ratchet", "l-curve"] = "ratchet"
    finetune: float = Field(default=0.0, ge=0, lt=0.9)
    warmup: float = Field(default=0.1, gt=0, lt=0.5)
    sensitivity_rate: float = Field(default=1.0, gt=0, le=1)
    weight_decay: float = Field(default=5e-4, gt=0)
    ratchet: float = Field(default=0.5, gt=0, le=1)
    curve_points: int = Field(default=8, ge=8)


class HeterogeneousSensitivity(Method):
    """Sensitivities per unit under an ℓ1 penalty whose multiplier is found by a bound on the loss, or an L-curve."""

    name = "heterogeneous-sensitivity"
    title = "Heterogeneous sensitivity (reconstruction)"
    paper = (
        "Cho, Jang, Lee & Yang 2021, Neural Networks 134, doi 10.1016/j.neunet.2020.10.017; arXiv 1810.05358"
    )
    strengths = (0.02, 0.05, 0.1, 0.2)
    strength_meaning = (
        "ε, the training loss (mean cross-entropy in nats) that is allowed; "
        "for the L-curve: how many times the λ of its corner."
    )
    Config = HeterogeneousSensitivityConfig

    @property
    def grid(self) -> tuple[float, ...]:
        return self.strengths if self.config.selection == "ratchet" else CURVE_STRENGTHS

    @property
    def traits(self) -> Traits:
        kind: Literal["tolerance", "penalty"] = (
            "tolerance" if self.config.selection == "ratchet" else "penalty"
        )
        return Traits(granularity="unit", strength=kind, trains_once=False)

    def supports(self, network: nn.Module, sites: Sequence[Site]) -> str | None:
        if any(takes_gate(site) for site in sites):
            return None
        return (
            "it has no hidden units that could take a sensitivity (those on residual streams cannot, nor those that "
            "a layer reads in another order)"
        )

    def phases(self, epochs: int) -> Sequence[Phase]:
        before = 1 - self.config.finetune
        finetune = [Phase("finetune", self.config.finetune)] if self.config.finetune else []
        if self.config.selection == "ratchet":
            return (Phase("sparsify", before), *finetune)
        warmup, points = self.config.warmup * before, self.config.curve_points
        curve = [Phase(f"curve {k + 1}", CURVE_BUDGET * before / points) for k in range(points)]
        rest = (1 - CURVE_BUDGET) * before - warmup
        return (Phase("warmup", warmup), *curve, Phase("sparsify", rest), *finetune)

    def attach(self, network: nn.Module, sites: Sequence[Site], context: StepContext) -> None:
        super().attach(network, sites, context)
        assert context.strength is not None
        self.epsilon = context.strength
        self.gates = Sensitivities(network, sites if self.epsilon else [])
        self._frozen_scales = [
            scale
            for site in self.gates.sites
            for norm in site.norms
            if isinstance(scale := getattr(network.get_submodule(norm), "weight", None), nn.Parameter)
        ]
        for scale in self._frozen_scales:
            scale.requires_grad_(False)
        device = context.device
        self.multiplier = torch.tensor(LAMBDA_0, device=device)
        self.mean_loss = torch.tensor(math.nan, device=device)
        self.best_units, self.best_loss = math.inf, math.inf
        self.curve = torch.zeros(0, 2, dtype=torch.float64)
        self.first_norm = self._weight_norm()
        self._recent: deque[Batch] = deque()

    def parameter_groups(self) -> list[dict[str, Any]]:
        weights = list(self.gates.weights())
        return [{"params": weights, "weight_decay": self.config.weight_decay}] if weights else []

    def start_phase(self, phase: Phase) -> None:
        if phase.name.startswith("curve"):
            self.multiplier.fill_(curve_multipliers(self.config.curve_points)[int(phase.name.split()[1]) - 1])
        elif phase.name == "sparsify" and self.config.selection == "l-curve" and self.epsilon:
            grid = curve_multipliers(self.config.curve_points)
            at = corner(grid, *self.curve.T.clamp_min(1e-12))
            self.multiplier.fill_(self.epsilon * grid[at])

    def training_step(self, batch: Batch) -> Tensor:
        loss = super().training_step(batch)
        if self.epsilon:
            seen = loss.float()
            self.mean_loss = torch.where(
                self.mean_loss.isnan(), seen, EMA * self.mean_loss + (1 - EMA) * seen
            )
            self._recent.append(batch)
            while sum(len(b.targets) for b in self._recent) - len(self._recent[0].targets) >= RECENT_IMAGES:
                self._recent.popleft()
        return loss

    def leaves(self) -> Sequence[Tensor]:
        return list(self.gates.values.values())

    def after_step(self) -> None:
        if not self.epsilon:
            return
        context, rate = self.context, self.config.sensitivity_rate
        if context.phase.name == "finetune":
            self.gates.step_frozen(rate)
        elif context.phase.name == "warmup":
            self.gates.step(rate, 0.0)
        elif self.config.selection == "l-curve":
            self.gates.step(rate, self.multiplier)
        elif context.step <= self.config.warmup * context.steps:
            self.gates.step(rate, 0.0)
        else:
            self._turn()
            self.gates.step(rate, self.multiplier)

    def _turn(self) -> None:
        """λ up while the mean loss is within the tolerance, down while it is not; at most to its bounds."""
        rho = math.log(LAMBDA_MAX / LAMBDA_0) / (self.config.ratchet * self.context.steps)
        up, down = self.multiplier * (1 + rho), self.multiplier * (1 - rho)
        turned = torch.where(self.mean_loss <= self.epsilon, up, down)
        self.multiplier = turned.clamp(LAMBDA_0, LAMBDA_MAX)

    def after_epoch(self, validate: Callable[[], Evaluation]) -> Request | None:
        if not self.epsilon:
            return None
        phase, last = self.context.phase.name, self.context.phase_step == self.context.phase_steps
        loss = self._recent_loss()
        if phase == "sparsify" and self.config.selection == "ratchet":
            return self._keep_or_go_back(loss, last)
        if phase == "warmup" and last:
            return Request.KEEP_BEST
        if phase.startswith("curve") and last:
            point = torch.tensor([[loss, self.gates.penalty()]], dtype=torch.float64)
            self.curve = torch.cat([self.curve, point])
            return Request.ROLLBACK
        return None

    def _keep_or_go_back(self, loss: float, last: bool) -> Request | None:
        """Feasible snapshots: the fewest units, then the smallest loss; the last epoch ends on the best of them."""
        units = self.gates.units()
        if loss <= self.epsilon and (units, loss) < (self.best_units, self.best_loss):
            self.best_units, self.best_loss = float(units), loss
            return Request.KEEP_BEST
        return Request.ROLLBACK if last and math.isfinite(self.best_units) else None

    @torch.no_grad()
    def _recent_loss(self) -> float:
        """E in evaluation mode over the images seen last; lets them go."""
        self.network.eval()
        total, images = 0.0, 0
        for batch in self._recent:
            total += float(self.context.task_loss(self.network(batch.inputs), batch.targets)) * len(
                batch.targets
            )
            images += len(batch.targets)
        self._recent.clear()
        self.network.train()
        return total / images

    @torch.no_grad()
    def _weight_norm(self) -> float:
        return math.sqrt(sum(float(w.double().square().sum()) for w in self.gates.weights()))

    def state_dict(self) -> dict[str, Tensor | float | int | str]:
        return {
            **self.gates.state_dict(),
            "multiplier": self.multiplier,
            "mean_loss": self.mean_loss,
            "best_units": self.best_units,
            "best_loss": self.best_loss,
            "curve": self.curve,
            "first_norm": self.first_norm,
            **{f"{_RECENT}{at}/inputs": batch.inputs for at, batch in enumerate(self._recent)},
            **{f"{_RECENT}{at}/targets": batch.targets for at, batch in enumerate(self._recent)},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Points of an L-curve that are here already stay: going back after a short training must not lose them."""
        self.gates.load_state_dict(state)
        self.multiplier.copy_(state["multiplier"])
        self.mean_loss.copy_(state["mean_loss"])
        self.best_units, self.best_loss = state["best_units"], state["best_loss"]
        self.first_norm = state["first_norm"]
        if len(state["curve"]) >= len(self.curve):
            self.curve = state["curve"].cpu().clone()
        device, kept = self.context.device, sum(key.startswith(_RECENT) for key in state) // 2
        self._recent = deque(
            Batch(*(state[f"{_RECENT}{at}/{part}"].to(device) for part in ("inputs", "targets")))
            for at in range(kept)
        )

    def detach(self) -> None:
        self._last_norm = self._weight_norm()
        self.gates.fold()
        for scale in self._frozen_scales:
            scale.requires_grad_(True)

    def plan(self, strength: float) -> SparsityPlan:
        """Raises ValueError for another strength than that of the training."""
        if strength != self.context.strength:
            raise ValueError(f"{self.name} was trained for strength {self.context.strength}, not {strength}")
        if not self.epsilon:
            return SparsityPlan()
        notes = [f"λ {float(self.multiplier):.3g}", f"‖W‖ {self.first_norm:.4g} → {self._last_norm:.4g}"]
        if self.config.selection == "ratchet":
            met = math.isfinite(self.best_units)
            notes.append(
                f"training loss {self.best_loss:.3g} before fine-tuning"
                if met
                else "no state met the tolerance"
            )
        return SparsityPlan(kept=self.gates.kept(), notes=tuple(notes))


def curve_multipliers(points: int) -> Tensor:
    """λ of the short trainings, log-spaced and ascending: (points,) float64."""
    low, high = (math.log10(end) for end in CURVE_RANGE)
    return torch.logspace(low, high, points, dtype=torch.float64)
