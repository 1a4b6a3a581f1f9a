"""Where a training stands, on disk: enough to go on at the same step as if nothing had happened."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.training.checkpoint import clone_state, read_state, write_state


@dataclass
class Progress:
    """What a run has done so far; all of it is kept in a checkpoint. notes: what a reader of the record should know of
    how the training was carried out. parts: in how many pieces its batches are trained by now."""

    epochs: dict[str, int] = field(default_factory=dict)
    steps: int = 0
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    data_order: str = ""
    notes: list[str] = field(default_factory=list)
    parts: int = 1

    def note(self, text: str) -> None:
        """Once, however often it happens."""
        if text not in self.notes:
            self.notes.append(text)


@dataclass
class Position:
    """The next step: of which phase, which of its epochs, and which step of that. Inside an epoch also what the epoch
    has so far: the sum of its losses, (), and its random streams (`EpochStreams.state`)."""

    phase: int = 0
    epoch: int = 0
    step: int = 0
    loss_sum: Tensor | None = None
    streams: dict[str, Tensor] | None = None


@dataclass
class Resumed:
    """A checkpoint as it was read."""

    state: dict[str, Any]
    position: Position
    progress: Progress
    best: dict[str, Any] | None


class Checkpoints:
    """A file that is replaced every so many seconds; None for a training that keeps nothing. device: the one that
    trains; another's random streams can be neither taken over nor matched. source_digest: of the method's file; half a
    training by the code of before an edit is no half of one by the code of now."""

    def __init__(
        self, path: Path | None, seconds: float, device: torch.device, source_digest: str = ""
    ) -> None:
        self.path, self.seconds = path, seconds
        self.made_by = {"device": device.type, "source_digest": source_digest}
        self._last = time.monotonic()

    def due(self) -> bool:
        return self.path is not None and time.monotonic() - self._last >= self.seconds

    def save(
        self, state: dict[str, Any], position: Position, progress: Progress, best: dict[str, Any] | None
    ) -> None:
        """state: of network, method and optimisers."""
        if self.path is not None:
            here = {**vars(position), "progress": clone_state(vars(progress)), "best": best}
            write_state(self.path, {**state, "position": here | self.made_by})
            self._last = time.monotonic()

    def load(self) -> Resumed | None:
        """None where there is no file, or that of a finished training, or of one on another kind of device or by other
        code. An older file does not say all of it, and is taken."""
        state = None if self.path is None else read_state(self.path)
        if state is None or "position" not in state:
            return None
        here = state["position"]
        if any(here.pop(key, now) != now for key, now in self.made_by.items()):
            return None
        progress, best = Progress(**here.pop("progress")), here.pop("best")
        return Resumed(state, Position(**here), progress, best)
