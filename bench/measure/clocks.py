"""Three ways to time a call. A sampler takes one sample: milliseconds per call, the mean over its unrolled
calls."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import torch

from bench.measure.protocol import Clock

Call = Callable[[], object]
Sampler = Callable[[], float]

LARGEST_UNROLL = 512


@dataclass(frozen=True)
class Timer:
    """unroll: calls per sample."""

    sample: Sampler
    unroll: int


def timer(clock: Clock, call: Call, device: torch.device) -> Timer:
    """A timer of `call`, which must be warm already, with as many calls a sample as the clock needs to be
    exact."""
    if clock == "host":
        if device.type == "cuda":
            return Timer(host_sampler(call, 1, lambda: torch.cuda.synchronize(device)), 1)
        # reading the clock shall be at most half a percent of a sample
        return unrolled(lambda unroll: host_sampler(call, unroll), 200 * _overhead())
    if clock == "device":
        return unrolled(lambda unroll: device_sampler(call, unroll, device), 1.0)
    return unrolled(lambda unroll: graph_sampler(call, unroll, device), 1.0)


def unrolled(make: Callable[[int], Sampler], floor: float) -> Timer:
    """The timer whose samples last at least `floor` milliseconds. make: unroll → sampler."""
    unroll = 1
    while True:
        sample = make(unroll)
        sample()  # the first bears what is set up once
        length = statistics.median(sample() for _ in range(3)) * unroll
        if length >= floor or unroll >= LARGEST_UNROLL:
            return Timer(sample, unroll)
        growth = 1.2 * floor / length if length > 0 else math.inf
        unroll = min(LARGEST_UNROLL, math.ceil(unroll * min(max(growth, 2.0), 100.0)))


def host_sampler(
    call: Call,
    unroll: int,
    synchronise: Callable[[], None] | None = None,
    now: Callable[[], int] = time.perf_counter_ns,
) -> Sampler:
    """Wall time; `synchronise` waits for the device before the clock is read."""

    def sample() -> float:
        start = now()
        for _ in range(unroll):
            call()
        if synchronise is not None:
            synchronise()
        return (now() - start) / (1e6 * unroll)

    return sample


def device_sampler(call: Call, unroll: int, device: torch.device) -> Sampler:
    """CUDA events around eager calls that do not wait for each other."""

    def enqueue() -> None:
        for _ in range(unroll):
            call()

    return _between_events(enqueue, unroll, device)


def graph_sampler(call: Call, unroll: int, device: torch.device) -> Sampler:
    """CUDA events around one replay of a graph that holds `unroll` calls. The sampler keeps the graph;
    `call`, with its weights and its input, must outlive it."""
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        call()  # libraries make their workspaces per stream, which is not allowed while capturing
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for _ in range(unroll):
            call()
    return _between_events(graph.replay, unroll, device)


def _between_events(enqueue: Callable[[], None], unroll: int, device: torch.device) -> Sampler:
    start = torch.cuda.Event(enable_timing=True)
    end = torch.cuda.Event(enable_timing=True)

    def sample() -> float:
        stream = torch.cuda.current_stream(device)
        start.record(stream)
        enqueue()
        end.record(stream)
        end.synchronize()
        return start.elapsed_time(end) / unroll

    return sample


def _overhead() -> float:
    """Milliseconds that one reading of the clock adds to a sample."""
    readings = [time.perf_counter_ns() for _ in range(201)]
    return statistics.median(b - a for a, b in pairwise(readings)) / 1e6


@contextmanager
def autotuned(device: torch.device) -> Iterator[None]:
    """Let cuDNN choose its algorithms by trying them (during warm-up); the flag is put back afterwards."""
    if device.type != "cuda":
        yield
        return
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
