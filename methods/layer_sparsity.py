"""Layer sparsity: layers whose weights are all nonnegative need no ReLU, and merge with the next.

Hebiri & Lederer, Layer Sparsity in Neural Networks, arXiv 2006.15604 (with Taheri: J. Statistical Planning and
Inference 2024, doi 10.1016/j.jspi.2024.106195). A **reconstruction**: only the idea (few active layers, a regulariser,
a refitting scheme) could be read; the formulas are derived.

An *inner* layer j has a nonnegative input and a ReLU behind it. It is *inactive* if W^j ≥ 0 and b^j ≥ 0, for then its
ReLU is the identity, and W^{j+1} f(W^j h + b^j) + b^{j+1} = (W^{j+1}W^j) h + W^{j+1}b^j + b^{j+1}. With
neg(a) = min(a, 0), one group per layer:

    min  Σ loss + Σ_j r_j ‖(neg(W^j), neg(b^j))‖_F        A = {j active}: what is left of the depth.

Stages: pretrain → ramp of r_j → hold → merge → refit. After each optimiser step of ramp and hold the closed-form
proximal step with threshold t = η r_j: P + N · max(0, 1 − t/‖N‖_F), where P = max(·, 0) and N = min(·, 0). Then the
ReLUs of inactive layers go for good, what multiplies exactly with fewer weights is merged, and the merged network is
trained without penalty, from the merged or from random weights (`refit_from`).

Strength κ sets r_j by the budget: r_j = κ ‖N^j_0‖_F / Σ η, N_0 of the pretrained layer, the sum over the learning
rates of ramp (in its share) and hold. So κ = 1 would take all negative parts to zero if the loss did not answer, and
every layer competes on equal terms.

Deviations and decisions, with reasons:
- Biases are in the group (the paper's networks have none): without b ≥ 0 merging is not exact.
- Batch norm: signs are judged, and the step is taken, on weight and bias with the present statistics folded in; the
  step scales the negative entries of the weight, and moves the shift. As the statistics move on, layers become
  inactive far more rarely. Only their ReLU goes; nothing merges across a normalisation.
- The first layer is not inner (its input has both signs), nor is the last (no ReLU behind it).
- The merged map is trained inside the full network, which the contract wants to keep its shape: it stands in one
  layer of the run, the others are the identity and frozen. Where the run is too narrow for that, all its layers are
  trained as linear maps; merging then comes last.
- Weight decay against the scale ambiguity is the recipe's affair.
- Convolutions merge if one of the two is 1×1 and no zero padding stands between. 3×3 with 3×3 costs more than it saves
  and errs at the border: only the ReLU goes.
- Random refit: He-normal weights (arXiv 1502.01852), zero biases, fresh normalisations, whatever the network began
  with; also where all layers are active, as the arm is about the weights.
- The useful κ is narrow and depends on the budget: all layers give way together, and products of nonnegative
  matrices are nearly of rank one, so that beyond it the refit cannot recover. Deep convolutional networks without
  normalisation suffer most. `same-shape` is the control for what the merged weights are worth.
- An active layer whose W ≤ 0 and b ≤ 0 is dead: behind its ReLU it is zero for every input. The plan tells it as a
  site without units, which the harness records as collapsed, or takes out where another way leads around it. So is a
  layer that the penalty brought to W = 0, merged or not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from methods.base import Config, LayerAction, Method, Phase, Site, SparsityPlan, StepContext, Traits
from methods.finetuning import plain_training
from methods.linear_runs import Inner, find_holder, find_inner, find_runs, hold, multiply

_BUDGET, _INACTIVE = "budget/", "inactive/"


class LayerSparsityConfig(Config):
    """pretrain, refit: fractions of the budget; ramp and hold have the rest. ramp: the fraction of that rest in which
    the penalty grows. refit_from: the weights that the merged network starts from."""

    pretrain: float = Field(default=0.2, ge=0, lt=1)
    ramp: float = Field(default=0.6, ge=0, le=1)
    refit: float = Field(default=0.3, ge=0, lt=1)
    refit_from: Literal["merged", "random"] = "merged"

    @model_validator(mode="after")
    def _leave_time(self) -> LayerSparsityConfig:
        if self.pretrain + self.refit >= 1:
            raise ValueError(f"pretrain {self.pretrain} and refit {self.refit} leave no time for the penalty")
        return self


class LayerSparsity(Method):
    """A group penalty on the negative parts of each layer, then fewer layers."""

    name = "layer-sparsity"
    title = "Layer sparsity (reconstruction)"
    paper = "Hebiri & Lederer 2020, Layer Sparsity in Neural Networks, arXiv 2006.15604"
    strengths = (0.8, 1.0, 1.2, 1.5, 2.0)
    strength_meaning = (
        "κ: how many times the budget of the penalty could shrink a layer's negative part to zero, "
        "if the loss did not answer."
    )
    Config = LayerSparsityConfig
    capturable = True

    budgets: dict[str, Tensor]
    """Layer → κ ‖N_0‖_F, what all thresholds of the layer sum to."""
    inactive: tuple[Inner, ...] | None
    """Decided where the refit begins (without one, at `detach`); None before."""

    @property
    def traits(self) -> Traits:
        return Traits(granularity="layer", strength="penalty", trains_once=False)

    def supports(self, network: nn.Module, sites: Sequence[Site]) -> str | None:
        try:
            inner = find_inner(network)
        except Exception as error:
            return f"torch.fx cannot trace it ({type(error).__name__})"
        return None if inner else "it has no layer between two ReLUs whose ReLU is a module of its own"

    def phases(self, epochs: int) -> Sequence[Phase]:
        pretrain, refit = self.config.pretrain, self.config.refit
        first = (plain_training(pretrain),) if pretrain else ()
        last = (Phase("refit", refit),) if refit else ()
        return (*first, Phase("sparsify", 1 - pretrain - refit), *last)

    def attach(self, network: nn.Module, sites: Sequence[Site], context: StepContext) -> None:
        super().attach(network, sites, context)
        self.inner = find_inner(network)
        self._signs = {inner.layer: Signs(network, inner) for inner in self.inner}
        self.budgets, self.inactive = {}, None
        self._shares: list[float] = []
        self._bypasses: list[Bypass] = []

    # Ramp and hold -------------------------------------------------------------------------------------------------

    def start_phase(self, phase: Phase) -> None:
        strength = self.context.strength
        assert strength is not None
        if phase.name == "sparsify":
            self.budgets = {layer: strength * signs.negative_norm() for layer, signs in self._signs.items()}
        elif phase.name == "refit":
            self.inactive = self.find_inactive()
            fresh = self.config.refit_from == "random" and strength > 0
            if self.inactive or fresh:
                self._merge(fresh)
                self._begin_refit()

    def after_step(self) -> None:
        if self.context.phase.name == "sparsify" and self.context.strength:
            share = self._share(self.context.phase_step - 1)
            for layer, signs in self._signs.items():
                signs.shrink(share * self.budgets[layer])

    def _share(self, at: int) -> float:
        """What step `at` of the phase has of the whole penalty: t_k = share · κ ‖N_0‖_F."""
        if len(self._shares) != self.context.phase_steps:
            ramp = self.config.ramp * self.context.phase_steps
            grown = [min(1.0, (step + 1) / ramp) if ramp else 1.0 for step in range(self.context.phase_steps)]
            parts = [rate * part for rate, part in zip(self.context.learning_rates, grown, strict=True)]
            self._shares = [part / math.fsum(parts) for part in parts]
        return self._shares[at]

    def find_inactive(self) -> tuple[Inner, ...]:
        """By exact sign, no tolerance; at strength zero none."""
        if not self.context.strength:
            return ()
        return tuple(inner for inner in self.inner if self._signs[inner.layer].is_nonnegative())

    def find_dead(self) -> tuple[str, ...]:
        """The active layers that give zero behind their ReLU whatever comes in, as their weights are now. Of a run the
        product is judged, unless a normalisation follows it. Where the ReLU in front has gone, nothing is known of the
        input's sign."""
        if not self.context.strength or self.inactive is None:
            return ()
        runs = {run[-1]: run for run in self.runs()}
        sources = {inner.layer: inner.source for inner in self.inner}
        gone = {inner.activation for inner in self.inactive}
        dead = []
        for inner in self.inner:
            run = runs.get(inner.layer, [inner.layer])
            if inner.activation in gone or sources[run[0]] in gone:
                continue
            if len(run) == 1:
                parts = self._signs[inner.layer].folded()
            elif inner.norm is None:
                parts = multiply(list(self._layers(run).values()))
            else:
                continue
            if all(bool((part <= 0).all()) for part in parts if part is not None):
                dead.append(inner.layer)
        return tuple(dead)

    # Merge and refit -----------------------------------------------------------------------------------------------

    def runs(self) -> list[list[str]]:
        """The layers that become one, for the present set of inactive layers."""
        return find_runs(self.network, self.inactive or ())

    @torch.no_grad()
    def _merge(self, fresh: bool) -> None:
        """Each run's product into its holder, of the weights as they are or of fresh ones."""
        products = [self._layers(run) for run in self.runs()]
        if fresh:
            self._initialise()
        for layers in products:
            at = find_holder(self.network, list(layers))
            if at is None:
                continue
            weight, bias = multiply(list(layers.values()))
            if fresh:
                bias.zero_()
                scale = math.sqrt(2 / weight[0].numel())
                drawn = torch.randn(weight.shape, generator=self.context.generator, device=weight.device)
                weight = scale * drawn.to(weight)
            hold(layers, list(layers)[at], weight, bias)

    def _layers(self, run: Sequence[str]) -> dict[str, nn.Module]:
        return {name: self.network.get_submodule(name) for name in run}

    def _initialise(self) -> None:
        for module in self.network.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                generator = self.context.generator
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.reset_parameters()

    def _begin_refit(self) -> None:
        """Inactive layers lose their ReLU, embeddings are frozen. Also where a run resumes."""
        assert self.inactive is not None
        self._bypasses = [Bypass(self.network.get_submodule(inner.activation)) for inner in self.inactive]
        for run in self.runs():
            at = find_holder(self.network, run)
            for position, name in enumerate(run):
                if at is not None and position != at:
                    self.network.get_submodule(name).requires_grad_(False)

    def _end_refit(self) -> None:
        for bypass in self._bypasses:
            bypass.remove()
        self._bypasses = []
        for run in self.runs():
            for name in run:
                self.network.get_submodule(name).requires_grad_(True)

    # Resume and result ---------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Tensor | float | int | str]:
        state: dict[str, Tensor | float | int | str] = {
            _BUDGET + layer: budget for layer, budget in self.budgets.items()
        }
        if self.inactive is not None:
            names = {inner.layer for inner in self.inactive}
            state |= {_INACTIVE + inner.layer: int(inner.layer in names) for inner in self.inner}
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        device = self.context.device
        layers = [inner.layer for inner in self.inner]
        self.budgets = {name: state[_BUDGET + name].to(device) for name in layers if _BUDGET + name in state}
        if all(_INACTIVE + name in state for name in layers):
            self.inactive = tuple(inner for inner in self.inner if state[_INACTIVE + inner.layer])
            self._begin_refit()

    def detach(self) -> None:
        if self.inactive is None:
            self.inactive = self.find_inactive()
        self._end_refit()

    def plan(self, strength: float) -> SparsityPlan:
        if strength != self.context.strength:
            raise ValueError(f"{self.name} was trained for strength {self.context.strength}, not {strength}")
        assert self.inactive is not None
        linear = tuple(LayerAction("linearise", (inner.layer,)) for inner in self.inactive)
        merges = [pair for run in self.runs() for pair in pairwise(run)]
        gone = {inner.layer for inner in self.inactive}
        active = [inner.layer for inner in self.inner if inner.layer not in gone]
        layers = sum(isinstance(module, nn.Linear | nn.Conv2d) for module in self.network.modules())
        dead = self.find_dead()
        kept = {
            site.name: torch.zeros(site.size, dtype=torch.bool)
            for site in self.sites
            if site.kind != "branch" and any(site.producers == (layer,) for layer in dead)
        }
        notes = [
            f"active inner layers: {len(active)} of {len(self.inner)} ({', '.join(active) or 'none'})",
            f"linear maps and convolutions: {layers - len(merges)} of {layers}",
        ]
        if dead:
            notes.append(f"dead layers: {', '.join(dead)}")
        actions = (*linear, *(LayerAction("merge", pair) for pair in merges))
        return SparsityPlan(kept=kept, layer_actions=actions, notes=tuple(notes))


