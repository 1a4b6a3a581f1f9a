"""The typed records: what one file holds. `results/README.md` says the same in words."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

SCHEMA_VERSION = 1
"""Of the file format. A reader takes every version up to its own."""

PROTOCOL_VERSION = 1
"""Of what the numbers mean (splits, budgets, measuring). Part of every id: two protocols never share a row."""

Stage = Literal["train", "point", "measure"]
Status = Literal["done", "failed"]
MemoryFormat = Literal["channels-last", "contiguous"]


class Part(BaseModel):
    """Base of everything inside a record: unknown keys are refused, so that a foreign file cannot pass as a record."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Failure(Part):
    """kind: one word for the tables (`diverged`, `collapsed`, `unequal`, `error`, `memory`, `killed`, `timeout`, `gpu`
    for one that no longer answered, twice); reason: one line; detail: the traceback where there was one."""

    kind: str
    reason: str
    detail: str = ""


class Start(Part):
    """The checkpoint that training starts from. path: as the suite gave it; sha256: of its content."""

    path: str
    sha256: str


class Cpu(Part):
    """How a network is trained on a CPU, where that moves the last digits. threads: of each process. On a GPU neither
    says anything."""

    memory_format: MemoryFormat = "channels-last"
    threads: int = Field(default=1, ge=1, le=4096)


class Workload(Part):
    """What is trained, apart from the method. recipe: the resolved training settings, `epochs` among them. start: None
    for the network's own initialisation, or the weights that its name asks for. streams: whether methods may remove
    units of residual streams and concatenations too. round_to: what the number of units of a compact network's sites is
    a multiple of, where some went. network_digest: of one of the user's own, which is told by what it is and not by its
    name alone; empty for those of the suite and of torchvision."""

    dataset: str
    dataset_fingerprint: str
    network: str
    recipe: dict[str, Any]
    start: Start | None = None
    streams: bool = False
    round_to: int = 1
    cpu: Cpu = Cpu()
    network_digest: str = ""

    def beside_recipe(self) -> dict[str, Any]:
        """What of `start`, `streams`, `round_to`, `cpu` and the network is not as usual, for ids and tables; where a
        file lies does not matter."""
        said: dict[str, Any] = {}
        if self.network_digest:
            said["network_digest"] = self.network_digest
        if self.start is not None:
            said["start"] = self.start.sha256
        if self.streams:
            said["streams"] = True
        if self.round_to != 1:
            said["round_to"] = self.round_to
        return said | self.unusual_cpu()

    def unusual_cpu(self) -> dict[str, Any]:
        """`cpu`, where it is not as usual."""
        return {} if self.cpu == Cpu() else {"cpu": self.cpu.model_dump(mode="json")}


class MethodSettings(Part):
    """config: fully resolved, defaults included. label: what tables and figures call this entry of the suite.
    strength: None for a training that serves all strengths."""

    name: str
    label: str
    config: dict[str, Any]
    granularity: str
    strength_kind: str
    source: str
    """`builtin`, the entry point, or the path of the method's file."""
    source_digest: str = ""
    """Of the file that defines it. Empty in records that are older."""

    def by_path(self) -> bool:
        """Whether it came by the path of its file. Such a method is known by what is in the file, so that it is another
        one after an edit; all others are known by name."""
        return self.source.endswith(".py")

    def variant(self) -> dict[str, Any]:
        """What tells it from another entry of its name."""
        return self.config | ({"source_digest": self.source_digest} if self.by_path() else {})


class Machine(Part):
    """Where it ran. device: the name of the processor or GPU the work ran on; threads: torch's."""

    device: str
    processor: str
    cores: int
    memory_gb: float
    system: str
    threads: int
    gpu_driver: str | None = None


class Scores(Part):
    """On one split. accuracy and calibration_error (expected, 15 equal-width bins) in 0…1; loss: mean cross-entropy."""

    accuracy: float
    loss: float
    calibration_error: float
    images: int


class Cost(Part):
    """Of one network. macs: convolutions and linear layers, one image, normalisation folded. weight_bytes: parameters
    and buffers; peak_bytes: the largest sum of live tensors during inference of one image, weights included. weights:
    of convolutions and linear layers, biases left out; layers: how many of these there are; active_layers: those with
    an activation behind them, or with no other layer. The last four are None in records from before they were kept."""

    parameters: int
    nonzero: int
    macs: int
    weight_bytes: int
    peak_bytes: int
    weights: int | None = None
    nonzero_weights: int | None = None
    layers: int | None = None
    active_layers: int | None = None


