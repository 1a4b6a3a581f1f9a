"""SeReNe: neurons to which the network's output does not answer decay, and what has decayed is pruned as far as
the validation loss allows.

Tartaglione, Bragagnolo, Odierna, Fiandrotti, Grangetto, SeReNe: Sensitivity based Regularization of Neurons for
Structured Sparsity in Neural Networks, IEEE TNNLS 33(12), 2022, doi 10.1109/TNNLS.2021.3084527, arXiv 2102.03773;
formulas as in the authors' code, EIDOSLAB/SeReNe at d553078. It does not run as shipped, so it is no oracle here.

After each step of the optimiser, w_i ← w_i − λ Ī_i w_i with the insensitivity Ī_i = max(0, 1 − S_i) (the three
sensitivities S are in `neuron_sensitivity`): not scaled by the learning rate and outside of any momentum; all
linear and convolutional layers, the last included. When the validation loss L is on a plateau, the best state of
the cycle comes back and everything below a threshold T is removed, T as high as L ≤ (1 + TWT) L_best allows
(`tolerated_pruning`). Then the next cycle begins. The strength is TWT. `sensitivity="none"` is the control that
the method has to beat: the same loop with Ī = 1, plain decoupled weight decay.

Deviations, with reasons:
- λ = `decay` / steps of the budget, as the published 1e-4 a step is meant for 1000 epochs and would do nothing in
  a short budget. There it would be a `decay` of 54 (MNIST, batches of 100), at which gradients have the time to hold
  what matters. In tens of epochs 10 and more cost far more accuracy than they free neurons, hence the default.
- Neurons go as a whole, when max_j |w_ij| < T (`level="neuron"`). The code thresholds single weights
  (`level="weight"`), and neurons whose weights are all gone follow. Biases and the last layer are not thresholded
  here: no method of the suite prunes them.
- A removed neuron leaves no constant behind: its bias goes too, and the loss that the bisection sees is that.
- What is removed stays removed; in the code masks are optional, and off.
- Neurons coupled over several layers (residual streams) go when the row is small in all of these layers; each row
  decays by the sensitivity of its own layer.
- With a normalisation, p_i is its output, and its scale and shift decay together with the weights, in layers that
  cannot be pruned (those of residual streams, where they are not offered) as well. Decaying the weights alone would
  change nothing but scales, and raise the rate at which they learn.
- The bound is relative to the lowest loss of any cycle so far. Relative to that of the present cycle, as in the
  code, the loss may drift by (1 + TWT)^m over m prunings.
- The bound is at most halfway between that loss and chance, ln C. In the first epochs a loss near chance would
  otherwise tolerate the removal of everything.
- The budget is fixed: the last `finetune` of it is the last cycle, without decay (which does not shrink with the
  learning rate and in the end would outweigh it) and without pruning; before it begins there is a pruning,
  plateau or not. The network of the last cycle's lowest validation loss is what remains.
- Going back restores parameters and buffers, not the optimiser's momentum (the authors use none). The snapshot is
  the method's own, as the pruning must see the restored state within the same call.
- `patience` (PWE) is 0, the authors' default: a pruning after each epoch, as a short budget has time for few
  plateaus. In the first epochs, while the loss is far from its lowest, the half way to chance then binds and not TWT,
  and most of what goes may go there. With a patience of 1 or more nothing goes before the first plateau, if one
  comes before the last cycle.
- No change of the validation split after a pruning (an option of the code).
- Strength 0 is plain training: nothing decays, nothing is removed.
"""

from __future__ import annotations

import math
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
from methods.masks import Masks
from methods.neuron_sensitivity import SensitivityProbe
from methods.norm_behind import norms_behind
from methods.tolerated_pruning import neuron_magnitudes, prune_within, weight_magnitudes

PLATEAU = 1.01
"""A validation loss of so many times the best, or more, makes an epoch a bad one."""

_BEST = "best/"