class Signs:
    """The negative part of one inner layer: of weight and bias, a normalisation folded in with the statistics of
    evaluation."""

    def __init__(self, network: nn.Module, inner: Inner) -> None:
        self._layer: Any = network.get_submodule(inner.layer)
        self._norm: Any = None if inner.norm is None else network.get_submodule(inner.norm)

    @torch.no_grad()
    def folded(self) -> tuple[Tensor, Tensor | None]:
        """Weight, of the layer's shape, and bias (outputs,), None where there is none."""
        weight, bias = self._layer.weight, self._layer.bias
        if self._norm is None:
            return weight, bias
        scale = self._scale()
        return weight * scale.view(-1, *[1] * (weight.dim() - 1)), self._norm.bias - self._offset(scale)

    def _scale(self) -> Tensor:
        scale: Tensor = self._norm.weight / (self._norm.running_var + self._norm.eps).sqrt()
        return scale

    def _offset(self, scale: Tensor) -> Tensor:
        """What the shift of the normalisation has to make up for: its mean, less the layer's own bias."""
        mean = (
            self._norm.running_mean
            if self._layer.bias is None
            else self._norm.running_mean - self._layer.bias
        )
        offset: Tensor = mean * scale
        return offset

    @torch.no_grad()
    def negative_norm(self) -> Tensor:
        """‖N‖_F, a scalar."""
        parts = [part.clamp_max(0).flatten() for part in self.folded() if part is not None]
        return torch.linalg.vector_norm(torch.cat(parts))

    @torch.no_grad()
    def is_nonnegative(self) -> bool:
        return all(bool((part >= 0).all()) for part in self.folded() if part is not None)

    @torch.no_grad()
    def shrink(self, threshold: Tensor) -> None:
        """The proximal step: N · max(0, 1 − t/‖N‖_F), P as it is. Entries that end at zero are zero exactly."""
        weight, bias = self.folded()
        parts = [weight.clamp_max(0)] + ([] if bias is None else [bias.clamp_max(0)])
        norm = torch.stack([torch.linalg.vector_norm(part) for part in parts]).norm()
        # t/‖N‖ cut to 1; a layer without a negative part has nothing to lose (0 · 1).
        lost = (threshold / norm.clamp_min(torch.finfo(norm.dtype).tiny)).clamp_max(1.0)
        if self._norm is None:
            weight.sub_(parts[0] * lost)
            if bias is not None:
                bias.sub_(parts[1] * lost)
            return
        self._layer.weight.mul_(torch.where(weight < 0, 1 - lost, 1.0))
        # Written from the offset, so that folding again gives zero and not a rounding error.
        shift, offset = self._norm.bias, self._offset(self._scale())
        shift.copy_(torch.where(parts[1] < 0, offset + parts[1] * (1 - lost), shift))


class Bypass:
    """An activation that gives its input back until it is removed."""

    def __init__(self, activation: Any) -> None:
        self._activation, self._inplace = activation, activation.inplace
        activation.inplace = False  # it would spoil what the hook gives back
        self._handle = activation.register_forward_hook(_give_back)

    def remove(self) -> None:
        self._handle.remove()
        self._activation.inplace = self._inplace


def _give_back(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return inputs[0]
