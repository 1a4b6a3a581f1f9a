"""What is done where a training does not fit in the memory of its device, and between two."""

from __future__ import annotations

import gc
import re
from collections.abc import Callable
from typing import TypeVar

import torch

from bench.errors import GpuLost

T = TypeVar("T")

_NO_MEMORY = re.compile(r"CUDA (driver )?error: out of memory|_ALLOC(ATION)?_FAILED")
"""What CUDA and its libraries (cuBLAS, cuDNN …), which allocate without torch, say where that fails."""

_NOT_SERVED = re.compile(r"\bMPS (client|server)\b|\berror 8(0[5-9]|10)\b|cudaErrorMps", re.IGNORECASE)
"""What CUDA says where the service by which processes share a GPU does not take one up, or lets it go (its errors 805
to 810)."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, in torch or in what it calls."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error)) is not None
    )


def free_unused() -> bool:
    """Free what nobody holds any more, on the GPU for other processes too. False where the GPU no longer answers this
    process: after an illegal access or a failed assertion in a kernel, every call raises until the process ends."""
    gc.collect()  # hooks hold their networks in cycles
    if not torch.cuda.is_initialized():
        return True
    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    except RuntimeError as error:
        return is_out_of_memory(error)
    return True


def raise_if_lost(error: Exception) -> None:
    """Raise GpuLost where `error` has left this process without its GPU, or has kept it from one, so that the outcome
    says nothing of the cell yet."""
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
