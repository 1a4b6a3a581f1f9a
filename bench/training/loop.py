"""The training loop: one for all methods.

Every random draw comes from a stream that is seeded by its epoch, and a checkpoint keeps where the streams stand, so a
run that goes on from a checkpoint, inside an epoch or at its end, equals the straight run.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from bench.data import test_is_sealed
from bench.data.augmentation import crop_and_flip, resized_crop
from bench.data.batches import Augment, Normalise, evaluation_batch, ordered, shuffled
from bench.data.split import Dataset
from bench.errors import CellFailed
from bench.measure.accuracy import score
from bench.training.checkpoint import clone_state
from bench.training.memory import free_unused, is_out_of_memory
from bench.training.optimizers import Optimizers
from bench.training.phases import PlannedPhase
from bench.training.precision import bf16_in_training
from bench.training.recipe import Recipe
from bench.training.resume import Checkpoints, Position, Progress
from bench.training.schedule import learning_rate_factor
from bench.training.seeds import stream
from bench.training.step import EagerStep, GraphStep, Step
from bench.training.streams import EpochStreams
from bench.training.thinning import Removed, composed, masks_of, take_away, units_of
from methods.base import Evaluation, Method, Phase, Request, Site, StepContext

VALIDATIONS = 10
"""The validation curve of a run has about so many points, whatever its length."""

SMALLEST_EVALUATION = 8
"""Images at once: what does not fit in so few is not the images."""


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
        parts: int = 1,
        source_digest: str = "",
    ) -> None:
        """device: of `network` and `data` both. checkpoint: a file to resume from and to write every
        `checkpoint_seconds` (between two steps). on_epoch: told of each epoch done. parts: in how many pieces a batch
        is trained (see `EagerStep`); in more where the checkpoint says so. source_digest: see `Checkpoints`."""
        self.network, self.method, self.data, self.recipe = network, method, data, recipe
        self.seed, self.device, self.parts, self.on_epoch = seed, device, parts, on_epoch
        self.checkpoints = Checkpoints(checkpoint, checkpoint_seconds, device, source_digest)
        self.normalise = Normalise.of(data, device)
        self.steps_per_epoch = recipe.steps_per_epoch(len(data.train.labels))
        self.progress, self._position = Progress(), Position()
        self.seconds_before = 0.0
        """What the part of the training took that the checkpoint has."""
        self.sites, self.removed = list(sites), Removed()
        self._example = torch.zeros(1, *data.input_shape, device=device)
        self._evaluation_batch = evaluation_batch(data.input_shape)
        self._best: dict[str, Any] | None = None
        self.context = StepContext(
            strength=strength,
            steps=self.steps_per_epoch * recipe.epochs,
            steps_per_epoch=self.steps_per_epoch,
            train_size=len(data.train.labels),
            device=device,
            generator=torch.Generator(device).manual_seed(stream(seed, "method", "attach")),
            task_loss=task_loss(recipe),
            phase=Phase("attach", 0.0),
        )
        method.attach(network, sites, self.context)

    @property
    def precision(self) -> str:
        """Of the network's passes in training."""
        return self.recipe.precision if self.method.autocast else "float32"

    @property
    def captured(self) -> bool:
        """Whether steps are recorded as a CUDA graph."""
        return self.device.type == "cuda" and self.method.capturable and self.parts == 1

    def run(self, phases: Sequence[PlannedPhase]) -> Progress:
        """Train through `phases`, from the checkpoint where there is one."""
        optimizer_state = self._load()
        if phases:
            self._note_how(phases)
        first = self._position.phase
        mixed = self.precision == "bf16"
        with test_is_sealed(), bf16_in_training(self.network, self.device) if mixed else nullcontext():
            for at in range(first, len(phases)):
                if at > first:
                    self._position = Position(at)
                request = self._run_phase(phases[at], optimizer_state if at == first else None)
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
        self, planned: PlannedPhase, optimizer_state: list[dict[str, Any]] | None
    ) -> Request | None:
        """From `self._position`; the state is None at the beginning of a phase."""
        context, start = self.context, self._position
        done = start.epoch * self.steps_per_epoch + start.step
        context.phase = planned.phase
        context.phase_steps = planned.epochs * self.steps_per_epoch
        context.phase_step = done
        context.step = planned.first_epoch * self.steps_per_epoch + done
        context.learning_rates = self._learning_rates(planned.phase.learning_rate_scale, context.phase_steps)
        if optimizer_state is None:
            context.generator.manual_seed(stream(self.seed, "method", "phase", planned.first_epoch))
            self._take_away(self.method.removable())
            self.method.start_phase(planned.phase)
            if planned.first_epoch:
                self._note_start(planned)
        groups, scale = self.method.parameter_groups(), planned.phase.learning_rate_scale
        optimizers = Optimizers(self.network, groups, self.recipe, scale, self.captured)
        if optimizer_state is not None:
            optimizers.load_state_dict(optimizer_state)
        step = self._step(optimizers)
        for epoch in range(start.epoch, planned.epochs):
            number = planned.first_epoch + epoch
            last = epoch + 1 == planned.epochs
            self._epoch_began = time.perf_counter()
            loss = self._run_epoch(number, optimizers, step)
            self._close_epoch(number, planned.phase.name, loss, last)
            request = self._ask_method(optimizers)
            self.progress.seconds += time.perf_counter() - self._epoch_began
            self.on_epoch(number + 1, planned.phase.name)
            if request in (Request.STOP, Request.NEXT_PHASE):
                return request
            if request is Request.ROLLBACK:
                # A recorded step would go on with what the optimisers held before.
                step = self._step(optimizers)
            self._position = Position(self._position.phase, epoch + 1)
            if not last and self.checkpoints.due():
                self._save(optimizers)
        return None

    def _note_start(self, planned: PlannedPhase) -> None:
        """What the removal, or the hardening, that a phase begins with leaves before anything is trained on it."""
        entry: dict[str, Any] = {"epoch": planned.first_epoch, "phase": planned.phase.name}
        self.progress.history.append(entry | self._validation())

    def _take_away(self, kept: Mapping[str, Tensor]) -> None:
        """A state kept as the best before it no longer fits."""
        if any(not bool(mask.all()) for mask in kept.values()):
            self.sites = take_away(self.network, self.method, self.sites, kept, self._example)
            self.removed, self._best = composed(self.removed, units_of(kept)), None

    def _step(self, optimizers: Optimizers) -> Step:
        eager = EagerStep(self.method, optimizers, self.recipe.gradient_clip, self.parts)
        if not self.captured:
            return eager

        def on_failure(reason: str) -> None:
            self.progress.note(f"steps ran one operation at a time: recording them failed ({reason})")

        full = min(self.recipe.batch_size, self.recipe.epoch_images(self.context.train_size))
        return GraphStep(eager, full, [self.context.generator], self.device, on_failure)

    def _learning_rates(self, scale: float, steps: int) -> tuple[float, ...]:
        base = self.recipe.learning_rate * scale
        return tuple(
            base * learning_rate_factor(self.recipe, step, steps, self.steps_per_epoch)
            for step in range(steps)
        )

    def _run_epoch(self, number: int, optimizers: Optimizers, step: Step) -> float:
        """What is left of an epoch; the mean task loss of the whole of it."""
        context, position = self.context, self._position
        images = self.recipe.epoch_images(context.train_size)
        streams = EpochStreams(self.seed, number, context.generator, self.device)
        if not self.progress.data_order:
            self.progress.data_order = _order_hash(streams.order, context.train_size)
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        if position.streams is not None and position.loss_sum is not None:
            streams.restore(position.streams)
            total += position.loss_sum.to(self.device)
        self.network.train()
        for batch in shuffled(
            self.data.train,
            self.recipe.batch_size,
            streams.order,
            self.normalise,
            self._augment(streams.augmentation),
            position.step,
            images,
        ):
            optimizers.set_rate(
                learning_rate_factor(
                    self.recipe, context.phase_step, context.phase_steps, self.steps_per_epoch
                )
            )
            context.learning_rate = optimizers.rate
            loss = step(batch)
            context.step += 1
            context.phase_step += 1
            self.method.after_step()
            total += loss * len(batch.targets)
            position.step += 1
            if position.step < self.steps_per_epoch and self.checkpoints.due():
                position.loss_sum, position.streams = total, streams.state()
                self._save(optimizers)
        self.progress.steps += self.steps_per_epoch
        mean = float(total) / images
        if not math.isfinite(mean):
            raise CellFailed("diverged", f"the training loss of epoch {number + 1} is {mean}")
        return mean

    def _augment(self, noise: torch.Generator) -> Augment | None:
        wanted = self.recipe.augmentation
        if wanted == "resized-crop":
            return partial(resized_crop, generator=noise)
        if wanted == "crop-and-flip" or (wanted == "default" and self.data.augment):
            return partial(crop_and_flip, generator=noise)
        return None

    def _close_epoch(self, number: int, phase: str, loss: float, last: bool) -> None:
        entry: dict[str, Any] = {"epoch": number + 1, "phase": phase, "train_loss": loss}
        every = max(1, self.recipe.epochs // VALIDATIONS)
        if last or (number + 1) % every == 0:
            entry |= self._validation()
        self.progress.history.append(entry)
        self.progress.epochs[phase] = self.progress.epochs.get(phase, 0) + 1

    def _validation(self) -> dict[str, float]:
        evaluation = self.validate()
        return {"validation_loss": evaluation.loss, "validation_accuracy": evaluation.accuracy}

    def validate(self) -> Evaluation:
        """The network as it stands on the validation split, in smaller batches from where one does not fit in memory:
        to train in parts would not help."""
        while True:
            batches = ordered(self.data.validation, self._evaluation_batch, self.normalise)
            try:
                scores = score(self.network, batches)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                if self._evaluation_batch <= SMALLEST_EVALUATION:
                    raise CellFailed(
                        "memory",
                        "out of memory: the validation split does not fit in batches of "
                        f"{self._evaluation_batch} images either ({(str(error).splitlines() or [''])[0]})",
                    ) from error
            else:
                return Evaluation(loss=scores.loss, accuracy=scores.accuracy)
            # Out of the handler, for the traceback holds on to what did not fit.
            self._evaluation_batch = max(SMALLEST_EVALUATION, self._evaluation_batch // 2)
            free_unused()

    def _ask_method(self, optimizers: Optimizers) -> Request | None:
        request = self.method.after_epoch(self.validate)
        if not isinstance(request, Request | None):  # what no branch below knows would be passed over
            raise TypeError(
                f"after_epoch of {self.method.name} returns {request!r}, which is neither a "
                "methods.base.Request nor None"
            )
        if request is Request.KEEP_BEST:
            self._best = clone_state({**self.state(), "optimizers": optimizers.state_dict()})
        elif request is Request.ROLLBACK:
            if self._best is None:
                raise RuntimeError(f"{self.method.name} asks to go back, but has kept no state as the best")
            load_trained(self.network, self.method, clone_state(self._best))
            optimizers.load_state_dict(clone_state(self._best["optimizers"]))
        return request

    def _note_how(self, phases: Sequence[PlannedPhase]) -> None:
        if self.recipe.precision != self.precision:
            what = "trained, but for the shared pretraining," if phases[0].first_epoch else "trained"
            self.progress.note(f"{what} in {self.precision}: {self.method.name} does not run in bf16")
        if self.parts > self.progress.parts:
            size = math.ceil(self.recipe.batch_size / self.parts)
            epoch = phases[self._position.phase].first_epoch + self._position.epoch + 1
            self.progress.note(
                f"out of memory: from epoch {epoch} on, gradients were summed over {self.parts} parts of at most "
                f"{size} images a step; batch-norm statistics, and what the method measures in a step, are of these "
                "smaller batches"
            )
        self.parts = self.progress.parts = max(self.parts, self.progress.parts)

    def _save(self, optimizers: Optimizers) -> None:
        state = {**self.state(), "optimizers": optimizers.state_dict()}
        before = self.progress.seconds
        if self._position.step:
            self.progress.seconds += time.perf_counter() - self._epoch_began
        self.checkpoints.save(state, self._position, self.progress, self._best)
        self.progress.seconds = before

    def _load(self) -> list[dict[str, Any]] | None:
        """Take up the checkpoint; the state of its optimisers."""
        resumed = self.checkpoints.load()
        if resumed is None:
            return None
        self._take_away(masks_of(resumed.state.get("removed", {}), self.sites))
        load_trained(self.network, self.method, resumed.state)
        self._position, self.progress, self._best = resumed.position, resumed.progress, resumed.best
        self.seconds_before = self.progress.seconds
        optimizers: list[dict[str, Any]] = resumed.state["optimizers"]
        return optimizers


def task_loss(recipe: Recipe) -> Callable[[Tensor, Tensor], Tensor]:
    """What training minimises: mean cross-entropy of (logits, targets), smoothed where the recipe says so."""
    if recipe.label_smoothing == 0:
        return functional.cross_entropy
    return partial(functional.cross_entropy, label_smoothing=recipe.label_smoothing)


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
