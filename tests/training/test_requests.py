"""What a method may ask of the loop after an epoch is what the loop does."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from bench import data, networks
from bench.training.loop import Loop
from bench.training.phases import plan_phases
from bench.training.recipe import Recipe
from methods.base import Batch, Evaluation, Method, Phase, Request, SparsityPlan, Traits


class Asking(Method):
    """Asks by a script, epoch by epoch, and remembers the weights it saw at the end of each."""

    name = "asking"
    title = "Asks by a script"
    paper = "none"
    strengths = (0.0,)
    strength_meaning = "Nothing."
    count = 0

    def __init__(self, script: Mapping[int, Request]) -> None:
        super().__init__()
        self.script, self.seen = script, dict[int, Tensor]()

    @property
    def traits(self) -> Traits:
        return Traits(granularity="none", strength="none", trains_once=True)

    def phases(self, epochs: int) -> tuple[Phase, ...]:
        return Phase("first", 0.5), Phase("second", 0.5)

    def after_epoch(self, validate: Callable[[], Evaluation]) -> Request | None:
        self.count += 1
        self.seen[self.count] = self.network.get_parameter("fc1.weight").detach().clone()
        return self.script.get(self.count)

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.count = state["count"]

    def plan(self, strength: float) -> SparsityPlan:
        return SparsityPlan()


def train(script: Mapping[int, Request], kind: type[Asking] = Asking) -> tuple[Asking, Loop]:
    torch.set_num_threads(1)
    dataset = data.load("digits", None)
    torch.manual_seed(0)
    network = networks.build("mlp-300-100", dataset.input_shape, dataset.classes)
    method = kind(script)
    loop = Loop(network, method, [], dataset, Recipe(epochs=6, batch_size=256), 0, torch.device("cpu"))
    loop.run(plan_phases(method.phases(6), 6))
    return method, loop


def test_without_a_request_the_budget_is_used() -> None:
    _, loop = train({})
    assert loop.progress.epochs == {"first": 3, "second": 3}


def test_next_phase_and_stop() -> None:
    _, loop = train({1: Request.NEXT_PHASE})
    assert loop.progress.epochs == {"first": 1, "second": 3}
    _, loop = train({2: Request.STOP})
    assert loop.progress.epochs == {"first": 2}


def test_rollback_brings_back_network_and_method() -> None:
    method, loop = train({4: Request.KEEP_BEST, 6: Request.ROLLBACK})
    weight = loop.network.get_parameter("fc1.weight")
    assert torch.equal(weight, method.seen[4])
    assert not torch.equal(weight, method.seen[6])
    assert method.count == 4


def test_a_phase_is_looked_at_where_it_begins_and_not_trained_before() -> None:
    """The second one begins with a classifier of zeros, and so with the loss of a guess."""

    class Emptied(Asking):
        def start_phase(self, phase: Phase) -> None:
            if phase.name == "second":
                for parameter in self.network.get_submodule("fc3").parameters():
                    parameter.data.zero_()

    _, loop = train({}, Emptied)
    entries = [(entry["epoch"], entry["phase"], "train_loss" in entry) for entry in loop.progress.history]
    first = [(1, "first", True), (2, "first", True), (3, "first", True)]
    second = [(3, "second", False), (4, "second", True), (5, "second", True), (6, "second", True)]
    assert entries == first + second
    before, at, after = (loop.progress.history[place]["validation_loss"] for place in (2, 3, -1))
    assert at == pytest.approx(math.log(10))
    assert before < at > after


@pytest.mark.parametrize(
    ("backward", "returns", "says"),
    [(False, True, "forgetful leaves no gradient"), (True, False, "forgetful returns nothing")],
)
def test_a_step_that_owes_something_is_told_what(backward: bool, returns: bool, says: str) -> None:
    """Without gradients the network would stay as it was drawn, and be scored so."""

    class Forgetful(Asking):
        name = "forgetful"

        def training_step(self, batch: Batch) -> Tensor:
            loss = self.context.task_loss(self.network(batch.inputs), batch.targets)
            if backward:
                loss.backward()
            return loss.detach() if returns else None  # type: ignore[return-value]

    with pytest.raises((RuntimeError, TypeError), match=f"training_step of {says}"):
        train({}, Forgetful)


@pytest.mark.parametrize("answer", ["stop", True, Request])
def test_an_answer_that_is_no_request_is_told(answer: object) -> None:
    """It would be passed over, and the training go on as if nothing had been asked."""

    class Mistaken(Asking):
        name = "mistaken"

        def after_epoch(self, validate: Callable[[], Evaluation]) -> Request | None:
            return answer  # type: ignore[return-value]

    with pytest.raises(TypeError, match=rf"after_epoch of mistaken returns {re.escape(repr(answer))}, which"):
        train({}, Mistaken)