class DynamicCost(Part):
    """Of the gates that depend on the image. expected_macs: those of one image with the work on closed units skipped,
    mean over images; gate_operations: what the gates themselves do for one image, gate_parameters: what they hold."""

    expected_macs: float
    gate_operations: int
    gate_parameters: int


class CertificatePart(Part):
    """Compact against masked reference. *_float64, *_float32: max |Δ| over the scale of the output (max |output|).
    top1_changes: images of the whole test set whose top-1 differs (ties apart)."""

    passed: bool
    difference_float64: float
    difference_float32: float
    top1_changes: int
    images: int
    removed_units: int
    kept_constant_units: int
    reason: str = ""


class LatencyPart(Part):
    """One clock, one batch size. Times in milliseconds per call. speedup: dense over compact, ratio of medians, with
    its 95 % bootstrap interval over blocks. clock: host, device or graph. engine: `eager`, and in place of the compact
    network one with input gates: `gather` (computes what is open) or `masked` (computes all, and multiplies)."""

    clock: Literal["host", "device", "graph"]
    batch: int
    engine: str
    dtype: str
    layout: str
    calls: int
    blocks: int
    compact_median: float
    compact_p10: float
    compact_p90: float
    dense_median: float
    dense_p10: float
    dense_p90: float
    speedup: float
    speedup_low: float
    speedup_high: float
    unstable: bool


class Record(Part):
    """What the three kinds share. id: hash of what the record is about. seconds: wall time of the stage."""

    stage: ClassVar[Stage]

    schema_version: int = SCHEMA_VERSION
    protocol_version: int = PROTOCOL_VERSION
    id: str
    kind: Stage
    status: Status
    failure: Failure | None = None
    suite: str
    workload: Workload
    method: MethodSettings
    seed: int
    created: str
    seconds: float
    versions: dict[str, str]
    machine: Machine


class TrainRecord(Record):
    """strength: only of a training that serves one strength. epochs: really run, per phase. history: one entry per
    epoch (`epoch`, `phase`, `train_loss`, `validation_loss`, `validation_accuracy` where it was evaluated), and one
    without `train_loss` where a phase begins, the first apart: right after what it begins with.
    shared_seconds: what the shared pretraining took, once for all that share it; not part of `seconds`. notes: on how
    it was carried out, where that is not as the recipe says."""

    stage: ClassVar[Stage] = "train"
    strength: float | None
    epochs: dict[str, int] = {}
    steps: int = 0
    step_milliseconds: float | None = None
    peak_rss_bytes: int | None = None
    shared_pretraining: str | None = None
    shared_seconds: float | None = None
    initial_weights: str = ""
    """Hash of the initial parameters, and of the first epoch's order: equal over the methods of a seed."""
    data_order: str = ""
    history: list[dict[str, Any]] = []
    notes: list[str] = []


class PointRecord(Record):
    """One operating point. masked_*: the reference with the removed units switched off; test and validation: of the
    compact network. dense: the full network of the workload. kept: site → units left, 0 where its layer was merged into
    the next or dropped; sizes: site → units of the full network. layer_actions: what became of whole layers, in order,
    as `merge fc2 fc3`."""

    stage: ClassVar[Stage] = "point"
    train_id: str
    strength: float
    validation: Scores | None = None
    test: Scores | None = None
    masked_validation: Scores | None = None
    masked_test: Scores | None = None
    cost: Cost | None = None
    dense_cost: Cost | None = None
    certificate: CertificatePart | None = None
    kept: dict[str, int] = {}
    sizes: dict[str, int] = {}
    layer_actions: list[str] = []
    expected_activity: dict[str, float] = {}
    dynamic: DynamicCost | None = None
    notes: list[str] = []


class MeasureRecord(Record):
    """Latency of one compact network on one device. `device` is the torch device type, the name stands in `machine`.
    peak_bytes: by batch size; on CUDA the allocator's, elsewhere live tensors. gathered: of a network with input
    gates, the sites whose closed units the engine `gather` skips."""

    stage: ClassVar[Stage] = "measure"
    point_id: str
    strength: float
    device: str
    protocol: dict[str, Any]
    latency: list[LatencyPart] = []
    peak_bytes: dict[str, int] = {}
    settings: dict[str, Any] = {}
    gathered: list[str] = []


RECORD_TYPES: dict[str, type[TrainRecord] | type[PointRecord] | type[MeasureRecord]] = {
    "train": TrainRecord,
    "point": PointRecord,
    "measure": MeasureRecord,
}
