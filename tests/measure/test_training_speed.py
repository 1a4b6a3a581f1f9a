"""Memory formats and threads: every choice is timed, the machine is left as it was, and only a clear gain counts."""

from __future__ import annotations

import itertools
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from bench.errors import BadInput
from bench.estimate import TRAINING_RATE
from bench.measure.training_speed import StepTime, advice, fastest, in_ratios, step_times, training_rate

USUAL = StepTime("channels-last", 1, 10.0)


def test_every_choice_is_timed_and_threads_are_put_back() -> None:
    before = torch.get_num_threads()
    found = step_times("digits-cnn", (1, 8, 8), 10, 8, [1, 2])
    assert torch.get_num_threads() == before
    choices = [(time.memory_format, time.threads) for time in found]
    assert choices == [(format, threads) for format in ("channels-last", "contiguous") for threads in (1, 2)]
    assert all(time.milliseconds > 0 for time in found)


@pytest.mark.parametrize(("macs", "images"), [(1_000, 128), (10**8, 10), (10**10, 2)])
def test_the_rate_of_a_network_is_that_of_its_steps(
    macs: int, images: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock on which every step takes half a second; nothing is changed by it. Large networks see few images."""
    clock = itertools.count(step=0.5)
    monkeypatch.setattr("time.process_time", lambda: next(clock))
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Dropout(), nn.Linear(144, 3)
    )
    before, draws, threads = deepcopy(network.state_dict()), torch.get_rng_state(), torch.get_num_threads()
    rate = training_rate(network, macs, (1, 8, 8), torch.device("cpu"))
    assert rate == pytest.approx(3 * macs * images / 0.5)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert torch.equal(torch.get_rng_state(), draws)
    assert torch.get_num_threads() == threads


def test_a_network_that_takes_no_step_is_guessed_at() -> None:
    class Refuses(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            raise RuntimeError("not in training")

    assert training_rate(Refuses(), 1_000, (1, 8, 8), torch.device("cpu")) == TRAINING_RATE


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
