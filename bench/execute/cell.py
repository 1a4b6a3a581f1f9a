"""One cell, from data to records: train, then remove, certify and score each operating point."""

from __future__ import annotations

import resource
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import methods
from bench import data, networks
from bench.cells import Cell
from bench.compaction import (
    Architecture,
    Compacted,
    LayerChange,
    apply_architecture,
    compact,
    find_sites,
    masked_reference,
    top1_changes,
)
from bench.compaction.archive import save_compact
from bench.compaction.verify import FLOAT32_BOUND, Certificate, difference
from bench.data.batches import Normalise, ordered
from bench.data.split import Dataset, Split
from bench.errors import CellFailed
from bench.execute import layout
from bench.execute.dynamic import cut_gates, expected_macs, with_gate_cost, with_gates
from bench.measure.accuracy import score
from bench.measure.cost import cost
from bench.measure.machine import describe, versions
from bench.records.schema import CertificatePart, Failure, PointRecord, TrainRecord
from bench.records.store import Store
from bench.training.checkpoint import read_state, write_state
from bench.training.loop import Loop, Progress, load_trained, parameter_hash
from bench.training.phases import PlannedPhase, plan_phases
from bench.training.recipe import Recipe
from bench.training.seeds import stream
from methods.base import Method, Phase, Site, SparsityPlan, StepContext

EVALUATION_BATCH = 1024
REAL_IMAGES = 256
"""How many validation images the certificate compares on, beside random inputs."""

Report = Callable[[float, str], None]
"""Told of the fraction of the cell that is done, and of what it is at."""


@dataclass(frozen=True)
class Proven:
    """An operating point: what the plan removes, the full network with that switched off, the compact network (its
    architecture told in units of the full one), and whether the two are equal. delivered: the compact network with the
    gates of a dynamic method, `gates`, in place; without such gates the compact network itself."""

    plan: SparsityPlan
    reference: nn.Module
    compacted: Compacted
    delivered: nn.Module
    gates: dict[str, nn.Module]
    notes: list[str]
    certificate: CertificatePart


