"""What a training step takes on this CPU by memory format and threads: advice, never a setting.

The suite trains channels-last and with one thread a process on every CPU. Another format or thread count sums in
another order, so that a network would end with other weights; chosen by the clock, the records of one id would differ
from machine to machine, and with the load of a machine. So what is measured here is printed, and nothing follows it.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import torch
from torch.nn import functional

from bench import networks
from bench.errors import BadInput

SHAPES = ((3, 32, 32), (1, 28, 28), (1, 8, 8))
CLASSES = 10
ROUNDS = 5


@dataclass(frozen=True)
class StepTime:
    """Of one process, alone on the machine. layout: `channels-last` or `contiguous`."""

    layout: str
    threads: int
    milliseconds: float


def step_times(name: str, cores: int, batch: int = 128) -> list[StepTime]:
    """Median time of a training step of the network `name`, in each format, with one thread and with `cores`; the
    choices take turns. Raises BadInput where there is no such network, or none for images of SHAPES."""
    shape = _shape(name)
    inputs, targets = torch.randn(batch, *shape), torch.randint(0, CLASSES, (batch,))
    before = torch.get_num_threads()
    choices = [
        (layout, threads) for layout in ("channels-last", "contiguous") for threads in sorted({1, cores})
    ]
    seen: dict[tuple[str, int], list[float]] = {choice: [] for choice in choices}
    trained = {}
    for layout in ("channels-last", "contiguous"):
        network = networks.build(name, shape, CLASSES)
        if layout == "channels-last":
            network = network.to(memory_format=torch.channels_last)
        trained[layout] = network, torch.optim.SGD(network.parameters(), 1e-3, fused=True)
    try:
        for number in range(ROUNDS + 1):
            for layout, threads in choices:
                torch.set_num_threads(threads)
                network, optimizer = trained[layout]
                began = time.perf_counter()
                optimizer.zero_grad()
                functional.cross_entropy(network(inputs), targets).backward()
                optimizer.step()
                if number:  # the first round warms up
                    seen[layout, threads].append(time.perf_counter() - began)
    finally:
        torch.set_num_threads(before)
    return [StepTime(*choice, 1000 * statistics.median(times)) for choice, times in seen.items()]


def advice(name: str, times: list[StepTime]) -> list[str]:
    """Lines for a reader."""
    lines = [
        f"{name}: a training step of 128 images takes {time.milliseconds:.1f} ms, {time.layout}, "
        f"{time.threads} thread{'s' if time.threads > 1 else ''}"
        for time in times
    ]
    last, plain = (
        next(time for time in times if (time.layout, time.threads) == (layout, 1))
        for layout in ("channels-last", "contiguous")
    )
    ratio = plain.milliseconds / last.milliseconds
    lines.append(f"{name}: the suite's channels-last is {ratio:.2f} times as fast as contiguous here")
    cores = max(time.threads for time in times)
    if cores > 1:
        wide = next(time for time in times if (time.layout, time.threads) == ("channels-last", cores))
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
