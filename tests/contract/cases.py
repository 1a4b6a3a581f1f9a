"""The cases of the contract tests: every discovered method with its defaults, every entry of the main suite, and the
other modes in which a method runs different code."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

import methods
from bench import data, networks, suite
from bench.execute.cell import CellRun
from bench.filters import Filters
from bench.offer import all_sites, offered_sites, skip_reason
from bench.plan import Cell, make_plan
from bench.records.schema import PointRecord, TrainRecord
from bench.records.store import Store
from bench.training.loop import Loop
from bench.training.phases import plan_phases
from bench.training.recipe import Recipe
from bench.training.seeds import stream
from methods.base import Method, Site

EPOCHS = 4
NETWORKS = ("digits-cnn", "tests.contract.residual:build")
"""A case is of the first that its method runs on."""

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Case:
    """A method with one setting."""

    name: str
    config: dict[str, Any] = field(default_factory=dict)

    def create(self) -> Method:
        return methods.create(self.name, **self.config)

    @property
    def network(self) -> str:
        method = self.create()
        runs = (name for name in NETWORKS if skip_reason(method, *analysed(name), streams=False) is None)
        return next(runs, NETWORKS[0])

    @property
    def epochs(self) -> int:
        """At least one for each phase."""
        return max(EPOCHS, len(self.create().phases(EPOCHS)))

    @property
    def recipe(self) -> Recipe:
        return Recipe(epochs=self.epochs, batch_size=128, learning_rate=4e-3)

    def __str__(self) -> str:
        return "-".join([self.name, *(f"{key}={value}" for key, value in self.config.items())])


@functools.cache
def analysed(network: str) -> tuple[nn.Module, list[Site]]:
    """A network for the digits, and all its sites."""
    built = networks.build(network, (1, 8, 8), 10)
    return built, all_sites(built, torch.zeros(1, 1, 8, 8))


MODES = [
    *(
        Case("magnitude", {"granularity": granularity, "schedule": schedule, "scope": "global"})
        for granularity in ("unit", "weight")
        for schedule in ("one-shot", "gradual")
    ),
    Case("targeted-dropout", {"unit_noise": "weight"}),
    # Takes units out in the middle of the training.
    Case("dependent-beta-bernoulli", {"gate_learning_rate": 0.1, "threshold": 0.6}),
    Case("serene", {"sensitivity": "lower-bound", "level": "weight"}),
    Case("serene", {"sensitivity": "local"}),
    Case("serene", {"sensitivity": "none"}),
    Case("plasticity", {"mode": "expand"}),
    Case("heterogeneous-sensitivity", {"finetune": 0.25}),
    Case("heterogeneous-sensitivity", {"selection": "l-curve"}),
    Case("layer-sparsity", {"refit_from": "random"}),
    Case("random", {"ratios": {"conv2": 0.5, "conv3": 0.25}}),
    Case("same-shape", {"kept": {"conv2": 12}}),
]


def all_cases() -> list[Case]:
    """The defaults first; an entry of the suite or a mode that equals them is not run twice."""
    cases = [Case(name) for name in methods.available()]
    for case in [*(Case(entry.name, entry.config) for entry in suite.load("digits").methods), *MODES]:
        if case.create().config not in [c.create().config for c in cases if c.name == case.name]:
            cases.append(case)
    return cases


def cells_of(
    case: Case,
    strengths: tuple[float, ...] | None = None,
    seed: int = 0,
    network: str | None = None,
    streams: bool = False,
) -> list[Cell]:
    """The cells of one method on the digits, with a budget of a few epochs. network: that of the case by default.
    streams: whether units of residual streams are offered too."""
    small = suite.Suite.model_validate(
        {
            "name": "contract",
            "title": "contract",
            "seeds": [seed],
            "workloads": [
                {
                    "dataset": "digits",
                    "network": network or case.network,
                    "streams": streams,
                    "recipe": case.recipe.model_dump(mode="json"),
                }
            ],
            "methods": [{"name": case.name, "config": case.config, "strengths": strengths}],
        }
    )
    return make_plan(small, Filters(), None).cells


def open_loop(
    case: Case, strength: float, network: str | None = None, **settings: Any
) -> tuple[nn.Module, Method, Loop]:
    """The training of a case without the cell around it. network: that of the case by default."""
    dataset = data.load("digits", None)
    name = network or case.network  # may build it to find out, which draws
    torch.manual_seed(stream(0, "init"))
    built = networks.build(name, dataset.input_shape, dataset.classes)
    method = case.create()
    example = torch.zeros(1, *dataset.input_shape)
    sites = offered_sites(all_sites(built, example), method, streams=False)
    given = None if method.traits.trains_once else strength
    return built, method, Loop(built, method, sites, dataset, case.recipe, 0, CPU, given, **settings)


def phases_of(case: Case) -> list[Any]:
    return plan_phases(case.create().phases(case.epochs), case.epochs)


@dataclass
class Straight:
    """A training in one go. trained: the state at its end; network and method are detached since."""

    network: nn.Module
    method: Method
    loop: Loop
    trained: dict[str, torch.Tensor]


def train_straight(case: Case, strength: float) -> Straight:
    network, method, loop = open_loop(case, strength)
    loop.run(phases_of(case))
    trained = {name: value.clone() for name, value in network.state_dict().items()}
    method.detach()
    return Straight(network, method, loop, trained)


@dataclass
class Outcome:
    """What one cell has left in a results folder."""

    results: Path
    train: TrainRecord
    points: list[PointRecord]


def run_cell(cell: Cell, results: Path) -> Outcome:
    torch.set_num_threads(1)
    CellRun(cell, results, None, CPU, lambda fraction, doing: None).run()
    store = Store(results)
    train = store.read("train", cell.train_id)
    points = [store.read("point", point) for _, point in cell.points]
    assert isinstance(train, TrainRecord)
    return Outcome(results, train, [point for point in points if isinstance(point, PointRecord)])