class CellRun:
    """Runs a cell against a results folder; every outcome, good or bad, becomes a record."""

    def __init__(
        self, cell: Cell, results: Path, data_root: Path | None, device: torch.device, report: Report
    ) -> None:
        self.cell, self.results, self.data_root = cell, results, data_root
        self.device, self.report = device, report
        self.store = Store(results)
        self.recipe = Recipe(**cell.workload.recipe)

    def run(self, retry_failed: bool = False) -> bool:
        """True when every stage of the cell is done. A finished stage is not done again."""
        finished = {"done"} if retry_failed else {"done", "failed"}
        points = [(s, p) for s, p in self.cell.points if self.store.status("point", p) not in finished]
        began = time.perf_counter()
        try:
            self.open_data()
            trained = self._train_stage()
        except Exception as error:
            failure = describe_failure(error)
            self.store.write(self._train_record("failed", time.perf_counter() - began, failure=failure))
            for strength, point in points:
                self.store.write(self._point_record(strength, point, "failed", 0.0, failure=failure))
            return False
        for at, (strength, point) in enumerate(points):
            self.report(0.9 + 0.1 * at / len(points), f"removing at {strength:g}")
            began = time.perf_counter()
            try:
                record = self._point_stage(trained, strength, point)
            except Exception as error:
                seconds = time.perf_counter() - began
                record = self._point_record(
                    strength, point, "failed", seconds, failure=describe_failure(error)
                )
            self.store.write(record)
        return all(self.store.status("point", point) == "done" for _, point in self.cell.points)

    def run_pretraining(self) -> bool:
        """Only the plain training that this cell shares with others. A failure is left to the cells to record."""
        try:
            self.open_data()
            subject = self._subject()
            planned = plan_phases(subject.method.phases(self.recipe.epochs), self.recipe.epochs)[0]
            self._load_pretrained(subject.network, planned)
        except Exception:
            return False
        return True

    def record_lost(self, kind: str, reason: str) -> None:
        """Failed records for a cell whose process died or ran out of time."""
        failure = Failure(kind=kind, reason=reason)
        if self.store.status("train", self.cell.train_id) != "done":
            self.store.write(self._train_record("failed", 0.0, failure=failure))
        for strength, point in self.cell.points:
            if self.store.status("point", point) is None:
                self.store.write(self._point_record(strength, point, "failed", 0.0, failure=failure))

    def open_data(self) -> None:
        """Raises BadInput where the data is missing or damaged."""
        dataset = data.load(self.cell.workload.dataset, self.data_root)
        self.dataset = replace(
            dataset, train=dataset.train.to(self.device), validation=dataset.validation.to(self.device)
        )
        self.example = torch.zeros(1, *dataset.input_shape, device=self.device)

    # Training ------------------------------------------------------------------------------------------------------

    def _train_stage(self) -> _Trained:
        """Train, or take up what a former run has trained."""
        path = layout.trained(self.results, self.cell.train_id)
        if self.store.status("train", self.cell.train_id) == "done" and (trained := self.reload()):
            return trained
        subject = self._subject()
        began = time.perf_counter()
        initial = parameter_hash(subject.network)
        phases = plan_phases(subject.method.phases(self.recipe.epochs), self.recipe.epochs)
        shared = None
        if self.cell.pretraining is not None:
            shared = self._load_pretrained(subject.network, phases[0])
            phases = phases[1:]
        loop = self._loop(subject, path)
        progress = loop.run(phases)
        write_state(path, loop.state())
        subject.method.detach()
        record = self._train_record("done", time.perf_counter() - began, progress, initial, shared)
        self.store.write(record)
        return subject

    def reload(self) -> _Trained | None:
        """The network of a former run, its method detached; None where its file is not there, or not finished."""
        state = read_state(layout.trained(self.results, self.cell.train_id))
        if state is None or "position" in state:
            return None
        subject = self._subject()
        context = _resting_context(self.recipe, self.device, self.cell.strength, self.dataset)
        subject.method.attach(subject.network, subject.sites, context)
        load_trained(subject.network, subject.method, state)
        subject.method.detach()
        return subject

    def _subject(self) -> _Trained:
        """The network with its initial weights, thinned where the method asks for it, and the method."""
        cell, dataset = self.cell, self.dataset
        torch.manual_seed(stream(cell.seed, "init"))
        network = networks.build(cell.workload.network, dataset.input_shape, dataset.classes).to(self.device)
        sites = find_sites(network, self.example)
        method = _create(cell)
        shape = method.shape(sites, cell.strength) if cell.strength is not None else None
        if shape is None:
            return _Trained(network, sites, method, None)
        thinned = Architecture(
            kept={site: mask.nonzero().flatten().tolist() for site, mask in shape.kept.items()},
            layer_changes=tuple(LayerChange(kind=a.kind, layers=a.layers) for a in shape.layer_actions),
        )
        thin = apply_architecture(network, thinned, self.example)
        torch.manual_seed(stream(cell.seed, "init"))
        initialise(thin)
        return _Trained(thin, find_sites(thin, self.example), method, thinned)

    def _loop(self, subject: _Trained, checkpoint: Path) -> Loop:
        def on_epoch(epoch: int, phase: str) -> None:
            self.report(0.9 * epoch / self.recipe.epochs, phase)

        return Loop(
            subject.network,
            subject.method,
            subject.sites,
            self.dataset,
            self.recipe,
            self.cell.seed,
            self.device,
            self.cell.strength,
            checkpoint,
            on_epoch=on_epoch,
        )

    def _load_pretrained(self, network: nn.Module, planned: PlannedPhase) -> dict[str, Any]:
        """Put the shared plain training into `network`; train it first where nobody has."""
        assert self.cell.pretraining is not None
        path = layout.pretrained(self.results, self.cell.pretraining.id)
        state = read_state(path)
        if state is None:
            state = pretrain(self, network, planned, path)
        network.load_state_dict(state["network"])
        return state

    def pretrain_loop(self, network: nn.Module, checkpoint: Path) -> Loop:
        """The loop of a plain training: the baseline method, which adds nothing."""
        plain = _Trained(network, [], methods.create("dense"), None)
        return self._loop(plain, checkpoint)

    # Operating points ----------------------------------------------------------------------------------------------

    def _point_stage(self, trained: _Trained, strength: float, point: str) -> PointRecord:
        began = time.perf_counter()
        normalise = Normalise.of(self.dataset, self.device)
        test = data.load_test(self.cell.workload.dataset, self.data_root).to(self.device)
        proven = self.prove(trained, strength, test, normalise)
        plan, reference, compacted = proven.plan, proven.reference, proven.compacted
        delivered = proven.delivered
        if not proven.certificate.passed:
            raise CellFailed(
                "unequal", f"the compact network is not the masked one: {proven.certificate.reason}"
            )

        def scored(subject: nn.Module, split: Split) -> Any:
            return score(subject, ordered(split, EVALUATION_BATCH, normalise))

        full = networks.build(self.cell.workload.network, self.dataset.input_shape, self.dataset.classes).to(
            self.device
        )
        sizes = {site.name: site.size for site in find_sites(full, self.example)}
        save_compact(
            layout.compact(self.results, point),
            compacted,
            self.cell.workload.network,
            self.dataset.input_shape,
            self.dataset.classes,
        )
        kept = _units_left(compacted, sizes)
        return self._point_record(
            strength,
            point,
            "done",
            time.perf_counter() - began,
            validation=scored(delivered, self.dataset.validation),
            test=scored(delivered, test),
            masked_validation=scored(reference, self.dataset.validation),
            masked_test=scored(reference, test),
            cost=with_gate_cost(cost(compacted.network, self.example), proven.gates),
            dense_cost=cost(full, self.example),
            certificate=proven.certificate,
            kept=kept,
            sizes=sizes,
            layer_actions=[
                f"{change.kind} {' '.join(change.layers)}" for change in compacted.architecture.layer_changes
            ],
            expected_activity=dict(plan.expected_activity),
            notes=proven.notes,
        )

    def prove(self, trained: _Trained, strength: float, test: Split, normalise: Normalise) -> Proven:
        """The plan at `strength`, carried out and compared. Raises CellFailed where nothing is left of a site."""
        plan = trained.method.plan(strength)
        network = trained.network.eval()
        real = normalise(self.dataset.validation.images[:REAL_IMAGES])
        reference = masked_reference(network, plan, self.example)
        compacted = compact(network, plan, self.example, real)
        if compacted.collapsed:
            lost = ", ".join(compacted.collapsed)
            raise CellFailed("collapsed", f"the network loses all its units at {lost}")
        delivered, gates, notes = compacted.network, {}, list(plan.notes)
        if input_gates := trained.method.input_gates():
            gates = cut_gates(input_gates, compacted.architecture.kept)
            sites = find_sites(compacted.network, self.example)
            reference = with_gates(reference, trained.sites, input_gates)
            delivered = with_gates(compacted.network, sites, gates)
            macs, own = expected_macs(compacted.network, sites, plan.expected_activity, self.example)
            notes += [
                f"expected MACs with the units skipped that are not active: {macs:.0f}, and {own:.0f} for the gates",
                "MACs, latency and the stored network are of the static part, without the gates",
            ]
        certificate = self._certify(reference, delivered, compacted.certificate, real, test, normalise)
        return Proven(
            plan, reference, trained.of_full_network(compacted), delivered, gates, notes, certificate
        )

    def _certify(
        self,
        reference: nn.Module,
        delivered: nn.Module,
        proof: Certificate,
        real: Tensor,
        test: Split,
        normalise: Normalise,
    ) -> CertificatePart:
        """`proof` is about the plain networks; gates that depend on the image, if any, are in place in the two
        networks compared here."""
        batches = (batch.inputs for batch in ordered(test, EVALUATION_BATCH, normalise))
        changes, images = top1_changes(reference, delivered, batches)
        single = max(proof.difference_float32, difference(reference, delivered, [real]))
        reason = proof.reason
        if single > FLOAT32_BOUND and not reason:
            reason = f"float32 differs by {single:.2g} of the output scale (bound {FLOAT32_BOUND:g})"
        if changes and not reason:
            reason = f"the top-1 of {changes} of {images} test images differs"
        return CertificatePart(
            passed=proof.passed and changes == 0 and single <= FLOAT32_BOUND,
            difference_float64=proof.difference_float64,
            difference_float32=single,
            top1_changes=changes,
            images=images,
            removed_units=proof.removed_units,
            kept_constant_units=proof.kept_constant_units,
            reason=reason,
        )

    # Records -------------------------------------------------------------------------------------------------------

    def _common(self, seconds: float) -> dict[str, Any]:
        cell = self.cell
        return {
            "suite": cell.suite,
            "workload": cell.workload,
            "method": cell.method,
            "seed": cell.seed,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": seconds,
            "versions": versions(),
            "machine": describe(self.device),
        }

    def _train_record(
        self,
        status: Any,
        seconds: float,
        progress: Progress | None = None,
        initial: str = "",
        shared: dict[str, Any] | None = None,
        failure: Failure | None = None,
    ) -> TrainRecord:
        """A shared pretraining counts in the epochs, the steps and the history of each cell that uses it."""
        progress = progress or Progress()
        before = Progress(**shared["progress"]) if shared else Progress()
        steps = progress.steps + before.steps
        busy = progress.seconds + before.seconds
        return TrainRecord(
            **self._common(seconds),
            id=self.cell.train_id,
            kind="train",
            status=status,
            failure=failure,
            strength=self.cell.strength,
            epochs={**before.epochs, **progress.epochs},
            steps=steps,
            step_milliseconds=1000 * busy / steps if steps else None,
            peak_rss_bytes=_peak_rss_bytes(),
            shared_pretraining=self.cell.pretraining.id if shared and self.cell.pretraining else None,
            initial_weights=initial,
            data_order=before.data_order or progress.data_order,
            history=before.history + progress.history,
        )

    def _point_record(
        self, strength: float, point: str, status: Any, seconds: float, **found: Any
    ) -> PointRecord:
        return PointRecord(
            **self._common(seconds),
            id=point,
            kind="point",
            status=status,
            train_id=self.cell.train_id,
            strength=strength,
            **found,
        )


