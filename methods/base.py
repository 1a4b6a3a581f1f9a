"""The whole contract between a sparsification method and the harness, on one page.

A method is a class with a typed `Config` and the hooks of `Method`. Only `plan` is abstract. The harness calls

    shape → attach → [removable → transfer] → start_phase → (training_step → after_step)* → after_epoch → …
          → detach → plan(strength)*

No method code runs during evaluation or timing: what is evaluated is the plain network that `detach` leaves, with the
`SparsityPlan` applied to it, and a dynamic method's `input_gates` in place. The loss a method is given is the bare task
loss; regularisation belongs to the method.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, ClassVar, Literal, get_args

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from methods.errors import nearest
from methods.input_gate import InputGate

Granularity = Literal["none", "weight", "unit", "layer"]
StrengthKind = Literal["none", "ratio", "penalty", "tolerance", "self"]


class Config(BaseModel):
    """Settings of a method. Unknown keys, infinities and NaN are refused; values are frozen once checked."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


@dataclass(frozen=True)
class Traits:
    """What the harness has to know of a method before it runs it.

    granularity: what a plan removes. strength: what the number means (`ratio`: fraction removed, `penalty`: weight of a
    regulariser, `tolerance`: allowed loss, `self`: the method finds its own point, `none`: there is only one point).
    trains_once: one training serves every strength, which then acts in `plan` alone; otherwise each strength is a
    training of its own. forward_passes: forward passes per training step, for the estimate of time. prescribed: how
    many units go of which site is said in its config, so that it is offered streams in any workload.
    """

    granularity: Granularity
    strength: StrengthKind
    trains_once: bool
    needs_validation: bool = False
    dynamic: bool = False
    forward_passes: float = 1.0
    prescribed: bool = False

    def __post_init__(self) -> None:
        """A misspelt word would pass for another kind of method than the one that is meant."""
        for trait, word, kinds in (
            ("granularity", self.granularity, Granularity),
            ("strength", self.strength, StrengthKind),
        ):
            if word not in get_args(kinds):
                raise ValueError(f"no {trait} {word!r}{nearest(str(word), get_args(kinds))}")


@dataclass(frozen=True)
class Phase:
    """A named part of the training budget.

    fraction: of the epochs, all phases of a method sum to 1. learning_rate_scale: the phase runs the schedule of the
    recipe from its start, with the base rate times this. shared: plain training that does not depend on the method, so
    that it may be trained once per seed and reused by every method that asks for the same.
    """

    name: str
    fraction: float
    learning_rate_scale: float = 1.0
    shared: bool = False


@dataclass(frozen=True)
class Site:
    """Units that live or die together: the channels (or features) of one channel space; or one whole residual branch.

    name: of the first producing layer. producers: the convolutions or linear layers whose outputs are these units;
    row i of their weight (dim 0) belongs to unit i. norms: normalisations inside the affine chain. ends: the modules
    after whose call the value of a unit is what the contract calls its output (the norm where there is one, otherwise
    the producer): a gate multiplies there, on dim 1. tokens: whether linear layers among the ends give (N, …, size), so
    that it is their last dim instead. readers: the layers that read the units.
    parameters_per_unit, macs_per_unit: what one unit costs in its producers and readers, all else kept.
    outlets: of each end, the pooling that follows it through nothing but ReLU and its like, or the end itself: where
    a multiplier that is not negative does the same on smaller maps. Empty means the ends. scale_free: every reader is
    normalised and what lies before it keeps factors, so that one positive factor on all units changes nothing.
    in_order: every reader takes the units in their order, each as the same number of neighbouring inputs; not so where
    something between moves them (a shuffle, a flip, a flattening of pixels with their channels side by side).

    A `branch` is for `drop` actions, never for `kept`: size 1, named by its last layer, which is its only end and gives
    zero where its parameters are zero; producers and norms are those in the branch, whose rows are no units of its;
    the costs are those of all that is in it. Only methods of granularity `layer` are offered branches.
    """

    name: str
    size: int
    kind: Literal["inner", "stream", "branch", "layer"]
    producers: tuple[str, ...]
    norms: tuple[str, ...]
    ends: tuple[str, ...]
    readers: tuple[str, ...]
    parameters_per_unit: float
    macs_per_unit: float
    outlets: tuple[str, ...] = ()
    scale_free: bool = False
    tokens: bool = False
    in_order: bool = True


