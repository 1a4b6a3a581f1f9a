"""What a training step takes on this CPU: as an estimate, and by memory format and threads, and which is the fastest.

Another format or thread count sums in another order, so that a network ends with other weights. The suite therefore
trains channels-last and with one thread a process on every CPU; a choice that was measured (`bench run --tune`) is part
of what the records are about, and of their ids.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from bench import networks
from bench.device import place
from bench.errors import BadInput
from bench.estimate import TRAINING_RATE
from bench.records.schema import MemoryFormat

SHAPES = ((3, 32, 32), (1, 28, 28), (1, 8, 8))
CLASSES = 10
ENOUGH = 10**9
"""Multiply-accumulates of a forward pass that are enough to see how fast a network trains."""
ROUNDS = 5
CLEARLY = 0.95
"""What is left of a step's time where another choice than the usual one is worth it; less is noise."""


def training_rate(network: nn.Module, macs: int, shape: Sequence[int], device: torch.device) -> float:
    """Multiply-accumulates a second in training steps of `network` with one thread, the two directions counted as three
    forward passes; on a GPU, where it is not measured, a guess. macs: of one image.

    By the processor time of the better of two steps, on at most 128 images, of a large network as many as take a
    fraction of a second. The network and torch's generator are left as they were. A network that cannot take a step is
    guessed at too: its trainings will tell.
    """
    if device.type != "cpu":
        return TRAINING_RATE
    images = max(2, min(128, ENOUGH // macs))
    twin, before, times = place(copy.deepcopy(network), device).train(), torch.get_num_threads(), []
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            inputs, targets = torch.randn(images, *shape), torch.zeros(images, dtype=torch.int64)
            for _ in range(3):
                began = time.process_time()
                functional.cross_entropy(twin(inputs), targets).backward()
                times.append(time.process_time() - began)
        return 3 * macs * images / min(times[1:])
    except Exception:
        return TRAINING_RATE
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True)
class StepTime:
    """Of one process, alone on the machine."""

    memory_format: MemoryFormat
    threads: int
    milliseconds: float


def step_times(
    name: str, shape: tuple[int, int, int], classes: int, batch: int, threads: Sequence[int]
) -> list[StepTime]:
    """Median time of a training step of the network `name`, in each format with each number of threads, the usual
    choice first; the choices take turns. Raises BadInput where there is no such network, or none for such images."""
    formats: tuple[MemoryFormat, ...] = ("channels-last", "contiguous")
    inputs, targets = torch.randn(batch, *shape), torch.randint(0, classes, (batch,))
    before = torch.get_num_threads()
    choices = [(memory_format, count) for memory_format in formats for count in threads]
    seen: dict[tuple[MemoryFormat, int], list[float]] = {choice: [] for choice in choices}
    trained = {}
    for memory_format in formats:
        network = place(networks.build(name, shape, classes), torch.device("cpu"), memory_format)
        trained[memory_format] = network, torch.optim.SGD(network.parameters(), 1e-3, fused=True)
    try:
        for number in range(ROUNDS + 1):
            for memory_format, count in choices:
                torch.set_num_threads(count)
                network, optimizer = trained[memory_format]
                began = time.perf_counter()
                optimizer.zero_grad()
                functional.cross_entropy(network(inputs), targets).backward()
                optimizer.step()
                if number:  # the first round warms up
                    seen[memory_format, count].append(time.perf_counter() - began)
    finally:
        torch.set_num_threads(before)
    return [StepTime(*choice, 1000 * statistics.median(times)) for choice, times in seen.items()]


def fastest(times: Sequence[StepTime]) -> StepTime:
    """The first one, which is the usual choice, unless another is clearly faster."""
    best = min(times, key=lambda time: time.milliseconds)
    return best if best.milliseconds < CLEARLY * times[0].milliseconds else times[0]


def advice(name: str, cores: int) -> list[str]:
    """What `step_times` gives for batches of 128, as lines for a reader. Raises BadInput as it does, and for a network
    that takes none of SHAPES."""
    times = step_times(name, _shape(name), CLASSES, 128, sorted({1, cores}))
    lines = [
        f"{name}: a training step of 128 images takes {time.milliseconds:.1f} ms, {time.memory_format}, "
        f"{time.threads} thread{'s' if time.threads > 1 else ''}"
        for time in times
    ]
    return lines + in_ratios(name, times)


def in_ratios(name: str, times: Sequence[StepTime]) -> list[str]:
    """Of the usual choice to the others."""
    last, plain = (
        next(time for time in times if (time.memory_format, time.threads) == (memory_format, 1))
        for memory_format in ("channels-last", "contiguous")
    )
    ratio = plain.milliseconds / last.milliseconds
    lines = [f"{name}: the suite's channels-last is {ratio:.2f} times as fast as contiguous here"]
    cores = max(time.threads for time in times)
    if cores > 1:
        wide = next(time for time in times if (time.memory_format, time.threads) == ("channels-last", cores))
        gain = last.milliseconds / wide.milliseconds
        lines.append(
            f"{name}: {cores} threads are {gain:.1f} times as fast as one; `--jobs {cores}` of one thread each, which "
            "is what the suite does, is the better use of the cores wherever there are as many cells to run"
        )
    return lines


def _shape(name: str) -> tuple[int, int, int]:
    refused: BadInput | None = None
    for shape in SHAPES:
        try:
            networks.build(name, shape, CLASSES)
        except BadInput as error:
            refused = refused or error
        else:
            return shape
    assert refused is not None
    raise refused
