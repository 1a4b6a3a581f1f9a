from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.data.augmentation import crop_and_flip, resized_crop


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


def test_resized_crops_are_windows_of_the_image() -> None:
    """Of a ramp in both directions: values stay in range, rise along the image or fall where it is mirrored, and span
    no more than the image does."""
    ramp = torch.arange(32, dtype=torch.uint8) * 8
    images = torch.stack([ramp.expand(32, 32), ramp[:, None].expand(32, 32)]).expand(200, 2, 32, 32)
    generator = torch.Generator().manual_seed(0)
    found = resized_crop(images, generator)
    assert found.dtype == torch.uint8
    assert found.shape == images.shape
    across, down = found[:, 0].int(), found[:, 1].int()
    slopes = (across[:, 0, -1] - across[:, 0, 0]).sign()
    assert set(slopes.tolist()) == {-1, 1}
    assert 70 < int((slopes > 0).sum()) < 130
    assert ((across.diff(dim=2) * slopes[:, None, None]) >= 0).all()
    assert (down.diff(dim=1) >= 0).all()
    spans = (across[:, 0, -1] - across[:, 0, 0]).abs() * (down[:, -1, 0] - down[:, 0, 0]) / (31 * 8) ** 2
    assert spans.max() <= 1.0
    assert 0.2 < spans.min() < 0.4
    assert torch.equal(found, resized_crop(images, torch.Generator().manual_seed(0)))
