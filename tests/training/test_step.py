"""When a step is recorded, replayed or run as it is: with stand-ins for CUDA graphs (the real ones: tests/gpu)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.training.step import WARM_UP, GraphStep
from methods.base import Batch


class FakeStream:
    device_index = 0

    def __init__(self, device: Any = None) -> None:
        pass

    def wait_stream(self, other: FakeStream) -> None:
        pass


MAIN = FakeStream()
CURRENT: list[FakeStream] = []
"""Of the device, as entered; the last one is current."""


class FakeGenerator:
    """Draws one number after another; a capture takes hold of it, and lets it go where it ends well."""

    def __init__(self, drawn: int = 0) -> None:
        self.drawn, self.captured = drawn, False

    def draw(self) -> int:
        self.drawn += 1
        return self.drawn

    def clone_state(self) -> FakeGenerator:
        assert not self.captured
        return FakeGenerator(self.drawn)

    def graphsafe_set_state(self, other: FakeGenerator) -> None:
        self.drawn, self.captured = other.drawn, other.captured


class FakeGraph:
    """Records by calling, replays by calling again."""

    recording: Any = None

    def __init__(self) -> None:
        self.replays, self.generators = 0, list[Any]()
        LIVE.append(self)

    def register_generator_state(self, generator: Any) -> None:
        self.generators.append(generator)

    def replay(self) -> None:
        self.replays += 1
        STEPS.append("replay")

    def reset(self) -> None:
        LIVE.remove(self)


STEPS: list[str] = []
LIVE: list[FakeGraph] = []


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def recording(graph: FakeGraph, stream: Any, capture_error_mode: str) -> Iterator[None]:
        STEPS.append("record")
        CURRENT.append(stream)
        for generator in (default, *graph.generators):
            generator.captured = True
        yield
        # None of the rest after an error: as torch, where the end of a broken capture raises.
        for generator in (default, *graph.generators):
            generator.captured = False
        CURRENT.pop()

    @contextmanager
    def on(stream: Any) -> Iterator[None]:
        CURRENT.append(stream)
        yield
        CURRENT.pop()

    default = FakeGenerator()
    for state in (STEPS, LIVE, CURRENT):
        state.clear()
    CURRENT.append(MAIN)
    monkeypatch.setattr(torch.cuda, "default_generators", (default,))
    monkeypatch.setattr(torch.cuda, "Stream", FakeStream)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(torch.cuda, "graph", recording)
    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: CURRENT[-1])
    monkeypatch.setattr(torch.cuda, "set_stream", CURRENT.append)


def batch(size: int, value: float = 0.0) -> Batch:
    return Batch(torch.full((size, 2), value), torch.zeros(size, dtype=torch.int64))


@pytest.mark.usefixtures("graphs")
def test_recorded_after_the_warm_up_and_replayed_for_full_batches() -> None:
    seen: list[Tensor] = []

    def eager(given: Batch) -> Tensor:
        STEPS.append("run")
        seen.append(given.inputs)
        return given.inputs.sum()

    failures: list[str] = []
    step = GraphStep(eager, 4, [FakeGenerator()], torch.device("cuda"), failures.append)
    for _ in range(WARM_UP):
        step(batch(4))
    assert STEPS == ["run"] * WARM_UP
    step(batch(4, 1.0))
    assert STEPS[WARM_UP:] == ["record", "run", "replay"]
    static = seen[-1]
    step(batch(4, 5.0))
    assert STEPS[-1] == "replay"
    assert static.eq(5.0).all()
    assert step(batch(3, 1.0)).item() == 6.0  # the last batch of an epoch
    assert STEPS[-1] == "run"
    step(batch(4))
    assert STEPS[-1] == "replay"
    assert not failures


@pytest.mark.usefixtures("graphs")
def test_where_recording_fails_steps_run_as_they_are_and_it_is_said() -> None:
    own, drawn = FakeGenerator(), list[int]()

    def eager(given: Batch) -> Tensor:
        (default,) = torch.cuda.default_generators
        drawn.append(own.draw() + default.draw())
        if STEPS and STEPS[-1] == "record":
            STEPS.append("fail")
            raise RuntimeError("operation not permitted when stream is capturing\nmore")
        STEPS.append("run")
        return given.inputs.sum()

    failures: list[str] = []
    step = GraphStep(eager, 4, [own], torch.device("cuda"), failures.append)
    for _ in range(WARM_UP + 3):
        assert step(batch(4, 1.0)).item() == 8.0
    assert STEPS == ["run"] * WARM_UP + ["record", "fail"] + ["run"] * 3
    assert failures == ["operation not permitted when stream is capturing"]
    assert CURRENT[-1] is MAIN
    assert not LIVE
    assert not own.captured
    assert not torch.cuda.default_generators[0].captured
    assert drawn == [2, 4, 6, 8, 8, 10, 12]  # what the broken recording drew is drawn again


@pytest.mark.usefixtures("graphs")
def test_a_smaller_batch_is_not_recorded() -> None:
    def eager(given: Batch) -> Tensor:
        STEPS.append("run")
        return given.inputs.sum()

    step = GraphStep(eager, 4, [], torch.device("cuda"), pytest.fail)
    for _ in range(WARM_UP):
        step(batch(4))
    step(batch(3))
    assert STEPS == ["run"] * (WARM_UP + 1)
    step(batch(4))
    assert STEPS[WARM_UP + 1 :] == ["record", "run", "replay"]
