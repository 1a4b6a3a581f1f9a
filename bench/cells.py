"""A suite, resolved: its cells as plain data. No torch here, so that the process that only watches stays small."""

from __future__ import annotations

from dataclasses import dataclass, field

from bench.records.schema import MethodSettings, Workload
from bench.records.store import Store
from bench.suite import Suite


@dataclass(frozen=True)
class Pretraining:
    """Plain training that several cells share: its id, and for how many epochs at which share of the base rate."""

    id: str
    epochs: int
    rate_scale: float


@dataclass(frozen=True)
class Cell:
    """One training and its operating points: plain data, so that it can be sent to a worker.

    points: strength → point id. For the estimate of time: steps, of the optimiser; step_macs, multiply-accumulates of
    one forward pass of a batch times the method's passes; point_macs, those of all passes that score and prove a point;
    training_rate, multiply-accumulates a second in a plain step on this machine; measure_seconds, of the latency of a
    point.
    """

    suite: str
    workload: Workload
    method: MethodSettings
    method_file: str | None
    seed: int
    strength: float | None
    train_id: str
    points: tuple[tuple[float, str], ...]
    pretraining: Pretraining | None
    steps: int
    step_macs: float
    point_macs: float
    training_rate: float
    measure_seconds: float

    @property
    def title(self) -> str:
        strength = "" if self.strength is None else f" {self.strength:g}"
        return f"{self.workload.network} · {self.method.label}{strength} · seed {self.seed}"


@dataclass(frozen=True)
class Skip:
    """A (workload, method) pair that does not run, and why."""

    network: str
    label: str
    reason: str


@dataclass
class Plan:
    """device: the torch device, resolved. reads_files: whether the images of a data set stay in their files. pinned:
    network → the operations in it that the analysis does not know and whose channels all stay. measures: point id → the
    id of its measurement on this machine; a point of single weights has none (zeros among the weights cost a dense
    kernel the same: no kernel, no latency)."""

    suite: Suite
    device: str
    reads_files: bool = False
    pinned: dict[str, tuple[str, ...]] = field(default_factory=dict)
    cells: list[Cell] = field(default_factory=list)
    skips: list[Skip] = field(default_factory=list)
    measures: dict[str, str] = field(default_factory=dict)

    def labels(self) -> dict[str, str]:
        """point id → the label of this suite's entry (a record keeps that of the suite that ran it first)."""
        return {point: cell.method.label for cell in self.cells for _, point in cell.points}

    def to_do(self, store: Store, retry_failed: bool = False) -> list[Cell]:
        """The cells that have a stage without a record (or, on request, a failed one)."""
        finished = {"done"} if retry_failed else {"done", "failed"}
        found = []
        for cell in self.cells:  # a look at every record, so that each one that is damaged is warned of here
            statuses = [store.status("train", cell.train_id)]
            statuses += [store.status("point", point) for _, point in cell.points]
            if not set(statuses) <= finished:
                found.append(cell)
        return found
