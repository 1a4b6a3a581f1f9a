"""Memory formats and threads: every choice is timed, the machine is left as it was, and only a clear gain counts."""

from __future__ import annotations

import pytest
import torch

from bench.errors import BadInput
from bench.measure.training_speed import StepTime, advice, fastest, in_ratios, step_times

USUAL = StepTime("channels-last", 1, 10.0)


def test_every_choice_is_timed_and_threads_are_put_back() -> None:
    before = torch.get_num_threads()
    found = step_times("digits-cnn", (1, 8, 8), 10, 8, [1, 2])
    assert torch.get_num_threads() == before
    choices = [(time.memory_format, time.threads) for time in found]
    assert choices == [(format, threads) for format in ("channels-last", "contiguous") for threads in (1, 2)]
    assert all(time.milliseconds > 0 for time in found)


def test_said_in_ratios() -> None:
    times = [
        USUAL,
        StepTime("channels-last", 8, 4.0),
        StepTime("contiguous", 1, 15.0),
        StepTime("contiguous", 8, 5.0),
    ]
    lines = in_ratios("net", times)
    assert "1.50 times as fast as contiguous" in lines[0]
    assert "8 threads are 2.5 times as fast as one" in lines[1]


@pytest.mark.parametrize(("milliseconds", "chosen"), [(9.0, "contiguous"), (9.7, "channels-last")])
def test_a_gain_within_the_noise_changes_nothing(milliseconds: float, chosen: str) -> None:
    assert fastest([USUAL, StepTime("contiguous", 1, milliseconds)]).memory_format == chosen


def test_an_unknown_network_is_refused() -> None:
    with pytest.raises(BadInput, match="no-such"):
        advice("no-such", 1)
