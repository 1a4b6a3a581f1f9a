from __future__ import annotations

import pytest
import torch

from bench import data
from bench.data.batches import Normalise, evaluation_batch, ordered, shuffled
from bench.data.split import Split

SAME = Normalise.by(torch.zeros(1), torch.ones(1))


def numbered(count: int) -> Split:
    """Image i holds the value i, and so does its label."""
    return Split(
        torch.arange(count, dtype=torch.uint8).reshape(-1, 1, 1, 1).expand(-1, 1, 2, 3), torch.arange(count)
    )


def test_normalise_is_the_textbook_formula() -> None:
    images = torch.randint(
        0, 256, (9, 3, 4, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    before = images.clone()
    mean, std = torch.tensor([0.1, 0.5, 0.9]), torch.tensor([0.2, 0.3, 1.0])
    found = Normalise.by(mean, std)(images)
    shape = (1, 3, 1, 1)
    expected = (images.double() / 255 - mean.double().reshape(shape)) / std.double().reshape(shape)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-6)
    assert torch.equal(images, before)


def test_the_train_part_comes_out_with_mean_zero_and_deviation_one() -> None:
    digits = data.load("digits")
    inputs = torch.cat([batch.inputs for batch in ordered(digits.train, 100, Normalise.of(digits))])
    assert abs(inputs.double().mean()) < 1e-5
    assert abs(inputs.double().std(correction=0) - 1) < 1e-5


@pytest.mark.parametrize("batch_size", [1, 7, 25, 100, 1000])
def test_every_image_once_with_its_own_label(batch_size: int) -> None:
    seen = []
    for batch in shuffled(numbered(100), batch_size, torch.Generator().manual_seed(0), SAME):
        assert batch.inputs.shape[1:] == (1, 2, 3)
        assert len(batch.inputs) == len(batch.targets) <= batch_size
        assert torch.equal((batch.inputs[:, 0, 0, 0] * 255).round().long(), batch.targets)
        seen += batch.targets.tolist()
    assert sorted(seen) == list(range(100))
    assert seen != list(range(100))


def test_an_epoch_of_a_part_is_the_beginning_of_a_whole_one() -> None:
    def labels(seed: int, images: int | None) -> list[int]:
        generator = torch.Generator().manual_seed(seed)
        batches = list(shuffled(numbered(100), 8, generator, SAME, images=images))
        return [label for batch in batches for label in batch.targets.tolist()]

    part = labels(0, 30)
    assert len(set(part)) == 30
    assert part == labels(0, None)[:30]
    assert set(part) != set(labels(1, 30))


def test_all_batches_but_the_last_are_full() -> None:
    sizes = [len(batch.targets) for batch in shuffled(numbered(100), 32, torch.Generator(), SAME)]
    assert sizes == [32, 32, 32, 4]


@pytest.mark.parametrize(
    ("images", "batch_size", "expected"),
    [(97, 32, [32, 32, 31, 2]), (97, 3, [3] * 31 + [2, 2]), (1, 8, [1]), (5, 1, [1] * 5), (5, 2, [2, 2, 1])],
)
def test_the_last_batch_is_no_single_image_where_another_can_give_it_one(
    images: int, batch_size: int, expected: list[int]
) -> None:
    order = torch.randperm(images, generator=torch.Generator().manual_seed(0)).tolist()
    batches = list(shuffled(numbered(images), batch_size, torch.Generator().manual_seed(0), SAME))
    assert [len(batch.targets) for batch in batches] == expected
    assert [int(target) for batch in batches for target in batch.targets] == order


def test_the_order_is_the_generators() -> None:
    def order(seed: int, epochs: int = 1) -> list[int]:
        generator = torch.Generator().manual_seed(seed)
        for _ in range(epochs):
            drawn = [int(i) for batch in shuffled(numbered(50), 8, generator, SAME) for i in batch.targets]
        return drawn

    torch.manual_seed(5)
    first = order(0)
    torch.manual_seed(6)
    assert first == order(0) == torch.randperm(50, generator=torch.Generator().manual_seed(0)).tolist()
    assert first != order(1)
    assert first != order(0, epochs=2)


def test_augmentation_sees_raw_pixels_before_normalisation() -> None:
    seen: list[torch.dtype] = []

    def invert(images: torch.Tensor) -> torch.Tensor:
        seen.append(images.dtype)
        return 255 - images

    for batch in shuffled(numbered(20), 8, torch.Generator(), SAME, invert):
        assert torch.equal((batch.inputs[:, 0, 0, 0] * 255).round().long(), 255 - batch.targets)
    assert seen == [torch.uint8] * 3


def test_ordered_keeps_the_order() -> None:
    batches = list(ordered(numbered(50), 16, SAME))
    assert [len(batch.targets) for batch in batches] == [16, 16, 16, 2]
    assert torch.cat([batch.targets for batch in batches]).tolist() == list(range(50))
    assert torch.equal(
        (torch.cat([b.inputs for b in batches])[:, 0, 0, 0] * 255).round().long(), torch.arange(50)
    )


@pytest.mark.parametrize(
    ("shape", "images"),
    [((1, 8, 8), 1024), ((3, 32, 32), 1024), ((3, 64, 64), 256), ((3, 224, 224), 64)],
)
def test_large_images_are_evaluated_in_smaller_batches(shape: tuple[int, ...], images: int) -> None:
    assert evaluation_batch(shape) == images
