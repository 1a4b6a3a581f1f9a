"""Which images a network takes."""

from __future__ import annotations

from bench.errors import BadInput


def check_side(input_shape: tuple[int, int, int], smallest: int) -> None:
    """Raises BadInput where images of (C, H, W) are smaller than `smallest` × `smallest`."""
    _, height, width = input_shape
    if min(height, width) < smallest:
        raise BadInput(f"needs images of at least {smallest}×{smallest}, got {height}×{width}")
