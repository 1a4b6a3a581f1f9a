"""Accuracy, loss and calibration of a classifier on one split."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.errors import CellFailed
from bench.measure.modes import evaluation_mode
from bench.records.schema import Scores
from methods.base import Batch
from methods.errors import NotFinite

CALIBRATION_BINS = 15


class Diverged(CellFailed, NotFinite):
    """Logits that are not finite: the end of a cell, but for a method that only tries a network out."""

    def __init__(self) -> None:
        super().__init__("diverged", "the network's logits are not finite")


def score(network: nn.Module, batches: Iterable[Batch]) -> Scores:
    """Evaluate `network`, in evaluation mode, on every image of `batches`.

    Everything is summed over images (a short last batch weighs what it holds), in float64, on the device of
    the logits; the host waits once, at the end. Raises Diverged if any logit is not finite,
    ValueError if there is no image.
    """
    images = 0
    totals: tuple[Tensor, Tensor, Tensor] | None = None
    with evaluation_mode(network), torch.inference_mode():
        for batch in batches:
            logits = network(batch.inputs)
            images += len(batch.targets)
            sums = _sums(logits.double(), batch.targets)
            totals = (
                sums if totals is None else (totals[0] + sums[0], totals[1] + sums[1], totals[2] & sums[2])
            )
    if totals is None or images == 0:
        raise ValueError("there are no images to score")
    loss, bins, finite = (total.cpu() for total in totals)
    if not finite:
        raise Diverged
    confidence, correct = bins.unbind(1)
    return Scores(
        accuracy=correct.sum().item() / images,
        loss=loss.item() / images,
        calibration_error=(correct - confidence).abs().sum().item() / images,
        images=images,
    )


def _sums(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of one batch: summed cross-entropy (); confidence and hits per calibration bin (bins, 2); all finite
    ().

    Expected calibration error as in Guo et al., 2017 (arXiv:1706.04599), eq. 3: bin m holds the confidences
    in ((m-1)/M, m/M]. Weighting |mean hits - mean confidence| by the bin's share of images leaves the
    difference of sums.
    """
    log_probabilities = F.log_softmax(logits, dim=1)
    confidence, predicted = log_probabilities.max(dim=1)
    confidence = confidence.exp()
    correct = (predicted == targets).double()
    edges = torch.linspace(0, 1, CALIBRATION_BINS + 1, dtype=torch.float64, device=logits.device)
    index = torch.bucketize(confidence, edges[1:-1])
    # A product with the membership matrix, not a scatter: its order of summation is fixed on every device.
    members = (index[:, None] == torch.arange(CALIBRATION_BINS, device=logits.device)).double()
    bins = members.T @ torch.stack([confidence, correct], dim=1)
    loss = F.nll_loss(log_probabilities, targets, reduction="sum")
    return loss, bins, torch.isfinite(logits).all()
