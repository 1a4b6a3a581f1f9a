"""A suite file, checked: which workloads, which methods at which strengths, which seeds. No torch here."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PrivateAttr,
    ValidationError,
)

from bench.errors import BadInput, nearest, nearest_number
from bench.records.schema import Cpu
from bench.training.recipe import Recipe

SHIPPED = Path(__file__).parent / "suites"

MOST_SEED = 2**63 - 1
"""What a column of tables holds."""

MOST_ROUND_TO = 2**16
"""Far above what any kernel likes; from there on it can only be a slip."""


class _Checked(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class WorkloadEntry(_Checked):
    """A data set, a network and how it is trained.

    start: a checkpoint (a state dict, .safetensors) to start from in place of fresh weights. streams: let methods
    remove units of residual streams and concatenations too, which go from all layers that share them or from none.
    round_to: what the number of units of each site is rounded up to a multiple of where some go, for kernels that like
    8 or 16; what a method takes away while it trains stays away. cpu: memory format and threads of the training on a
    CPU, which `bench run --tune` fills in.
    """

    dataset: str = Field(min_length=1)
    network: str = Field(min_length=1)
    start: str | None = Field(default=None, min_length=1)
    streams: bool = False
    round_to: int = Field(default=1, ge=1, le=MOST_ROUND_TO)
    cpu: Cpu = Cpu()
    recipe: Recipe

    @property
    def own_network(self) -> bool:
        """Whether the network is the user's own, a `package.module:factory`."""
        return ":" in self.network.removeprefix("torchvision:")


class MethodEntry(_Checked):
    """A method with its settings. label: what tables call it, the name where left out; networks: the only ones of the
    suite that it is meant for, all where left out; strengths: the method's own default grid where left out."""

    name: str
    label: str = ""
    networks: tuple[str, ...] = ()
    strengths: tuple[float, ...] | None = Field(default=None, min_length=1)
    config: dict[str, Any] = {}

    @property
    def shown(self) -> str:
        return self.label or self.name


class MeasureEntry(_Checked):
    """latency: the preset of `bench.measure.latency`, or `none`."""

    latency: Literal["quick", "full", "none"] = "quick"


Provenance = Literal["table", "digitised", "code", "quoted", "derived", "recall"]
"""Where a published figure was read: in a table of the paper (or a picture of it); off a plot; in the authors' code,
logs or README; in another text that quotes it; computed from published figures; from memory, confirmed by nothing."""


class Published(_Checked):
    """What a paper reports, to be shown beside our numbers.

    network, dataset, label, strength: of a workload and of a method entry (its shown label) of the suite; left out,
    every one of them is compared. test_error: fraction. units, activity: site → units left, and mean active units
    of dynamic gates. weights_pruned: fraction of the dense network's weights of convolutions and linear layers,
    biases ignored. macs_ratio: dense over sparse. source: what was read, and where, one line. note: such as the
    published budget. Without any figure it says that none was found, and where that was looked for.
    """

    network: str = ""
    dataset: str = ""
    label: str = ""
    strength: float | None = None
    test_error: float | None = Field(default=None, ge=0, le=1)
    units: dict[str, NonNegativeInt] = {}
    activity: dict[str, NonNegativeFloat] = {}
    weights_pruned: float | None = Field(default=None, ge=0, le=1)
    macs_ratio: float | None = Field(default=None, gt=0)
    provenance: Provenance | None = None
    source: str = Field(min_length=1)
    note: str = ""

    @property
    def has_figures(self) -> bool:
        numbers = (self.test_error, self.weights_pruned, self.macs_ratio)
        return bool(self.units or self.activity) or any(number is not None for number in numbers)


class Suite(_Checked):
    """title: one line. seeds: base seeds, each a full repetition. budget_note: how the recipes here differ from the
    published ones, one line; stands under the table of published numbers."""

    name: str = ""
    title: str
    seeds: tuple[Annotated[int, Field(ge=0, le=MOST_SEED)], ...] = Field(default=(0, 1, 2), min_length=1)
    workloads: tuple[WorkloadEntry, ...] = Field(min_length=1)
    methods: tuple[MethodEntry, ...] = Field(min_length=1)
    measure: MeasureEntry = MeasureEntry()
    published: tuple[Published, ...] = ()
    budget_note: str = ""
    _file: str = PrivateAttr("")

    @property
    def where(self) -> str:
        """What a complaint calls it: the file of the user's own, the name of one that comes with the package."""
        return self._file or f"suite {self.name}"


def shipped() -> list[str]:
    """Names of the suites that come with the package."""
    return sorted(path.stem for path in SHIPPED.glob("*.toml"))


def find(name_or_path: str) -> Path:
    """The file of a suite, by name or by path."""
    if name_or_path.endswith(".toml"):
        path = Path(name_or_path)
        if not path.is_file():
            raise BadInput(f"suite {name_or_path}: no such file")
        return path
    if name_or_path not in shipped():
        raise BadInput(f"unknown suite {name_or_path!r}{nearest(name_or_path, shipped())}")
    return SHIPPED / f"{name_or_path}.toml"