@dataclass(frozen=True)
class LayerAction:
    """A change to whole layers: `drop` a branch (its sum goes on without it), `linearise` (take the activation after a
    layer away) or `merge` two linear maps that follow each other. `shift` is for a shape alone, never for a plan: one
    number per channel in place of a branch, named by its last layer, that gave the same for every input."""

    kind: Literal["drop", "linearise", "merge", "shift"]
    layers: tuple[str, ...]


@dataclass(frozen=True)
class SparsityPlan:
    """What is to be removed. The plan is about the plain network that `detach` left.

    kept: site name → bool (size,), True where the unit stays; a site not named keeps all. weight_masks: parameter name
    (as in `named_parameters`) → bool of its shape, True where the weight stays. expected_activity: of dynamic gates,
    site name → mean number of active units. notes: anything a reader of the record should know.
    """

    kept: Mapping[str, Tensor] = field(default_factory=dict)
    weight_masks: Mapping[str, Tensor] = field(default_factory=dict)
    layer_actions: tuple[LayerAction, ...] = ()
    expected_activity: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Batch:
    """inputs: float (N, C, H, W), normalised; targets: int64 (N,)."""

    inputs: Tensor
    targets: Tensor


@dataclass(frozen=True)
class Evaluation:
    """Mean task loss and accuracy (0 to 1) on the validation split."""

    loss: float
    accuracy: float


class Request(Enum):
    """What `after_epoch` may ask of the loop."""

    NEXT_PHASE = "next phase"
    STOP = "stop"
    KEEP_BEST = "keep this state as the best"
    ROLLBACK = "go back to the state kept as the best"


@dataclass
class StepContext:
    """What a method may know while it trains. The harness keeps `phase` and the counters up to date.

    strength: None for a method that trains once. steps: of the whole budget. step: optimiser steps done so far;
    phase_step, phase_steps: the same within the phase. learning_rate: of the network's parameters in the step under
    way or just done, schedule included. generator: the method's own random stream, on `device`.
    task_loss: mean cross-entropy of (logits, targets), smoothed as the recipe says. train_size: N, the number of
    training images.
    learning_rates: of the network's parameters, at each step of the phase (proximal steps are scaled by them).
    """

    strength: float | None
    steps: int
    steps_per_epoch: int
    train_size: int
    device: torch.device
    generator: torch.Generator
    task_loss: Callable[[Tensor, Tensor], Tensor]
    phase: Phase
    step: int = 0
    phase_step: int = 0
    phase_steps: int = 0
    learning_rates: Sequence[float] = ()
    learning_rate: float = 0.0


