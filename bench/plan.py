"""A suite, resolved into cells: one training each, with the operating points that it serves.

Everything that can be refused is refused here, before anything is trained or written.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import methods
from bench import data, networks
from bench.cells import Cell, Plan, Pretraining, Skip
from bench.compaction import find_sites
from bench.device import resolve
from bench.errors import BadInput, nearest
from bench.filters import Filters
from bench.measure.macs import count_macs
from bench.measure.presets import planned_id
from bench.records.ids import digest, point_id, train_id
from bench.records.schema import MethodSettings, Workload
from bench.suite import MethodEntry, Suite, WorkloadEntry
from bench.training.phases import plan_phases
from bench.training.recipe import Recipe
from methods.base import Method, Site


def make_plan(suite: Suite, filters: Filters, data_root: Path | None, device_name: str = "cpu") -> Plan:
    """Resolve a suite. Raises BadInput for whatever of it cannot run."""
    device = resolve(device_name)
    entries = _chosen_methods(suite, filters)
    plan = Plan(suite, str(device))
    for workload in _chosen_workloads(suite, filters):
        subject = _Subject.open(workload, data_root)
        for entry, method, file in entries:
            if reason := method.supports(subject.network):
                plan.skips.append(Skip(workload.network, entry.shown, reason))
                continue
            strengths = _chosen_strengths(suite, entry, method, filters)
            for seed in _chosen(suite.seeds, filters.seeds, "seed", suite):
                plan.cells += _cells(suite, subject, entry, method, file, strengths, seed)
    if not plan.cells:
        reasons = "; ".join(f"{skip.label} on {skip.network}: {skip.reason}" for skip in plan.skips)
        raise BadInput(
            f"suite {suite.name}: nothing to run{': ' + reasons if reasons else ' with these filters'}"
        )
    _refuse_equal_entries(plan)
    if suite.measure.latency != "none":
        for cell in plan.cells:
            if cell.method.granularity != "weight":
                ids = {point: planned_id(point, device, suite.measure.latency) for _, point in cell.points}
                plan.measures.update(ids)
    plan.cells.sort(
        key=lambda cell: suite.seeds.index(cell.seed)
    )  # whole tables first, then more seeds of them
    return plan


@dataclass(frozen=True)
class _Subject:
    """A workload, opened: what the cells of all its methods have in common."""

    entry: WorkloadEntry
    workload: Workload
    network: torch.nn.Module
    sites: list[Site]
    train_size: int
    macs: int

    @classmethod
    def open(cls, entry: WorkloadEntry, data_root: Path | None) -> _Subject:
        dataset = data.load(entry.dataset, data_root)
        network = networks.build(entry.network, dataset.input_shape, dataset.classes)
        example = torch.zeros(1, *dataset.input_shape)
        sites = find_sites(network, example)
        if not sites:
            raise BadInput(f"network {entry.network}: nothing in it can be removed (no prunable site)")
        workload = Workload(
            dataset=entry.dataset,
            dataset_fingerprint=dataset.fingerprint,
            network=entry.network,
            recipe=entry.recipe.model_dump(mode="json"),
        )
        return cls(entry, workload, network, sites, len(dataset.train.labels), count_macs(network, example))


def _chosen(valid: Sequence[Any], wanted: Sequence[Any], key: str, suite: Suite) -> list[Any]:
    """`wanted` in the order of the suite, all of `valid` where nothing is wanted."""
    for word in wanted:
        if word not in valid:
            raise BadInput(
                f"suite {suite.name}: no {key} {word!r}{nearest(str(word), [str(word) for word in valid])}"
            )
    return [word for word in valid if not wanted or word in wanted]


def _chosen_workloads(suite: Suite, filters: Filters) -> list[WorkloadEntry]:
    chosen_networks = _chosen([w.network for w in suite.workloads], filters.networks, "network", suite)
    chosen_datasets = _chosen([w.dataset for w in suite.workloads], filters.datasets, "data set", suite)
    return [w for w in suite.workloads if w.network in chosen_networks and w.dataset in chosen_datasets]


def _chosen_methods(suite: Suite, filters: Filters) -> list[tuple[MethodEntry, Method, str | None]]:
    """The suite's entries that pass the filter, then the methods of files, each with its checked config."""
    valid = {word for entry in suite.methods for word in (entry.name, entry.shown)}
    for word in filters.methods:
        if word not in valid:
            raise BadInput(f"suite {suite.name}: no method {word!r}{nearest(word, valid)}")
    chosen: list[tuple[MethodEntry, Method, str | None]] = []
    for at, entry in enumerate(suite.methods):
        try:
            method = methods.create(entry.name, **entry.config)
        except ValueError as error:
            raise BadInput(f"suite {suite.name}: methods.{at}: {error}") from None
        if not filters.methods or {entry.name, entry.shown} & set(filters.methods):
            chosen.append((entry, method, None))
    for file in filters.files:
        try:
            kind = methods.load_file(Path(file))
        except ValueError as error:
            raise BadInput(str(error)) from None
        chosen.append((MethodEntry(name=kind.name), kind(), file))
    return chosen


