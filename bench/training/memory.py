"""Memory that has run out, and what can be done about it anywhere."""

from __future__ import annotations

import gc
import re

import torch

_NO_MEMORY = re.compile(r"CUDA (driver )?error: out of memory|_ALLOC(ATION)?_FAILED")
"""What CUDA and its libraries (cuBLAS, cuDNN …), which allocate without torch, say where that fails."""


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
