"""The largest sum of live tensors during inference, weights and input included."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bench.measure.modes import evaluation_mode
from bench.measure.size import weight_bytes


def peak_bytes(network: nn.Module, example: Tensor) -> int:
    """Peak bytes of one forward pass of `network`, in evaluation mode, on `example` (N, C, H, W).

    On CUDA by the allocator (its rise above what was allocated before, plus weights and input, so that other
    tensors on the card do not count); workspaces that an operator takes and gives back are in it. Elsewhere
    by following every storage from operator to operator: exact and the same on each run; what an operator
    hides inside itself is not seen.
    """
    with evaluation_mode(network), torch.no_grad():
        if example.is_cuda:
            return _peak_by_allocator(network, example)
        with LiveStorages((*network.parameters(), *network.buffers(), example)) as live:
            network(example)
        return live.peak


def _peak_by_allocator(network: nn.Module, example: Tensor) -> int:
    device = example.device
    network(example)  # libraries allocate their permanent workspaces on first use
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    network(example)
    torch.cuda.synchronize(device)
    rise = torch.cuda.max_memory_allocated(device) - before
    return rise + weight_bytes(network) + example.nbytes


class LiveStorages(TorchDispatchMode):
    """While active, keeps in `peak` the largest sum of bytes of the storages alive at once.

    Memory only grows while an operator runs, so looking after each one misses no peak. Storages are held by
    weak references and known by identity: views, aliases and in-place results add nothing, and a tensor stops
    counting when its last owner lets go. Must run under `no_grad`: `inference_mode` hands composite operators
    over whole.
    """

    def __init__(self, resident: Iterable[Tensor]) -> None:
        """resident: tensors that are there before the first operator."""
        super().__init__()
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0
        self._update(resident)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        # Arguments too: a constant that is no buffer is first met there, and a resize changes counted bytes.
        self._update(leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor))
        return result

    def _update(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            storage = tensor.untyped_storage()
            reference = StorageWeakRef(storage)
            self._live[reference.cdata] = (reference, storage.nbytes())
        # A weak reference keeps the address of a dead storage taken, so a new one cannot be mistaken for it.
        self._live = {key: entry for key, entry in self._live.items() if not entry[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self._live.values()))
