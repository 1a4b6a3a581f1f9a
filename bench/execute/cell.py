"""One cell, from data to records: train, then remove, certify and score each operating point."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import methods
from bench import data, networks
from bench.cells import Cell
from bench.compaction import (
    Compacted,
    Dynamic,
    compact,
    find_sites,
    masked_reference,
    top1_changes,
)
from bench.compaction.archive import save_compact
from bench.compaction.gating import cut_gates, with_gates
from bench.compaction.verify import FLOAT32_BOUND, Certificate, difference
from bench.data.batches import Normalise, evaluation_batch, ordered
from bench.data.split import Split
from bench.device import exact_float32, place
from bench.errors import BadInput, CellFailed
from bench.execute import layout
from bench.execute.memory import T, in_memory, raise_if_lost
from bench.execute.outcome import Outcome, describe_failure
from bench.execute.planning import plan_of
from bench.execute.subject import Subject, resting_context, units_left
from bench.measure.accuracy import score
from bench.measure.cost import cost
from bench.measure.dynamic import dynamic_cost, with_gate_cost
from bench.records.schema import CertificatePart, Failure, PointRecord
from bench.records.store import Store
from bench.training.checkpoint import read_state, write_state
from bench.training.loop import Loop, load_trained, parameter_hash
from bench.training.phases import PlannedPhase, plan_phases
from bench.training.recipe import Recipe
from bench.training.thinning import masks_of, take_away
from methods.base import SparsityPlan
from methods.input_gate import InputGate

REAL_IMAGES = 256
"""How many validation images the certificate compares on, beside random inputs."""

STORED_IMAGES = 16
"""How many of them are stored with a network that has input gates."""

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
    gates: dict[str, InputGate]
    certificate: CertificatePart


class CellRun:
    """Runs a cell against a results folder; every outcome, good or bad, becomes a record."""

    def __init__(
        self, cell: Cell, results: Path, data_root: Path | None, device: torch.device, report: Report
    ) -> None:
        self.cell, self.results, self.data_root = cell, results, data_root
        self.device, self.report = device, report
        self.store, self.outcome = Store(results), Outcome(cell, device)
        self.recipe = Recipe(**cell.workload.recipe)
        self._parts = 1

    @exact_float32()
    def run(self, retry_failed: bool = False) -> bool:
        """True when every stage of the cell is done. A finished stage is not done again. Raises GpuLost and
        DiskFull, which leave no record."""
        finished = {"done"} if retry_failed else {"done", "failed"}
        points = [(s, p) for s, p in self.cell.points if self.store.status("point", p) not in finished]
        began = time.perf_counter()
        try:
            self.open_data()
            trained = self._in_memory(self._train_stage)
        except Exception as error:
            raise_if_lost(error)
            failure = describe_failure(error, self.recipe, self.cell.method_file)
            self._record_untrained(failure, time.perf_counter() - began)
            for strength, point in points:
                self.store.write(self.outcome.point(strength, point, "failed", 0.0, failure=failure))
            return False
        for at, (strength, point) in enumerate(points):
            self.report(0.9 + 0.1 * at / len(points), f"removing at {strength:g}")
            began = time.perf_counter()
            try:
                self.store.write(self._point_stage(trained, strength, point))
            except Exception as error:
                raise_if_lost(error)
                seconds = time.perf_counter() - began
                failure = describe_failure(error, method_file=self.cell.method_file)
                self.store.write(self.outcome.point(strength, point, "failed", seconds, failure=failure))
        return all(self.store.status("point", point) == "done" for _, point in self.cell.points)

    @exact_float32()
    def run_pretraining(self) -> bool:
        """Only the plain training that this cell shares with others. A failure is left to the cells to record. Raises
        GpuLost and DiskFull."""
        try:
            self.open_data()
            self._in_memory(self._pretrain_alone)
        except Exception as error:
            raise_if_lost(error)
            return False
        return True

    def record_lost(self, kind: str, reason: str) -> None:
        """Failed records for a cell whose process died or ran out of time."""
        failure = Failure(kind=kind, reason=reason)
        self._record_untrained(failure, 0.0)
        for strength, point in self.cell.points:
            if self.store.status("point", point) is None:
                self.store.write(self.outcome.point(strength, point, "failed", 0.0, failure=failure))

    def _record_untrained(self, failure: Failure, seconds: float) -> None:
        """Of a training that is done the record stays: to take it up again is what failed."""
        if self.store.status("train", self.cell.train_id) != "done":
            self.store.write(self.outcome.train("failed", seconds, failure=failure))

    def open_data(self) -> None:
        """Raises BadInput where the data is missing or damaged, or is not what was planned with: the files of a data
        set may change while a long run is under way, and its records would name the data of before."""
        workload = self.cell.workload
        dataset = data.load(workload.dataset, self.data_root)
        if dataset.fingerprint != workload.dataset_fingerprint:
            raise BadInput(f"data set {workload.dataset!r}: has changed since the run was planned")
        self.dataset = replace(
            dataset, train=dataset.train.to(self.device), validation=dataset.validation.to(self.device)
        )
        self.example = torch.zeros(1, *dataset.input_shape, device=self.device)

    # Training ------------------------------------------------------------------------------------------------------

    def _in_memory(self, train: Callable[[], T]) -> T:
        def attempt(parts: int) -> T:
            self._parts = parts
            return train()

        allowed = self.recipe.accumulate_on_out_of_memory
        return in_memory(attempt, max(1, self.recipe.batch_size // 2) if allowed else 1)

    def _pretrain_alone(self) -> None:
        subject = self._fresh()
        planned = plan_phases(subject.method.phases(self.recipe.epochs), self.recipe.epochs)[0]
        self._load_pretrained(subject.network, planned)

    def _train_stage(self) -> Subject:
        """Train, or take up what a former run has trained."""
        path = layout.trained(self.results, self.cell.train_id)
        if self.store.status("train", self.cell.train_id) == "done" and (trained := self.reload()):
            return trained
        subject = self._fresh()
        initial = parameter_hash(subject.network)
        phases = plan_phases(subject.method.phases(self.recipe.epochs), self.recipe.epochs)
        shared = None
        if self.cell.pretraining is not None:
            shared = self._load_pretrained(subject.network, phases[0])
            phases = phases[1:]
        began = time.perf_counter()
        loop = self._loop(subject, path, self.cell.method.source_digest)
        progress = loop.run(phases)
        write_state(path, loop.state())
        subject.detach()
        subject.sites = loop.sites
        subject.without(loop.removed)
        seconds = loop.seconds_before + time.perf_counter() - began
        self.store.write(self.outcome.train("done", seconds, progress, initial, shared))
        return subject

    def _fresh(self) -> Subject:
        """As training finds it."""
        subject = Subject.of(self.cell, self.dataset, self.example)
        subject.load_start(self.cell.workload)
        return subject

    def reload(self) -> Subject | None:
        """The network of a former run, its method detached; None where its file is not there, or not finished."""
        state = read_state(layout.trained(self.results, self.cell.train_id))
        if state is None or "position" in state:
            return None
        subject = Subject.of(self.cell, self.dataset, self.example)
        context = resting_context(self.recipe, self.device, self.cell.strength, self.dataset)
        subject.method.attach(subject.network, subject.sites, context)
        if kept := masks_of(state.get("removed", {}), subject.sites):
            subject.sites = take_away(subject.network, subject.method, subject.sites, kept, self.example)
        load_trained(subject.network, subject.method, state)
        subject.detach()
        subject.without(state.get("removed", {}))
        return subject

    def _loop(self, subject: Subject, checkpoint: Path, source_digest: str) -> Loop:
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
            parts=self._parts,
            source_digest=source_digest,
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
        """The loop of a plain training: the baseline method, which adds nothing, so that no edit of a method's file
        tells on its checkpoint."""
        plain = Subject(network, [], methods.create("dense"))
        return self._loop(plain, checkpoint, "")

    # Operating points ----------------------------------------------------------------------------------------------

    def _point_stage(self, trained: Subject, strength: float, point: str) -> PointRecord:
        began = time.perf_counter()
        normalise = Normalise.of(self.dataset, self.device)
        test = data.load_test(self.cell.workload.dataset, self.data_root).to(self.device)
        proven = self.prove(trained, strength, test, normalise)
        plan, reference, compacted = proven.plan, proven.reference, proven.compacted
        delivered, gates = proven.delivered, proven.gates
        if not proven.certificate.passed:
            raise CellFailed(
                "unequal", f"the compact network is not the masked one: {proven.certificate.reason}"
            )

        def scored(subject: nn.Module, split: Split) -> Any:
            return score(subject, ordered(split, evaluation_batch(self.dataset.input_shape), normalise))

        full = networks.build(self.cell.workload.network, self.dataset.input_shape, self.dataset.classes).to(
            self.device
        )
        sites = find_sites(full, self.example)
        save_compact(
            layout.compact(self.results, point),
            compacted,
            self.cell.workload.network,
            self.dataset.input_shape,
            self.dataset.classes,
            Dynamic(gates, normalise(self.dataset.validation.images[:STORED_IMAGES])) if gates else None,
        )
        kept = units_left(compacted, sites)
        activity, dynamic = dict(plan.expected_activity), None
        if gates:
            left = find_sites(compacted.network, self.example)
            dynamic = dynamic_cost(compacted.network, left, gates, activity, self.example)
        return self.outcome.point(
            strength,
            point,
            "done",
            time.perf_counter() - began,
            validation=scored(delivered, self.dataset.validation),
            test=scored(delivered, test),
            masked_validation=scored(reference, self.dataset.validation),
            masked_test=scored(reference, test),
            cost=with_gate_cost(cost(compacted.network, self.example), gates),
            dense_cost=cost(full, self.example),
            certificate=proven.certificate,
            kept=kept,
            sizes={site.name: site.size for site in sites},
            layer_actions=[
                f"{change.kind} {' '.join(change.layers)}" for change in compacted.architecture.layer_changes
            ],
            expected_activity=activity,
            dynamic=dynamic,
            notes=list(plan.notes),
        )

    def prove(self, trained: Subject, strength: float, test: Split, normalise: Normalise) -> Proven:
        """The plan at `strength`, carried out and compared. Raises CellFailed where nothing is left of a site."""
        plan = plan_of(trained, strength, self.cell.seed)
        network = trained.network.eval()
        real = normalise(self.dataset.validation.images[:REAL_IMAGES])
        reference = masked_reference(network, plan, self.example)
        compacted = compact(network, plan, self.example, real, self.cell.workload.round_to)
        if compacted.collapsed:
            lost = ", ".join(compacted.collapsed)
            raise CellFailed("collapsed", f"the network loses all its units at {lost}")
        reference, delivered = place(reference, self.device), place(compacted.network, self.device)
        input_gates = trained.method.input_gates()
        left = compacted.architecture.kept
        # Of every site that is left; one in a branch that gave the same for every image is gone.
        gates = cut_gates({site: gate for site, gate in input_gates.items() if site in left}, left)
        if gates:
            reference = with_gates(reference, trained.sites, input_gates)
            delivered = with_gates(delivered, find_sites(delivered, self.example), gates)
        certificate = self._certify(reference, delivered, compacted.certificate, real, test, normalise)
        return Proven(plan, reference, trained.of_full_network(compacted), delivered, gates, certificate)

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
        batches = (
            batch.inputs for batch in ordered(test, evaluation_batch(self.dataset.input_shape), normalise)
        )
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


def pretrain(run: CellRun, network: nn.Module, planned: PlannedPhase, path: Path) -> dict[str, Any]:
    """Train the shared phase and keep it, with what it cost."""
    loop = run.pretrain_loop(network, path.with_suffix(".checkpoint"))
    progress = loop.run([planned])
    state = {"network": network.state_dict(), "progress": vars(progress)}
    write_state(path, state)
    path.with_suffix(".checkpoint").unlink(missing_ok=True)
    return state