def _chosen_strengths(suite: Suite, entry: MethodEntry, method: Method, filters: Filters) -> list[float]:
    strengths = list(entry.strengths if entry.strengths is not None else method.strengths)
    for strength in strengths:
        if strength < 0 or (method.traits.strength == "ratio" and strength >= 1):
            raise BadInput(
                f"suite {suite.name}: method {entry.shown!r}: strengths: {strength:g} is out of range "
                f"({method.strength_meaning})"
            )
    if method.traits.strength == "none":
        return strengths
    return _chosen(strengths, filters.strengths, f"strength of {entry.shown!r}:", suite)


def _cells(
    suite: Suite,
    subject: _Subject,
    entry: MethodEntry,
    method: Method,
    file: str | None,
    strengths: list[float],
    seed: int,
) -> list[Cell]:
    traits, recipe = method.traits, subject.entry.recipe
    config = method.config.model_dump(mode="json")
    settings = MethodSettings(
        name=entry.name,
        label=entry.shown,
        config=config,
        granularity=traits.granularity,
        strength_kind=traits.strength,
        source=file or "builtin",
    )
    identity = dict(config)
    if file is not None:  # an edited file is another method
        identity["source_digest"] = hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16]
    groups: list[tuple[float | None, list[float]]]
    groups = [(None, strengths)] if traits.trains_once else [(strength, [strength]) for strength in strengths]
    cells = []
    for strength, served in groups:
        train = train_id(
            dataset=subject.workload.dataset,
            dataset_fingerprint=subject.workload.dataset_fingerprint,
            network=subject.workload.network,
            recipe=subject.workload.recipe,
            recipe_defaults=recipe_defaults(),
            method=entry.name,
            config=identity,
            config_defaults=config_defaults(type(method)),
            strength=strength,
            seed=seed,
        )
        steps = -(-subject.train_size // recipe.batch_size) * recipe.epochs
        cells.append(
            Cell(
                suite=suite.name,
                workload=subject.workload,
                method=settings,
                method_file=file,
                seed=seed,
                strength=strength,
                train_id=train,
                points=tuple((value, point_id(train, value)) for value in served),
                pretraining=_pretraining(subject, method, seed),
                steps=steps,
                step_macs=subject.macs * recipe.batch_size * traits.forward_passes,
            )
        )
    return cells


def _pretraining(subject: _Subject, method: Method, seed: int) -> Pretraining | None:
    """The leading shared phase of a method, if it has one."""
    epochs = subject.entry.recipe.epochs
    try:
        first = plan_phases(method.phases(epochs), epochs)[0]
    except ValueError as error:
        raise BadInput(f"network {subject.entry.network}: recipe.epochs: {method.name}: {error}") from None
    if not first.phase.shared:
        return None
    payload = {
        "workload": subject.workload.model_dump(mode="json"),
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
    """Two labels for the same settings would be one result shown twice."""
    seen: dict[str, str] = {}
    for cell in plan.cells:
        label = seen.setdefault(cell.train_id, cell.method.label)
        if label != cell.method.label:
            raise BadInput(
                f"suite {cell.suite}: methods: {label!r} and {cell.method.label!r} are the same settings"
            )