class _Trained:
    """A network with its sites and the method at work on it; `thinned`: what of the full network it was built with,
    where the method asked for less."""

    def __init__(
        self, network: nn.Module, sites: list[Site], method: Method, thinned: Architecture | None
    ) -> None:
        self.network, self.sites, self.method, self.thinned = network, sites, method, thinned

    def of_full_network(self, compacted: Compacted) -> Compacted:
        """The same compact network, its architecture told in units of the full one."""
        if self.thinned is None:
            return compacted
        inner = compacted.architecture.kept
        of_thinned = {
            site: [units[at] for at in inner[site]] if site in inner else units
            for site, units in self.thinned.kept.items()
        }
        changes = (*self.thinned.layer_changes, *compacted.architecture.layer_changes)
        architecture = compacted.architecture.model_copy(
            update={"kept": {**inner, **of_thinned}, "layer_changes": changes}
        )
        return Compacted(
            compacted.network, compacted.certificate, architecture, compacted.collapsed, compacted.pinned
        )


def initialise(network: nn.Module) -> None:
    """Fresh weights from torch's global generator: every layer's own, then those of whatever contains layers and has an
    initialisation of its own."""
    modules = list(network.modules())
    layers = [module for module in modules if not list(module.children())]
    for module in (*layers, *(module for module in reversed(modules) if module not in layers)):
        if callable(reset := getattr(module, "reset_parameters", None)):
            reset()