class Method(ABC):
    """Base class of every method. Class attributes describe it; see the hooks for what it does.

    strengths: the default grid, weakest first. strength_meaning: one sentence on what a larger value does. At strength
    zero a method keeps the whole network. autocast: whether the network's passes in training may run in bf16 where the
    recipe asks for it; no for an estimator that lives on small differences.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    paper: ClassVar[str]
    strengths: ClassVar[tuple[float, ...]]
    strength_meaning: ClassVar[str]
    Config: ClassVar[type[BaseModel]] = Config
    autocast: ClassVar[bool] = True

    network: nn.Module
    sites: Sequence[Site]
    context: StepContext

    def __init__(self, config: BaseModel | None = None) -> None:
        self.config: Any = self.Config() if config is None else config

    @property
    @abstractmethod
    def traits(self) -> Traits:
        """May depend on the config."""

    @property
    def grid(self) -> tuple[float, ...]:
        """The strengths of an entry that names none: `strengths`, unless the config gives them another meaning."""
        return self.strengths

    @property
    def capturable(self) -> bool:
        """Whether `training_step` and `penalty` do the same operations in every full batch of a phase, decide nothing
        on the host, keep no batch, draw from `context.generator` alone, and use tensors that are changed in place only;
        such a step may be recorded once as a CUDA graph and replayed (`after_step` always runs as it is). May depend on
        the config."""
        return False

    def supports(self, network: nn.Module, sites: Sequence[Site]) -> str | None:
        """None, or the reason why this method, with its config, cannot run on `network`; asked before anything is
        trained."""
        return None

    def phases(self, epochs: int) -> Sequence[Phase]:
        """The parts of a budget of `epochs`; the loop rounds each to whole epochs."""
        return (Phase("train", 1.0),)

    def shape(self, sites: Sequence[Site], strength: float) -> SparsityPlan | None:
        """Structure to take away before training begins: the harness removes it, initialises what is left afresh and
        trains that. None for the full network."""
        return None

    def attach(self, network: nn.Module, sites: Sequence[Site], context: StepContext) -> None:
        """Put gates, hooks and extra parameters in place. Called once, before training or before a resume."""
        self.network, self.sites, self.context = network, sites, context

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Extra learnables in the form torch.optim takes (`params`, `lr`, `weight_decay` …)."""
        return []

    def start_phase(self, phase: Phase) -> None:
        """Called when a phase begins (not when a run resumes inside it)."""

    def removable(self) -> Mapping[str, Tensor]:
        """Asked when a phase is about to begin, before `start_phase`; `context.phase` is that phase already. Site name
        → bool (size,), False for the units that are off in the network from here on: the harness takes them out of it
        and calls `transfer`. Never all units of a site; whoever names some has taken its hooks off. Empty for none."""
        return {}

    def transfer(self, sites: Sequence[Site], kept: Mapping[str, Tensor]) -> None:
        """`network` is cut to the units `kept` that `removable` named, also when a run resumes behind such a removal;
        `sites` are its sites now, its layers new objects without hooks. Cut what the method holds of each unit."""
        raise NotImplementedError(f"{self.name} names removable units, but does not take the transfer")

    def penalty(self) -> Tensor | None:
        """A scalar added to the task loss."""
        return None

    def training_step(self, batch: Batch) -> Tensor:
        """Leave gradients on the parameters (they are cleared before) and return the task loss, detached."""
        loss = self.context.task_loss(self.network(batch.inputs), batch.targets)
        penalty = self.penalty()
        (loss if penalty is None else loss + penalty).backward()
        return loss.detach()

    def leaves(self) -> Sequence[Tensor]:
        """Tensors that collect gradients and are in no optimiser: `after_step` takes these up."""
        return ()

    def after_step(self) -> None:
        """After the optimiser's step: proximal steps, decay, masks, ramps."""

    def after_epoch(self, validate: Callable[[], Evaluation]) -> Request | None:
        """`validate()` evaluates the network as it stands on the validation split; call it only if needed. It raises
        NotFinite where the logits are not, and whoever lets that pass ends the training as diverged."""
        return None

    def state_dict(self) -> dict[str, Tensor | float | int | str]:
        """All that a resume needs beyond the network's parameters and buffers. Flat; no pickled objects."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave; called after `attach`."""

    def input_gates(self) -> Mapping[str, InputGate]:
        """Of a dynamic method, after `detach`: site name → the gate of its units. It sees their values at the first
        end of the site; its multipliers go to all ends.

        The harness cuts the gates to the units that are kept, evaluates and stores the network with them in place, and
        times it apart from the network without them.
        """
        return {}

    def detach(self) -> None:
        """Leave the plain network: gates folded into weights, no hook, no parametrisation, no extra parameter."""

    @abstractmethod
    def plan(self, strength: float) -> SparsityPlan:
        """The operating point at `strength`. Called after `detach`; must not change the network, for a point is then
        a failure. `context.generator` and the global streams of torch, numpy and random begin anew each time, so that
        all strengths draw the same."""


def missing_site(network: nn.Module, sites: Sequence[Site], names: Iterable[str]) -> str | None:
    """The reason why units of the sites of these names could not be removed; None where they could."""
    offered, layers = {site.name for site in sites}, {name for name, _ in network.named_modules()}
    for name in names:
        if name not in layers:
            return f"it has no layer {name!r}"
        if name not in offered:
            return f"{name} names no units that could be removed"
    return None


def prunable_weights(network: nn.Module, sites: Sequence[Site]) -> Iterator[tuple[str, nn.Parameter]]:
    """The weights that every weight-pruning method of the suite may touch: those of the layers that produce a site.

    One rule for all (the classifier, whose outputs are pinned, produces none); biases and normalisations are never
    pruned.
    """
    seen: set[str] = set()
    for site in sites:
        for producer in site.producers:
            if producer not in seen:
                seen.add(producer)
                weight = network.get_submodule(producer).weight
                assert isinstance(weight, nn.Parameter)
                yield f"{producer}.weight", weight
