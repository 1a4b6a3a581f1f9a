"""One optimiser step on one batch, in one piece or in parts, run or replayed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from bench.training.optimizers import Optimizers
from methods.base import Batch, Method

Step = Callable[[Batch], Tensor]
"""Takes a step and gives the mean task loss of the batch, detached."""

WARM_UP = 3
"""Steps of a phase before one is recorded: the first ones allocate what the optimiser keeps."""


class EagerStep:
    """parts: how many pieces a batch is trained in where it does not fit in memory whole; fewer where one would have a
    single image, of which batch normalisation knows no deviation. The gradients are summed in
    proportion to the images, so that it is a step on the whole batch but for what looks at a batch as such (the
    statistics of batch normalisation, what a method measures)."""

    def __init__(self, method: Method, optimizers: Optimizers, gradient_clip: float, parts: int = 1) -> None:
        self.method, self.optimizers = method, optimizers
        self.gradient_clip, self.parts = gradient_clip, parts

    def __call__(self, batch: Batch) -> Tensor:
        self.optimizers.zero_grad()
        loss = self._in_one(batch) if self.parts == 1 else self._in_parts(batch)
        if all(parameter.grad is None for parameter in self.optimizers.parameters):
            raise RuntimeError(
                f"training_step of {self.method.name} leaves no gradient: to call backward() is up to it"
            )
        if self.gradient_clip:
            nn.utils.clip_grad_norm_(self.optimizers.parameters, self.gradient_clip)
        self.optimizers.step()
        return loss

    def _in_one(self, batch: Batch) -> Tensor:
        loss = self.method.training_step(batch)
        if loss is None:
            raise TypeError(f"training_step of {self.method.name} returns nothing: it owes the task loss")
        return loss

    def _in_parts(self, batch: Batch) -> Tensor:
        """Leaves the gradients of the whole batch; its mean loss."""
        images = len(batch.targets)
        collecting = [*self.optimizers.parameters, *self.method.leaves()]
        sums: dict[Tensor, Tensor] = {}
        total = torch.zeros((), device=batch.targets.device)
        parts = max(1, min(self.parts, images // 2))
        pieces = zip(batch.inputs.tensor_split(parts), batch.targets.tensor_split(parts), strict=True)
        for inputs, targets in pieces:
            share = len(targets) / images
            for leaf in collecting:
                leaf.grad = None
            total += share * self._in_one(Batch(inputs, targets))
            for leaf in collecting:
                if leaf.grad is not None:
                    part = leaf.grad.mul_(share)
                    sums[leaf] = part if leaf not in sums else sums[leaf].add_(part)
        for leaf, gradient in sums.items():
            leaf.grad = gradient
        return total


class GraphStep:
    """The same step recorded as a CUDA graph and replayed: one launch in place of a few hundred.

    Only for methods that say so (`Method.capturable`). The first steps run as they are, on the stream that records;
    so does a batch that is not full. Where recording fails, the reason is told and every step runs as it is.
    """

    def __init__(
        self,
        eager: Step,
        full: int,
        generators: Sequence[torch.Generator],
        device: torch.device,
        on_failure: Callable[[str], None],
    ) -> None:
        """full: images of a full batch, the one that is recorded. generators: those that a step draws from, beside the
        device's own."""
        self._eager, self._full, self._generators, self._on_failure = eager, full, generators, on_failure
        self._stream = torch.cuda.Stream(device)
        self._before = 0
        self._failed = False
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, batch: Batch) -> Tensor:
        full = len(batch.targets) == self._full
        if full and self._graph is None and not self._failed and self._before >= WARM_UP:
            self._record(batch)
        if self._graph is None or not full:
            self._before += 1
            return self._beside(batch)
        self._batch.inputs.copy_(batch.inputs)
        self._batch.targets.copy_(batch.targets)
        self._graph.replay()
        return self._loss

    def _beside(self, batch: Batch) -> Tensor:
        """On the recording stream: what a backward pass leaves behind belongs to the stream that it ran on."""
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            loss = self._eager(batch)
        current.wait_stream(self._stream)
        return loss

    def _record(self, batch: Batch) -> None:
        self._batch = Batch(batch.inputs.clone(), batch.targets.clone())
        graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        for generator in self._generators:
            graph.register_generator_state(generator)
        drawn_from = [torch.cuda.default_generators[self._stream.device_index], *self._generators]
        before = [generator.clone_state() for generator in drawn_from]
        try:
            # Other threads may go on: one that reads images ahead copies to the device as it likes.
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                self._loss = self._eager(self._batch)
        except RuntimeError as error:
            self._failed = True
            # What breaks a capture raises again where it ends, before the context of its stream is left. Without the
            # reset, the allocator would take it for one that goes on; so would the generators, with or without it.
            torch.cuda.set_stream(current)
            graph.reset()
            for generator, state in zip(drawn_from, before, strict=True):
                generator.graphsafe_set_state(state)
            self._on_failure((str(error).splitlines() or [type(error).__name__])[0])
        else:
            self._graph = graph
