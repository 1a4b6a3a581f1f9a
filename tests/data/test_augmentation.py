from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.data.augmentation import crop_and_flip


def pictures(count: int, channels: int, height: int, width: int) -> Tensor:
    stream = torch.Generator().manual_seed(0)
    return torch.randint(1, 256, (count, channels, height, width), dtype=torch.uint8, generator=stream)


def candidates(image: Tensor, padding: int) -> dict[tuple[int, int, bool], Tensor]:
    """Every output that (C, H, W) may have, one by one: (top, left, mirrored) → image."""
    _, height, width = image.shape
    padded = F.pad(image, (padding,) * 4)
    found = {}
    for top in range(2 * padding + 1):
        for left in range(2 * padding + 1):
            window = padded[:, top : top + height, left : left + width]
            found[top, left, False], found[top, left, True] = window, window.flip(2)
    return found


def choices(images: Tensor, augmented: Tensor, padding: int) -> list[tuple[int, int, bool]]:
    """Which candidate each output is; fails where it is none."""
    return [
        next(
            place for place, candidate in candidates(image, padding).items() if torch.equal(candidate, output)
        )
        for image, output in zip(images, augmented, strict=True)
    ]


@pytest.mark.parametrize(("shape", "padding"), [((3, 8, 6), 2), ((1, 5, 9), 4), ((3, 4, 4), 1)])
def test_each_image_is_a_window_of_itself(shape: tuple[int, int, int], padding: int) -> None:
    images = pictures(60, *shape)
    before = images.clone()
    augmented = crop_and_flip(images, torch.Generator().manual_seed(0), padding)
    assert (augmented.shape, augmented.dtype) == (images.shape, torch.uint8)
    assert len(set(choices(images, augmented, padding))) > 10
    assert torch.equal(images, before)


def test_every_place_and_both_directions_are_drawn_alike() -> None:
    images = pictures(1, 1, 6, 6).expand(3600, -1, -1, -1)
    places = candidates(images[0], 1)
    augmented = crop_and_flip(images, torch.Generator().manual_seed(0), padding=1)
    counts = torch.tensor([(augmented == place).flatten(1).all(1).sum() for place in places.values()])
    assert len(places) == 18
    assert counts.sum() == 3600
    assert counts.min() > 140  # 200 expected each, deviation 14
    assert counts.max() < 260


def test_the_draw_is_the_generators_alone() -> None:
    images = pictures(20, 3, 8, 8)
    torch.manual_seed(1)
    first = crop_and_flip(images, torch.Generator().manual_seed(3))
    torch.manual_seed(2)
    assert torch.equal(first, crop_and_flip(images, torch.Generator().manual_seed(3)))
    assert not torch.equal(first, crop_and_flip(images, torch.Generator().manual_seed(4)))


def test_float_images_move_like_bytes() -> None:
    images = pictures(20, 3, 8, 8)
    first = crop_and_flip(images, torch.Generator().manual_seed(3))
    assert torch.equal(first.float(), crop_and_flip(images.float(), torch.Generator().manual_seed(3)))
