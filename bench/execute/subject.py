"""What a cell trains: the network with its sites, and the method at work on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

import methods
from bench import networks
from bench.cells import Cell
from bench.compaction import (
    Architecture,
    Compacted,
    LayerChange,
    apply_architecture,
)
from bench.data.split import Dataset
from bench.device import place
from bench.errors import BadInput
from bench.execute.attachments import attachments, own_tensors
from bench.offer import all_sites, offered_sites
from bench.records.schema import Workload
from bench.sources import source_digest, source_file
from bench.training.recipe import Recipe
from bench.training.seeds import stream
from bench.training.thinning import Removed, composed, units_of
from methods.base import Method, Phase, Site, StepContext


@dataclass
class Subject:
    """sites: those that the method is offered. thinned: what of the full network it was built with, or trained on
    with, where the method asked for less. plain: what of its attachments the network has without a method."""

    network: nn.Module
    sites: list[Site]
    method: Method
    thinned: Architecture | None = None
    plain: set[str] = field(init=False)

    def __post_init__(self) -> None:
        self.plain = attachments(self.network) | own_tensors(self.network)

    @classmethod
    def of(cls, cell: Cell, dataset: Dataset, example: Tensor) -> Subject:
        """With initial weights, thinned where the method asks for it. example: on the device that trains. Raises
        BadInput where the code of the network or of the method is not what was planned with."""
        torch.manual_seed(stream(cell.seed, "init"))
        network = networks.build(cell.workload.network, dataset.input_shape, dataset.classes)
        networks.check_unchanged(cell.workload.network, network, cell.workload.network_digest)
        network = place(network, example.device, cell.workload.cpu.memory_format)
        method, streams, round_to = create_method(cell), cell.workload.streams, cell.workload.round_to
        sites = offered_sites(all_sites(network, example), method, streams)
        shape = method.shape(sites, cell.strength) if cell.strength is not None else None
        if shape is None:
            return cls(network, sites, method)
        thinned = Architecture(
            kept=units_of({site: rounded_up(mask, round_to) for site, mask in shape.kept.items()}),
            layer_changes=tuple(LayerChange(kind=a.kind, layers=a.layers) for a in shape.layer_actions),
        )
        thin = apply_architecture(network, thinned, example)
        thin = place(thin, example.device, cell.workload.cpu.memory_format)
        torch.manual_seed(stream(cell.seed, "init"))
        initialise(thin, network)
        return cls(thin, offered_sites(all_sites(thin, example), method, streams), method, thinned)

    def load_start(self, workload: Workload) -> None:
        """What training starts from. A shape of the method's own starts afresh: it is there to show what it learns
        without these weights. Raises BadInput where the weights cannot be had or do not fit."""
        if self.thinned is None:
            start = workload.start
            path, sha256 = (Path(start.path), start.sha256) if start else (None, "")
            networks.load_start(self.network, workload.network, path, sha256)

    def detach(self) -> None:
        """Takes the method off the network. Raises RuntimeError where it leaves something behind."""
        self.method.detach()
        if left := attachments(self.network) - self.plain:
            raise RuntimeError(
                f"detach of {self.method.name} leaves {', '.join(sorted(left)[:3])}: all that it puts in has to go"
            )

    def without(self, removed: Removed) -> None:
        """Note what the training has taken away for good."""
        if removed:
            before = self.thinned or Architecture()
            self.thinned = before.model_copy(update={"kept": composed(before.kept, removed)})

    def of_full_network(self, compacted: Compacted) -> Compacted:
        """The same compact network, its architecture told in units of the full one."""
        if self.thinned is None:
            return compacted
        kept = composed(self.thinned.kept, compacted.architecture.kept)
        changes = (*self.thinned.layer_changes, *compacted.architecture.layer_changes)
        architecture = compacted.architecture.model_copy(
            update={"kept": kept, "layer_changes": changes, "own_code": None}
        )
        return Compacted(
            compacted.network, compacted.certificate, architecture, compacted.collapsed, compacted.pinned
        )


def rounded_up(kept: Tensor, multiple: int) -> Tensor:
    """(size,) bool: the first of the units that would go stay too, until a multiple of `multiple` does, or all."""
    missing = -int(kept.sum()) % multiple
    return kept | (~kept & ((~kept).cumsum(0) <= missing))


def initialise(network: nn.Module, full: nn.Module | None = None) -> None:
    """Fresh weights from torch's global generator: every layer's own, then those of whatever contains layers and has an
    initialisation of its own. full: what `network` was cut from, for of a network whose calls were replaced as well
    only the layers are of their own class."""
    modules = dict(network.named_modules())
    whole = dict((full or network).named_modules())
    layers = [path for path, module in modules.items() if not list(module.children())]
    for path in (*layers, *(path for path in reversed(modules) if path not in layers)):
        kind = type(whole.get(path, modules[path]) if path not in layers else modules[path])
        if callable(reset := getattr(kind, "reset_parameters", None)):
            reset(modules[path])


def units_left(compacted: Compacted, sites: Sequence[Site]) -> dict[str, int]:
    """By site of the full network; none where all its layers were merged into others or dropped. A stream is there as
    long as one of its layers is, and what is left of it is named by the first of those."""
    modules = dict(compacted.network.named_modules())
    kept = compacted.architecture.kept
    left = {}
    for site in sites:
        there = [layer for layer in site.producers if hasattr(modules.get(layer), "weight")]
        named = [len(kept[layer]) for layer in there if layer in kept]
        left[site.name] = named[0] if named else site.size if there else 0
    return left


def create_method(cell: Cell) -> Method:
    """The method of a cell, built-in or of a file, with the cell's settings. Raises BadInput where its code is not what
    was planned with: the records would name that of before."""
    if cell.method_file is None:
        method = methods.create(cell.method.name, **cell.method.config)
        _check_unchanged(cell, source_file(type(method), None))
        return method
    # Before it is loaded, for once loaded it stays what it is, whatever becomes of the file.
    _check_unchanged(cell, cell.method_file)
    kind = methods.load_file(Path(cell.method_file))
    return kind(kind.Config(**cell.method.config))


def _check_unchanged(cell: Cell, file: str) -> None:
    if source_digest(file) != cell.method.source_digest:
        raise BadInput(f"method {cell.method.name!r}: {file} has changed since the run was planned")


def resting_context(
    recipe: Recipe, device: torch.device, strength: float | None, dataset: Dataset
) -> StepContext:
    """For a method that only plans: nothing is trained any more."""
    per_epoch = recipe.steps_per_epoch(len(dataset.train.labels))
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
