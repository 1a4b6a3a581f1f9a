"""A suite, resolved into cells: one training each, with the operating points that it serves.

Everything that can be refused is refused here, before anything is trained or written.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import methods
from bench import data, networks
from bench.cells import Cell, Plan, Pretraining, Skip
from bench.choose import Entry, entries_of, numbers, strengths_of, workloads
from bench.compaction.sites import what_pins
from bench.data.image_files import ImageFiles
from bench.device import resolve
from bench.errors import BadInput, nearest
from bench.filters import Filters
from bench.folder import in_one_line
from bench.measure.macs import count_macs
from bench.measure.presets import estimated_seconds, planned_id
from bench.measure.training_speed import training_rate
from bench.offer import all_sites, skip_reason
from bench.records.ids import digest, point_id, train_id
from bench.records.schema import Cpu, MethodSettings, Start, Workload
from bench.sources import source_digest, source_file
from bench.suite import Suite, WorkloadEntry, matching_workloads
from bench.training.phases import plan_phases
from bench.training.recipe import Recipe
from methods.base import Method, Site


def make_plan(suite: Suite, filters: Filters, data_root: Path | None, device_name: str = "cpu") -> Plan:
    """Resolve a suite. Raises BadInput for whatever of it cannot run."""
    device = resolve(device_name)
    entries = entries_of(suite, filters)
    seeds = numbers(suite, suite.seeds, filters.seeds, "seed")
    strengths = strengths_of(suite, entries, filters)
    plan = Plan(suite, str(device))
    for at, workload in workloads(suite, filters):
        subject = _Subject.open(f"{suite.where}: workloads.{at}", workload, data_root, device)
        _check_published_sites(suite, subject)
        plan.reads_files |= subject.reads_files
        plan.pinned[workload.network] = subject.pinned
        for entry in entries:
            if entry.entry.networks and workload.network not in entry.entry.networks:
                continue
            try:
                _add_cells(plan, subject, entry, strengths[entry.where], seeds)
            except BadInput:
                raise
            except Exception as error:  # of the hooks that say what a method is
                raise BadInput(f"{entry.where}: {in_one_line(error)}") from error
    if not plan.cells:
        reasons = "; ".join(f"{skip.label} on {skip.network}: {skip.reason}" for skip in plan.skips)
        raise BadInput(f"{suite.where}: nothing to run{': ' + reasons if reasons else ' with these filters'}")
    _refuse_equal_entries(plan)
    plan.cells.sort(
        key=lambda cell: suite.seeds.index(cell.seed)
    )  # whole tables first, then more seeds of them
    return plan


def _check_published_sites(suite: Suite, subject: _Subject) -> None:
    """That published units are of sites that the network has."""
    sites = {site.name for site in subject.sites if site.kind != "branch"}
    for at, published in enumerate(suite.published):
        if subject.entry in matching_workloads(suite, published):
            for key in ("units", "activity"):
                for site in getattr(published, key):
                    if site not in sites:
                        raise BadInput(
                            f"{suite.where}: published.{at}.{key}: "
                            f"{subject.entry.network!r} has no site {site!r}{nearest(site, sites)}"
                        )


def _add_cells(
    plan: Plan, subject: _Subject, entry: Entry, strengths: list[float], seeds: Sequence[int]
) -> None:
    """The cells of one method on one workload, or the reason why there are none."""
    streams = subject.entry.streams
    if reason := skip_reason(entry.method, subject.network, subject.sites, streams):
        plan.skips.append(Skip(subject.entry.network, entry.entry.shown, reason))
    elif strengths:
        for seed in seeds:
            plan.cells += _cells(plan, subject, entry, strengths, seed)


@dataclass(frozen=True)
class _Subject:
    """A workload, opened: what the cells of all its methods have in common. where: what a complaint begins with.
    pinned, reads_files: see `Plan`. scored: images that go through a network for each operating point. training_rate:
    see `Cell`."""

    where: str
    entry: WorkloadEntry
    workload: Workload
    network: torch.nn.Module
    sites: list[Site]
    pinned: tuple[str, ...]
    reads_files: bool
    train_size: int
    scored: int
    macs: int
    training_rate: float

    @classmethod
    def open(cls, where: str, entry: WorkloadEntry, data_root: Path | None, device: torch.device) -> _Subject:
        with _named(f"{where}.dataset"):
            dataset = data.load(entry.dataset, data_root)
        with _named(f"{where}.network"):
            network = networks.build(entry.network, dataset.input_shape, dataset.classes)
            example = torch.zeros(1, *dataset.input_shape)
            with _named(f"network {entry.network!r}"):
                sites = all_sites(network, example)
                pinned = what_pins(network, example)
            if all(site.kind == "branch" for site in sites):
                raise BadInput(f"network {entry.network!r}: nothing in it can be removed (no prunable site)")
        with _named(f"{where}.{'start' if entry.start else 'network'}"):
            start = _start(entry, network)
        workload = Workload(
            dataset=entry.dataset,
            dataset_fingerprint=dataset.fingerprint,
            network=entry.network,
            recipe=entry.recipe.model_dump(mode="json"),
            start=start,
            streams=entry.streams,
            round_to=entry.round_to,
            network_digest=networks.own_digest(entry.network, network) if entry.own_network else "",
            cpu=entry.cpu if device.type == "cpu" else Cpu(),
        )
        # Compact network and reference: the scores on both splits, and the same top-1 on test.
        scored = 2 * len(dataset.validation) + 4 * dataset.test_size
        macs = count_macs(network, example)
        rate = training_rate(network, macs, dataset.input_shape, device)
        reads_files = isinstance(dataset.train.images, ImageFiles)
        train_size = len(dataset.train)
        return cls(
            where, entry, workload, network, sites, pinned, reads_files, train_size, scored, macs, rate
        )


def _start(entry: WorkloadEntry, network: torch.nn.Module) -> Start | None:
    """What training starts from, tried on `network`. Raises BadInput where it does not fit."""
    path = None if entry.start is None else Path(entry.start)
    networks.load_start(network, entry.network, path)
    return None if path is None else Start(path=str(entry.start), sha256=networks.checkpoint_digest(path))


@contextmanager
def _named(where: str) -> Iterator[None]:
    """Put the place in the suite before a complaint."""
    try:
        yield
    except BadInput as error:
        raise BadInput(f"{where}: {error}") from error


def _cells(plan: Plan, subject: _Subject, opened: Entry, strengths: list[float], seed: int) -> list[Cell]:
    entry, method, file = opened.entry, opened.method, opened.file
    traits, recipe, device = method.traits, subject.entry.recipe, torch.device(plan.device)
    config = method.config.model_dump(mode="json")
    settings = MethodSettings(
        name=entry.name,
        label=entry.shown,
        config=config,
        granularity=traits.granularity,
        strength_kind=traits.strength,
        source=file or methods.source(entry.name),
        source_digest=source_digest(source_file(type(method), file)),
    )
    groups: list[tuple[float | None, list[float]]]
    groups = [(None, strengths)] if traits.trains_once else [(strength, [strength]) for strength in strengths]
    preset = plan.suite.measure.latency
    measured = preset != "none" and traits.granularity != "weight"
    cells = []
    for strength, served in groups:
        train = identify(subject.workload, settings, type(method), strength, seed)
        points = tuple((value, point_id(train, value)) for value in served)
        if measured:
            plan.measures.update({point: planned_id(point, device, preset) for _, point in points})
        steps = recipe.steps_per_epoch(subject.train_size) * recipe.epochs
        cells.append(
            Cell(
                suite=plan.suite.name,
                workload=subject.workload,
                method=settings,
                method_file=file,
                seed=seed,
                strength=strength,
                train_id=train,
                points=points,
                pretraining=_pretraining(subject, method, seed),
                steps=steps,
                step_macs=subject.macs * recipe.batch_size * traits.forward_passes,
                point_macs=subject.macs * subject.scored,
                training_rate=subject.training_rate,
                measure_seconds=estimated_seconds(preset, subject.macs, device) if measured else 0.0,
            )
        )
    return cells


def identify(
    workload: Workload,
    settings: MethodSettings,
    kind: type[Method],
    strength: float | None,
    seed: int,
) -> str:
    """The id of a training."""
    return train_id(
        dataset=workload.dataset,
        dataset_fingerprint=workload.dataset_fingerprint,
        network=workload.network,
        recipe=workload.recipe,
        recipe_defaults=recipe_defaults(),
        method=settings.name,
        config=settings.variant(),
        config_defaults=config_defaults(kind),
        strength=strength,
        seed=seed,
        beside_recipe=workload.beside_recipe(),
    )


def _pretraining(subject: _Subject, method: Method, seed: int) -> Pretraining | None:
    """The leading shared phase of a method, if it has one."""
    epochs = subject.entry.recipe.epochs
    try:
        first = plan_phases(method.phases(epochs), epochs)[0]
    except ValueError as error:
        raise BadInput(f"{subject.where}.recipe.epochs: {method.name}: {error}") from None
    if not first.phase.shared:
        return None
    workload = subject.workload
    start = {"start": workload.start.sha256} if workload.start else {}
    payload = {
        "workload": workload.model_dump(mode="json", exclude={"start", "streams", "round_to", "cpu"})
        | start
        | workload.unusual_cpu(),
        "epochs": first.epochs,
        "rate_scale": first.phase.learning_rate_scale,
    }
    return Pretraining(f"{digest(payload)}-s{seed}", first.epochs, first.phase.learning_rate_scale)


def recipe_defaults() -> dict[str, Any]:
    """The defaults of a recipe, without those that have none."""
    return Recipe(epochs=1).model_dump(mode="json", exclude={"epochs"})


def config_defaults(kind: type[Method]) -> dict[str, Any]:
    """The defaults of a method's config."""
    fields = kind.Config.model_fields
    return {
        name: f.get_default(call_default_factory=True) for name, f in fields.items() if not f.is_required()
    }


def _refuse_equal_entries(plan: Plan) -> None:
    """Two labels for the same settings would be one result shown twice, two cells of one id one training run twice at
    once."""
    seen: dict[str, str] = {}
    for cell in plan.cells:
        label = cell.method.label
        if cell.train_id not in seen:
            seen[cell.train_id] = label
        elif seen[cell.train_id] == label:
            raise BadInput(f"{plan.suite.where}: {cell.title} stands there twice")
        else:
            other = seen[cell.train_id]
            raise BadInput(f"{plan.suite.where}: methods: {other!r} and {label!r} are the same settings")