def load(name_or_path: str) -> Suite:
    """Read and check a suite. Raises BadInput with the file and the key."""
    path = find(name_or_path)
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: not a TOML file: {error}") from None
    except OSError as error:
        raise BadInput(f"{path}: cannot be read: {error.strerror}") from None
    try:
        suite = Suite.model_validate({"name": path.stem, **raw})
    except ValidationError as error:
        raise BadInput(f"{path}: {one_line(error, Suite)}") from None
    if name_or_path.endswith(".toml"):
        suite._file = name_or_path
    _check_networks(path, suite)
    _refuse_twins(path, suite)
    for at, published in enumerate(suite.published):
        _check_published(f"{path}: published.{at}", published, suite)
    return suite


def _check_networks(path: Path, suite: Suite) -> None:
    """That the networks an entry is meant for are those of a workload."""
    valid = {workload.network for workload in suite.workloads}
    for at, entry in enumerate(suite.methods):
        for network in entry.networks:
            if network not in valid:
                hint = nearest(network, valid)
                raise BadInput(f"{path}: methods.{at}.networks: no workload has {network!r}{hint}")


def _refuse_twins(path: Path, suite: Suite) -> None:
    """Two entries of one label for a network, or one workload, seed or strength twice, would share a row of a table."""
    networks = {workload.network for workload in suite.workloads}
    rows = [(entry.shown, network) for entry in suite.methods for network in set(entry.networks) or networks]
    for label, network in rows:
        if rows.count((label, network)) > 1:
            raise BadInput(
                f"{path}: methods: {label!r} stands there twice; give each entry a label of its own"
            )
    pairs = [(entry.dataset, entry.network) for entry in suite.workloads]
    for pair in pairs:
        if pairs.count(pair) > 1:
            raise BadInput(f"{path}: workloads: {pair[0]} with {pair[1]} stands there twice")
    numbers = {f"methods.{at}.strengths": entry.strengths or () for at, entry in enumerate(suite.methods)}
    for key, given in {"seeds": suite.seeds, **numbers}.items():
        if twice := [value for value in given if given.count(value) > 1]:
            raise BadInput(f"{path}: {key}: {twice[0]:g} stands there twice")


def _check_published(where: str, published: Published, suite: Suite) -> None:
    """That it speaks of this suite, and that a figure says of what it is and where it was read."""
    labels = [entry.shown for entry in suite.methods]
    for key, word, valid in (
        ("network", published.network, [workload.network for workload in suite.workloads]),
        ("dataset", published.dataset, [workload.dataset for workload in suite.workloads]),
        ("label", published.label, labels),
    ):
        if word and word not in valid:
            raise BadInput(f"{where}.{key}: the suite has no {key} {word!r}{nearest(word, set(valid))}")
    if not matching_workloads(suite, published):
        raise BadInput(f"{where}.dataset: no workload has {published.network!r} on {published.dataset!r}")
    entries = [
        entry
        for entry in suite.methods
        if published.label in ("", entry.shown)
        and (not published.network or not entry.networks or published.network in entry.networks)
    ]
    if not entries:
        raise BadInput(f"{where}.label: {published.label!r} is not meant for {published.network!r}")
    if published.strength is not None:
        grids = [entry.strengths or () for entry in entries]
        if not published.label or not all(grids):
            raise BadInput(f"{where}.strength: needs a label whose method entry names its strengths")
        given = {strength for grid in grids for strength in grid}
        if published.strength not in given:
            hint = nearest_number(published.strength, given)
            raise BadInput(f"{where}.strength: {published.label!r} has no {published.strength:g}{hint}")
    if published.has_figures:
        for key in ("network", "label", "provenance"):
            if not getattr(published, key):
                raise BadInput(f"{where}.{key}: missing beside a figure")
        if len(matching_workloads(suite, published)) > 1:
            raise BadInput(f"{where}.dataset: missing, for {published.network!r} has several")
    elif published.provenance is not None:
        raise BadInput(f"{where}.provenance: there is no figure that it could be of")


def matching_workloads(suite: Suite, published: Published) -> list[WorkloadEntry]:
    """The workloads that a published entry is about."""
    return [
        workload
        for workload in suite.workloads
        if published.network in ("", workload.network) and published.dataset in ("", workload.dataset)
    ]


def one_line(error: ValidationError, model: type[BaseModel]) -> str:
    """One complaint of a pydantic error as `key: what is wrong (did you mean …)`; a misspelt key before the key that is
    missing for it."""
    first = min(error.errors(), key=lambda complaint: complaint["type"] != "extra_forbidden")
    location = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        key = str(first["loc"][-1])
        return f"{location}: unknown key{nearest(key, _fields_at(model, first['loc'][:-1]))}"
    if first["type"] == "missing":
        return f"{location}: missing"
    message = (first["msg"][0].lower() + first["msg"][1:]).replace("a valid tuple", "a list")
    given = "" if isinstance(first["input"], dict | list) else f", got {first['input']!r}"
    return f"{location}: {message}{given}"


def _fields_at(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """The keys that are valid at a place of a nested model."""
    for part in location:
        if isinstance(part, int) or part not in model.model_fields:
            continue
        inner = model.model_fields[part].annotation
        for candidate in (inner, *getattr(inner, "__args__", ())):
            if isinstance(candidate, type) and issubclass(candidate, BaseModel):
                model = candidate
    return list(model.model_fields)