def _units_left(compacted: Compacted, sizes: dict[str, int]) -> dict[str, int]:
    """By site of the full network; none of a layer that was merged into the next or dropped."""
    modules = dict(compacted.network.named_modules())
    kept = compacted.architecture.kept
    return {
        site: len(kept[site]) if site in kept else size if hasattr(modules.get(site), "weight") else 0
        for site, size in sizes.items()
    }


def pretrain(run: CellRun, network: nn.Module, planned: PlannedPhase, path: Path) -> dict[str, Any]:
    """Train the shared phase and keep it, with what it cost."""
    loop = run.pretrain_loop(network, path.with_suffix(".checkpoint"))
    progress = loop.run([planned])
    state = {"network": network.state_dict(), "progress": vars(progress)}
    write_state(path, state)
    path.with_suffix(".checkpoint").unlink(missing_ok=True)
    return state


def _create(cell: Cell) -> Method:
    if cell.method_file is None:
        return methods.create(cell.method.name, **cell.method.config)
    kind = methods.load_file(Path(cell.method_file))
    return kind(kind.Config(**cell.method.config))


def _resting_context(
    recipe: Recipe, device: torch.device, strength: float | None, dataset: Dataset
) -> StepContext:
    """For a method that only plans: nothing is trained any more."""
    per_epoch = -(-len(dataset.train.labels) // recipe.batch_size)
    return StepContext(
        strength=strength,
        steps=per_epoch * recipe.epochs,
        steps_per_epoch=per_epoch,
        train_size=len(dataset.train.labels),
        device=device,
        generator=torch.Generator(device),
        task_loss=nn.functional.cross_entropy,
        phase=Phase("done", 0.0),
        step=per_epoch * recipe.epochs,
    )


def describe_failure(error: Exception) -> Failure:
    """A record's reason for whatever a cell raised."""
    detail = "".join(traceback.format_exception(error))
    if isinstance(error, CellFailed):
        return Failure(kind=error.kind, reason=str(error))
    kind = "memory" if isinstance(error, torch.OutOfMemoryError | MemoryError) else "error"
    first_line = (str(error).splitlines() or [""])[0]
    return Failure(kind=kind, reason=f"{type(error).__name__}: {first_line}", detail=detail)


def _peak_rss_bytes() -> int:
    """Of this process so far; ru_maxrss is in KiB on Linux and in bytes on macOS."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
