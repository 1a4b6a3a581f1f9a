"""The training loop: one for all methods.

Every random draw of an epoch comes from a stream that is seeded by the epoch, so a run that goes on from a checkpoint
at the end of an epoch equals the straight run.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from bench.data import test_is_sealed
from bench.data.augmentation import crop_and_flip
from bench.data.batches import Normalise, ordered, shuffled
from bench.data.split import Dataset
from bench.errors import CellFailed
from bench.measure.accuracy import score
from bench.training.checkpoint import clone_state, read_state, write_state
from bench.training.optimizers import Optimizers
from bench.training.phases import PlannedPhase
from bench.training.recipe import Recipe
from bench.training.schedule import learning_rate_factor
from bench.training.seeds import stream
from bench.training.thinning import Removed, composed, masks_of, take_away
from methods.base import Evaluation, Method, Phase, Request, Site, StepContext

VALIDATIONS = 10
"""The validation curve of a run has about so many points, whatever its length."""


@dataclass
class Progress:
    """What a run has done so far; all of it is kept in a checkpoint."""

    epochs: dict[str, int] = field(default_factory=dict)
    steps: int = 0
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    data_order: str = ""


class Loop:
    """Trains a network that a method is attached to, phase by phase.

    Raises CellFailed("diverged", …) when the loss of an epoch is not finite.
    """

    def __init__(
        self,
        network: nn.Module,
        method: Method,
        sites: Sequence[Site],
        data: Dataset,
        recipe: Recipe,
        seed: int,
        device: torch.device,
        strength: float | None = None,
        checkpoint: Path | None = None,
        checkpoint_seconds: float = 60.0,
        on_epoch: Callable[[int, str], None] = lambda epoch, phase: None,
    ) -> None:
        """device: of `network` and `data` both. checkpoint: a file to resume from and to write every
        `checkpoint_seconds` (at the end of an epoch). on_epoch: told of each epoch done."""
        self.network, self.method, self.data, self.recipe = network, method, data, recipe
        self.seed, self.device, self.checkpoint = seed, device, checkpoint
        self.checkpoint_seconds, self.on_epoch = checkpoint_seconds, on_epoch
        self.normalise = Normalise.of(data, device)
        self.steps_per_epoch = math.ceil(len(data.train.labels) / recipe.batch_size)
        self.progress = Progress()
        self.sites, self.removed = list(sites), Removed()
        self._example = torch.zeros(1, *data.input_shape, device=device)
        self._best: dict[str, Any] | None = None
        self.context = StepContext(
            strength=strength,
            steps=self.steps_per_epoch * recipe.epochs,
            steps_per_epoch=self.steps_per_epoch,
            train_size=len(data.train.labels),
            device=device,
            generator=torch.Generator(device).manual_seed(stream(seed, "method", "attach")),
            task_loss=functional.cross_entropy,
            phase=Phase("attach", 0.0),
        )
        method.attach(network, sites, self.context)

    def run(self, phases: Sequence[PlannedPhase]) -> Progress:
        """Train through `phases`, from the checkpoint where there is one."""
        resumed = self._load()
        start_phase, start_epoch, optimizer_state = resumed or (0, 0, None)
        with test_is_sealed():
            for at in range(start_phase, len(phases)):
                inside = at == start_phase and start_epoch > 0
                request = self._run_phase(
                    phases, at, start_epoch if inside else 0, optimizer_state if inside else None
                )
                if request is Request.STOP:
                    break
        return self.progress

    def state(self) -> dict[str, Any]:
        """The trained network with its method, as `load_trained` takes it."""
        return {
            "network": self.network.state_dict(),
            "method": self.method.state_dict(),
            "removed": self.removed,
        }

    def _run_phase(
        self,
        phases: Sequence[PlannedPhase],
        at: int,
        start: int,
        optimizer_state: list[dict[str, Any]] | None,
    ) -> Request | None:
        planned, context = phases[at], self.context
        context.phase = planned.phase
        context.phase_steps = planned.epochs * self.steps_per_epoch
        context.phase_step = start * self.steps_per_epoch
        context.step = (planned.first_epoch + start) * self.steps_per_epoch
        context.learning_rates = self._learning_rates(planned.phase.learning_rate_scale, context.phase_steps)
        if start == 0:
            context.generator.manual_seed(stream(self.seed, "method", "phase", planned.first_epoch))
            self._take_away(self.method.removable())
            self.method.start_phase(planned.phase)
        optimizers = Optimizers(
            self.network, self.method.parameter_groups(), self.recipe, planned.phase.learning_rate_scale
        )
        if optimizer_state is not None:
            optimizers.load_state_dict(optimizer_state)
        saved = time.monotonic()
        for epoch in range(start, planned.epochs):
            number = planned.first_epoch + epoch
            last = epoch + 1 == planned.epochs
            began = time.perf_counter()
            loss = self._run_epoch(number, optimizers)
            self._close_epoch(number, planned.phase.name, loss, last)
            request = self._ask_method(optimizers)
            self.progress.seconds += time.perf_counter() - began
            self.on_epoch(number + 1, planned.phase.name)
            if request in (Request.STOP, Request.NEXT_PHASE):
                return request
            if not last and time.monotonic() - saved >= self.checkpoint_seconds:
                self._save(at, epoch + 1, optimizers)
                saved = time.monotonic()
        return None

    def _take_away(self, kept: Mapping[str, Tensor]) -> None:
        """A state kept as the best before it no longer fits."""
        if any(not bool(mask.all()) for mask in kept.values()):
            self.sites = take_away(self.network, self.method, self.sites, kept, self._example)
            self.removed, self._best = composed(self.removed, kept), None

    def _learning_rates(self, scale: float, steps: int) -> tuple[float, ...]:
        base = self.recipe.learning_rate * scale
        return tuple(
            base * learning_rate_factor(self.recipe, step, steps, self.steps_per_epoch)
            for step in range(steps)
        )

    def _run_epoch(self, number: int, optimizers: Optimizers) -> float:
        """One pass over the training images; the mean task loss."""
        context, method, recipe = self.context, self.method, self.recipe
        torch.manual_seed(stream(self.seed, "network-noise", number))
        context.generator.manual_seed(stream(self.seed, "method", number))
        order = torch.Generator().manual_seed(stream(self.seed, "order", number))
        if not self.progress.data_order:
            self.progress.data_order = _order_hash(order, context.train_size)
        augment = None
        if self.data.augment:
            noise = torch.Generator(self.device).manual_seed(stream(self.seed, "augment", number))

            def augment(images: Tensor) -> Tensor:
                return crop_and_flip(images, noise)

        self.network.train()
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for batch in shuffled(self.data.train, recipe.batch_size, order, self.normalise, augment):
            optimizers.set_rate(
                learning_rate_factor(recipe, context.phase_step, context.phase_steps, self.steps_per_epoch)
            )
            context.learning_rate = optimizers.rate
            optimizers.zero_grad()
            loss = method.training_step(batch)
            if recipe.gradient_clip:
                nn.utils.clip_grad_norm_(optimizers.parameters, recipe.gradient_clip)
            optimizers.step()
            context.step += 1
            context.phase_step += 1
            method.after_step()
            total += loss * len(batch.targets)
        self.progress.steps += self.steps_per_epoch
        mean = float(total) / context.train_size
        if not math.isfinite(mean):
            raise CellFailed("diverged", f"the training loss of epoch {number + 1} is {mean}")
        return mean

    def _close_epoch(self, number: int, phase: str, loss: float, last: bool) -> None:
        entry: dict[str, Any] = {"epoch": number + 1, "phase": phase, "train_loss": loss}
        every = max(1, self.recipe.epochs // VALIDATIONS)
        if last or (number + 1) % every == 0:
            evaluation = self.validate()
            entry |= {"validation_loss": evaluation.loss, "validation_accuracy": evaluation.accuracy}
        self.progress.history.append(entry)
        self.progress.epochs[phase] = self.progress.epochs.get(phase, 0) + 1

    def validate(self) -> Evaluation:
        """The network as it stands on the validation split."""
        scores = score(self.network, ordered(self.data.validation, 1024, self.normalise))
        return Evaluation(loss=scores.loss, accuracy=scores.accuracy)

    def _ask_method(self, optimizers: Optimizers) -> Request | None:
        request = self.method.after_epoch(self.validate)
        if request is Request.KEEP_BEST:
            self._best = clone_state({**self.state(), "optimizers": optimizers.state_dict()})
        elif request is Request.ROLLBACK:
            if self._best is None:
                raise RuntimeError(f"{self.method.name} asks to go back, but has kept no state as the best")
            load_trained(self.network, self.method, clone_state(self._best))
            optimizers.load_state_dict(clone_state(self._best["optimizers"]))
        return request

    def _save(self, phase: int, epoch: int, optimizers: Optimizers) -> None:
        if self.checkpoint is not None:
            progress = {key: clone_state(value) for key, value in vars(self.progress).items()}
            position = {"phase": phase, "epoch": epoch, "progress": progress, "best": self._best}
            write_state(
                self.checkpoint, {**self.state(), "optimizers": optimizers.state_dict(), "position": position}
            )

    def _load(self) -> tuple[int, int, list[dict[str, Any]]] | None:
        state = None if self.checkpoint is None else read_state(self.checkpoint)
        if state is None or "position" not in state:
            return None
        self._take_away(masks_of(state.get("removed", {}), self.sites))
        load_trained(self.network, self.method, state)
        position = state["position"]
        self.progress = Progress(**position["progress"])
        self._best = position["best"]
        return position["phase"], position["epoch"], state["optimizers"]


def load_trained(network: nn.Module, method: Method, state: dict[str, Any]) -> None:
    """Take over what `Loop.state` gave, into a network that the method is attached to and that has the same units."""
    network.load_state_dict(state["network"])
    method.load_state_dict(state["method"])


def parameter_hash(network: nn.Module) -> str:
    """Of all parameters and buffers, in order; to show that two runs began with the same weights."""
    digest = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _order_hash(generator: torch.Generator, size: int) -> str:
    """Of the order that the generator is about to give; the generator stays where it was."""
    twin = torch.Generator().set_state(generator.get_state())
    return hashlib.sha256(torch.randperm(size, generator=twin).numpy().tobytes()).hexdigest()[:16]
