"""What is done where a training does not fit in the memory of its device, or has lost that, or its disk is full."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeVar

from bench.errors import GpuLost, raise_if_disk_full
from bench.training.memory import free_unused, is_out_of_memory

T = TypeVar("T")

_NOT_SERVED = re.compile(r"\bMPS (client|server)\b|\berror 8(0[5-9]|10)\b|cudaErrorMps", re.IGNORECASE)
"""What CUDA says where the service by which processes share a GPU does not take one up, or lets it go (its errors 805
to 810)."""


def raise_if_lost(error: Exception) -> None:
    """Raise GpuLost where `error` has left this process without its GPU, or has kept it from one, and DiskFull where
    there was no room for what it wrote, so that the outcome says nothing of the cell yet."""
    raise_if_disk_full(error)
    refused = isinstance(error, RuntimeError) and _NOT_SERVED.search(str(error)) is not None
    if refused or not free_unused():
        said = (str(error).splitlines() or [""])[0]
        raise GpuLost(f"the GPU no longer answered: {type(error).__name__}: {said}") from error


def in_memory(train: Callable[[int], T], most_parts: int) -> T:
    """`train`, told in how many parts a batch is to be trained: whole, and called again with twice as many where it ran
    out of memory. most_parts: where the memory is given up on; 1 for a training that may not split its batches."""
    parts = 1
    while True:
        try:
            return train(parts)
        except Exception as error:
            if parts >= most_parts or not is_out_of_memory(error):
                raise
        # Out of the handler, for the traceback holds on to what did not fit.
        parts = min(2 * parts, most_parts)
        free_unused()
