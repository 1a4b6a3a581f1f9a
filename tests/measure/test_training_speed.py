"""Advice on memory format and threads: every choice is timed, the machine is left as it was, and nothing is chosen."""

from __future__ import annotations

import pytest
import torch

from bench.errors import BadInput
from bench.measure.training_speed import StepTime, advice, step_times


def test_every_choice_is_timed_and_threads_are_put_back() -> None:
    before = torch.get_num_threads()
    found = step_times("digits-cnn", 2, batch=8)
    assert torch.get_num_threads() == before
    choices = [(time.layout, time.threads) for time in found]
    assert choices == [(layout, threads) for layout in ("channels-last", "contiguous") for threads in (1, 2)]
    assert all(time.milliseconds > 0 for time in found)


def test_said_in_ratios() -> None:
    times = [
        StepTime("channels-last", 1, 10.0),
        StepTime("channels-last", 8, 4.0),
        StepTime("contiguous", 1, 15.0),
        StepTime("contiguous", 8, 5.0),
    ]
    lines = advice("net", times)
    assert "1.50 times as fast as contiguous" in lines[4]
    assert "8 threads are 2.5 times as fast as one" in lines[5]


def test_an_unknown_network_is_refused() -> None:
    with pytest.raises(BadInput, match="no-such"):
        step_times("no-such", 1)
