"""Images that are too many for memory: they stay in their files and are decoded, some batches ahead, when asked for."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bench.errors import BadInput
from bench.folder import in_one_line

CPU = torch.device("cpu")
AHEAD = 2
"""Batches that are decoded while one is at work."""


@dataclass(frozen=True)
class ImageFiles:
    """What stands in place of a uint8 tensor (N, 3, side, side): the middle of each image, after its shorter side was
    brought to `resize` pixels (bilinear, antialiased), in colour.

    What is read arrives on `device`. Raises BadInput, naming the file, for one that cannot be decoded.
    """

    paths: tuple[Path, ...]
    side: int
    resize: int
    device: torch.device = CPU

    @property
    def shape(self) -> torch.Size:
        return torch.Size((len(self.paths), 3, self.side, self.side))

    def to(self, device: torch.device | str) -> ImageFiles:
        return replace(self, device=torch.device(device))

    def at(self, indices: Tensor) -> ImageFiles:
        """Those at `indices` (int64), in that order; nothing is read."""
        return replace(self, paths=tuple(self.paths[index] for index in indices.tolist()))

    def __getitem__(self, wanted: slice) -> Tensor:
        return self._decoded(self.paths[wanted])

    def batches(self, chosen: Iterable[Tensor]) -> Iterator[Tensor]:
        """The images at each of the index tensors (int64), in their order."""
        waiting: deque[Future[Tensor]] = deque()
        with ThreadPoolExecutor(1) as reader:
            for indices in chosen:
                waiting.append(
                    reader.submit(self._decoded, [self.paths[index] for index in indices.tolist()])
                )
                if len(waiting) > AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

    def _decoded(self, paths: Iterable[Path]) -> Tensor:
        images = list(_decoders().map(self._decode, paths))
        if not images:
            return torch.empty(0, 3, self.side, self.side, dtype=torch.uint8, device=self.device)
        batch = torch.stack(images)
        if self.device.type == "cuda":
            return batch.pin_memory().to(self.device, non_blocking=True)
        return batch

    def _decode(self, path: Path) -> Tensor:
        try:
            with Image.open(path) as image:
                # JPEG alone can be decoded at half or a quarter of its size, at a fraction of the time.
                image.draft("RGB", (self.resize, self.resize))
                colour = image.convert("RGB")
        except Exception as error:
            raise BadInput(f"{path}: is not a readable image ({in_one_line(error)})") from error
        width, height = colour.size
        scale = self.resize / min(width, height)
        size = max(round(width * scale), self.resize), max(round(height * scale), self.resize)
        left, top = (size[0] - self.side) // 2, (size[1] - self.side) // 2
        small = colour.resize(size, Image.Resampling.BILINEAR)
        window = small.crop((left, top, left + self.side, top + self.side))
        return torch.from_numpy(np.array(window)).permute(2, 0, 1).contiguous()


@cache
def _decoders() -> ThreadPoolExecutor:
    """Threads suffice: decoding lets go of Python's lock."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return ThreadPoolExecutor(cores, thread_name_prefix="decode")
