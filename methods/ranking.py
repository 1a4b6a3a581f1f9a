"""Which entries are the smallest: exact counts, also where values tie."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def removed_count(fraction: float, size: int) -> int:
    """floor(fraction · size) with the product taken as meant: 0.29 · 100 is 29, though floats give 28.999….

    Raises ValueError for a fraction outside 0…1.
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"the fraction to remove is between 0 and 1, not {fraction}")
    return math.floor(fraction * size + 1e-9)


def smallest(scores: Tensor, count: int) -> Tensor:
    """True at the `count` smallest entries along the last dimension; of equal entries the first are taken.

    scores: (…, D), no NaN. Returns bool (…, D), with exactly `count` entries True in every row.
    """
    if count <= 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    if count >= scores.shape[-1]:
        return torch.ones_like(scores, dtype=torch.bool)
    threshold = _kth_smallest(scores, count)
    if scores.device.type == "cpu":  # ties are rare; on a GPU, to look for them would be to wait for it
        chosen = scores <= threshold
        # At least `count` in every row: exactly so many in each if they are so many in all.
        if int(chosen.count_nonzero()) == count * (scores.numel() // scores.shape[-1]):
            return chosen
    below, tied = scores < threshold, scores == threshold
    still_free = count - below.count_nonzero(dim=-1).unsqueeze(-1)
    return below | (tied & (tied.cumsum(dim=-1) <= still_free))


def _kth_smallest(scores: Tensor, k: int) -> Tensor:
    """(…, D) → (…, 1). By selection instead of a full sort, for it runs at every step of some methods; on a CPU numpy's
    takes a tenth of the time of torch's."""
    if scores.device.type == "cpu" and scores.dtype in (torch.float32, torch.float64, torch.int32):
        partitioned = np.partition(scores.detach().numpy(), k - 1, axis=-1)
        return torch.from_numpy(partitioned[..., k - 1 : k])
    return scores.kthvalue(k, dim=-1, keepdim=True).values


def unit_norms(weights: Sequence[Tensor]) -> Tensor:
    """ℓ2 norm of each unit over the rows (dim 0) that it has in all `weights`: (size,)."""
    squares = [weight.detach().flatten(1).square().sum(dim=1) for weight in weights]
    return torch.stack(squares).sum(dim=0).sqrt()
