"""What is done where a training does not fit in the memory of its device."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

T = TypeVar("T")


def in_memory(train: Callable[[int], T], most_parts: int) -> T:
    """`train`, told in how many parts a batch is to be trained: whole, and called again with twice as many where it ran
    out of memory. most_parts: where the memory is given up on; 1 for a training that may not split its batches."""
    parts = 1
    while True:
        try:
            return train(parts)
        except torch.OutOfMemoryError:
            if parts >= most_parts:
                raise
        # Out of the handler, for the traceback holds on to what did not fit.
        parts = min(2 * parts, most_parts)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
