"""Scores against hand computation and against an independent numpy version."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from bench.errors import CellFailed
from bench.measure.accuracy import score
from methods.base import Batch

IDENTITY = nn.Flatten()  # the inputs are the logits


def batch(probabilities: list[list[float]], targets: list[int]) -> Batch:
    logits = torch.tensor(probabilities).log()
    return Batch(logits[:, :, None, None], torch.tensor(targets))


def test_short_last_batch_weighs_what_it_holds() -> None:
    batches = [
        batch([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.5, 0.4, 0.1]], [0, 1, 1]),  # right, right, wrong
        batch([[0.2, 0.2, 0.6]], [0]),  # wrong
    ]
    scores = score(IDENTITY, batches)
    assert scores.images == 4
    assert scores.accuracy == pytest.approx(2 / 4)
    assert scores.loss == pytest.approx(-(math.log(0.7) + math.log(0.6) + math.log(0.4) + math.log(0.2)) / 4)
    # 0.7, 0.6 and 0.5 lie in bins 11, 9 and 8; both 0.6 share one: |1 - 1.2|, |1 - 0.7|, |0 - 0.5|
    assert scores.calibration_error == pytest.approx((0.2 + 0.3 + 0.5) / 4, abs=1e-6)


def calibration_error_by_numpy(logits: np.ndarray, targets: np.ndarray, bins: int = 15) -> float:
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
    confidence, hits = probabilities.max(axis=1), probabilities.argmax(axis=1) == targets
    error = 0.0
    for m in range(bins):
        inside = (confidence > m / bins) & (confidence <= (m + 1) / bins)
        if inside.any():
            error += inside.mean() * abs(hits[inside].mean() - confidence[inside].mean())
    return float(error)


@pytest.mark.parametrize("sharpness", [0.0, 0.3, 2.0, 30.0])
def test_calibration_error_against_numpy(sharpness: float) -> None:
    generator = torch.Generator().manual_seed(3)
    logits = sharpness * torch.randn(1000, 10, generator=generator)
    targets = torch.randint(10, (1000,), generator=generator)
    batches = [
        Batch(x[:, :, None, None], y) for x, y in zip(logits.split(64), targets.split(64), strict=True)
    ]
    scores = score(IDENTITY, batches)
    expected = calibration_error_by_numpy(logits.double().numpy(), targets.numpy())
    assert scores.calibration_error == pytest.approx(expected, abs=1e-9)


def test_certain_and_right_is_perfectly_calibrated() -> None:
    logits = 1000 * torch.eye(4)[:, :, None, None]
    scores = score(IDENTITY, [Batch(logits, torch.arange(4))])
    assert (scores.accuracy, scores.loss, scores.calibration_error) == (1.0, 0.0, 0.0)


def test_modes_and_statistics_stay_as_they_were() -> None:
    network = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.5), nn.BatchNorm2d(3), nn.Flatten())
    network.train()
    network[2].eval()  # frozen on purpose
    before = {name: value.clone() for name, value in network.state_dict().items()}
    data = [Batch(torch.randn(8, 3, 1, 1), torch.zeros(8, dtype=torch.int64))]
    assert score(network, data) == score(network, data)  # no dropout while evaluating
    assert [module.training for module in network] == [True, True, False, True]
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_mode_is_restored_after_an_error() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(3, 2)).train()
    with pytest.raises(RuntimeError):
        score(network, [Batch(torch.zeros(1, 5, 1, 1), torch.zeros(1, dtype=torch.int64))])
    assert network.training


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_logits_that_are_not_finite_are_a_failure(bad: float) -> None:
    good = Batch(torch.zeros(4, 3, 1, 1), torch.zeros(4, dtype=torch.int64))
    inputs = torch.zeros(2, 3, 1, 1)
    inputs[1, 2] = bad
    with pytest.raises(CellFailed, match="not finite") as failure:
        score(IDENTITY, [good, Batch(inputs, torch.zeros(2, dtype=torch.int64)), good])
    assert failure.value.kind == "diverged"


def test_large_finite_logits_do_not_overflow() -> None:
    logits = torch.tensor([[3e38, -3e38]])[:, :, None, None]
    assert score(IDENTITY, [Batch(logits, torch.tensor([1]))]).loss == pytest.approx(6e38)


def test_no_images_is_an_error() -> None:
    with pytest.raises(ValueError, match="no images"):
        score(IDENTITY, [])