class SereneConfig(Config):
    """sensitivity: `none` is the control arm; `full` costs a backward pass for each class, so that beyond twenty
    classes or so `lower-bound` is the choice. level: what the threshold removes. decay: λ times the steps of the
    budget: a neuron without any influence would shrink by e^-decay in that time, and does so for all of it but
    `finetune`. patience: PWE, the bad epochs in a row after which there is a pruning; at 0 there is one after each
    epoch. finetune: the last fraction of the budget, in which what remains recovers."""

    sensitivity: Literal["full", "lower-bound", "local", "none"] = "full"
    level: Literal["neuron", "weight"] = "neuron"
    decay: float = Field(default=1.0, gt=0)
    patience: int = Field(default=0, ge=0)
    finetune: float = Field(default=0.25, ge=0, lt=1)


class Serene(Method):
    """Sensitivity-driven decay, and pruning under a tolerated worsening of the validation loss."""

    name = "serene"
    title = "SeReNe"
    paper = (
        "Tartaglione et al. 2022, SeReNe, IEEE TNNLS 33(12), doi 10.1109/TNNLS.2021.3084527, arXiv 2102.03773"
    )
    strengths = (0.05, 0.2, 0.5, 1.0, 2.0)
    strength_meaning = (
        "TWT, the tolerated worsening: by what fraction of the best validation loss a pruning may raise it, "
        "never beyond half the way to chance."
    )
    Config = SereneConfig

    masks: Masks
    sensitivities: dict[str, Tensor]
    """Of the last step, layer (see `Site.ends`) → S (units,)."""
    best: dict[str, Tensor]
    """The network's state with the lowest validation loss of this cycle; empty before the cycle's first epoch."""
    best_loss: float
    bad_epochs: int
    lowest: float
    """The lowest validation loss of all cycles."""
    chance: float
    """ln C, the loss of a network that has learnt nothing; infinite before the first step."""

    @property
    def traits(self) -> Traits:
        return Traits(
            granularity="unit" if self.config.level == "neuron" else "weight",
            strength="tolerance",
            trains_once=False,
            needs_validation=True,
            forward_passes={"full": 4.0, "lower-bound": 1.3}.get(self.config.sensitivity, 1.0),
        )

    def phases(self, epochs: int) -> Sequence[Phase]:
        return (Phase("sparsify", 1.0),)

    def attach(self, network: nn.Module, sites: Sequence[Site], context: StepContext) -> None:
        super().attach(network, sites, context)
        self.masks = Masks(network, sites)
        self.sensitivities = {}
        self._layers = decaying_layers(network, sites)
        self._probe: SensitivityProbe | None = None
        if context.strength and self.config.sensitivity != "none":
            self._probe = SensitivityProbe(network, list(self._layers), self.config.sensitivity)
        self._begin_cycle()
        self.lowest = self.chance = math.inf

    @property
    def rate(self) -> float:
        """λ."""
        return min(self.config.decay / self.context.steps, 1.0)

    def sparsifying(self) -> bool:
        """Whether decay and pruning go on in the epoch of the step that comes next."""
        return bool(self.context.strength) and self.context.phase_step < self._sparsify_steps()

    def _sparsify_steps(self) -> int:
        each = self.context.steps_per_epoch
        return max(round((1 - self.config.finetune) * self.context.phase_steps / each), 1) * each

    def training_step(self, batch: Batch) -> Tensor:
        logits = self.network(batch.inputs)
        self.chance = math.log(logits.shape[1])
        if self._probe is not None and self.sparsifying():
            self.sensitivities = self._probe.measure(logits)
        loss = self.context.task_loss(logits, batch.targets)
        loss.backward()
        return loss.detach()

    @torch.no_grad()
    def after_step(self) -> None:
        # The counters are ahead by the step just done.
        if self.context.strength and self.context.phase_step <= self._sparsify_steps():
            for layer, parameters in self._layers.items():
                factor = self._decay_factor(layer)
                for parameter in parameters:
                    parameter.mul_(
                        factor if isinstance(factor, float) else factor.view(-1, *[1] * (parameter.dim() - 1))
                    )
        self.masks.enforce()

    def _decay_factor(self, layer: str) -> Tensor | float:
        """1 − λ Ī, (units,). A layer without a sensitivity has none: S = 0."""
        if layer not in self.sensitivities:
            return 1 - self.rate
        return 1 - self.rate * (1 - self.sensitivities[layer]).clamp_min(0)

    def after_epoch(self, validate: Callable[[], Evaluation]) -> Request | None:
        context = self.context
        if not context.strength:
            return None
        loss = validate().loss
        bad = loss >= PLATEAU * self.best_loss
        self.bad_epochs = self.bad_epochs + 1 if bad else 0
        if loss < self.best_loss:
            self.best_loss, self.best = loss, _copy(self.network)
        self.lowest = min(self.lowest, loss)
        still_sparsifying = context.phase_step <= self._sparsify_steps()
        last_chance = context.phase_step == self._sparsify_steps()
        if still_sparsifying and (last_chance or self.bad_epochs >= self.config.patience):
            self.network.load_state_dict(self.best)
            self._prune(validate, self.bound())
            self._begin_cycle()
        elif context.phase_step == context.phase_steps:
            self.network.load_state_dict(self.best)
            self._begin_cycle()
        return None

    def bound(self) -> float:
        """The loss that a pruning may lead to: (1 + TWT) times the lowest, but not beyond half the way to chance."""
        assert self.context.strength is not None
        if self.lowest >= self.chance:
            return -math.inf
        return min((1 + self.context.strength) * self.lowest, (self.lowest + self.chance) / 2)

    def _prune(self, validate: Callable[[], Evaluation], bound: float) -> None:
        of_neurons = self.config.level == "neuron"
        measure = neuron_magnitudes if of_neurons else weight_magnitudes
        prune_within(self.masks, measure(self.network, self.sites), of_neurons, validate, bound)

    def _begin_cycle(self) -> None:
        self.best = {}
        self.best_loss = math.inf
        self.bad_epochs = 0

    def state_dict(self) -> dict[str, Tensor | float | int | str]:
        own = {"best_loss": self.best_loss, "bad_epochs": self.bad_epochs, "lowest": self.lowest}
        return {
            **self.masks.state_dict(),
            **own,
            **{_BEST + name: value for name, value in self.best.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.masks.load_state_dict(state)
        self.best_loss, self.bad_epochs = state["best_loss"], state["bad_epochs"]
        self.lowest = state["lowest"]
        self.best = {
            key.removeprefix(_BEST): value.to(self.context.device)
            for key, value in state.items()
            if key.startswith(_BEST)
        }

    def detach(self) -> None:
        if self._probe is not None:
            self._probe.remove()

    def plan(self, strength: float) -> SparsityPlan:
        if strength != self.context.strength:
            raise ValueError(f"{self.name} was trained for strength {self.context.strength}, not {strength}")
        return self.masks.plan()


def decaying_layers(network: nn.Module, sites: Sequence[Site]) -> dict[str, list[nn.Parameter]]:
    """The layer whose output is the pre-activation → the parameters that decay by its sensitivity, row i with
    neuron i: the weight of the layer, with a normalisation also its scale and shift.

    All linear layers and convolutions, those too that make no site, or none that is offered (the last one, those of
    residual streams).
    """
    ends = {layer: end for site in sites for layer, end in zip(site.producers, site.ends, strict=True)}
    norms = norms_behind(network)
    found = {}
    for layer, module in network.named_modules():
        if layer in ends or isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
            end = ends.get(layer) or norms.get(layer) or layer
            norm = list(network.get_submodule(end).parameters(recurse=False)) if end != layer else []
            found[end] = [network.get_parameter(f"{layer}.weight"), *norm]
    return found


def _copy(network: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers; shares nothing with the network."""
    return {name: value.detach().clone() for name, value in network.state_dict().items()}
