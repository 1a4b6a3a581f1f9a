"""`digits`: the 1,797 hand-written digits of 8×8 pixels that come inside scikit-learn (Alpaydin & Kaynak, UCI
1998)."""

from __future__ import annotations

from pathlib import Path

import torch

from bench.data.carve import carve
from bench.data.split import RawData, Split

TEST_FRACTION, VALIDATION_FRACTION = 0.2, 0.15
TEST_SALT = 0
"""Part of the protocol, as the fractions are: another value is another test split."""


def load_digits(root: Path | None) -> RawData:
    """Needs no data root. The set has no test split of its own: a fixed stratified fifth is carved out.

    Values count the pen's pixels in a 4×4 block, 0 … 16; they become round(v · 255 / 16), half up, which
    loses nothing.
    """
    from sklearn.datasets import load_digits as read  # here: scikit-learn takes a second to import

    values, labels = read(return_X_y=True)
    grey = (torch.from_numpy(values).to(torch.int64) * 255 + 8) // 16
    everything = Split(grey.to(torch.uint8).reshape(-1, 1, 8, 8), torch.from_numpy(labels).to(torch.int64))
    train, test = carve(everything, TEST_FRACTION, TEST_SALT)
    return RawData(train, test, classes=10, validation_fraction=VALIDATION_FRACTION)


DATASETS = {"digits": load_digits}
