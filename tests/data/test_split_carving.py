from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.data.carve import carve, stratified_part
from bench.data.split import Split


@given(
    labels=st.lists(st.integers(0, 5), min_size=1, max_size=200),
    fraction=st.floats(0.01, 0.6),
    salt=st.integers(0, 100),
)
def test_every_class_gives_its_share_and_keeps_something(
    labels: list[int], fraction: float, salt: int
) -> None:
    of_image = np.array(labels)
    chosen = stratified_part(torch.tensor(labels), fraction, salt).numpy()
    for label in np.unique(of_image):
        size, taken = int((of_image == label).sum()), int(chosen[of_image == label].sum())
        if size == 1:
            assert taken == 0
        else:
            assert 1 <= taken <= size - 1
            assert taken == 1 or abs(taken - fraction * size) <= 1


@pytest.mark.parametrize(
    ("count", "classes", "fraction", "expected"), [(600, 10, 0.1, 60), (607, 9, 0.15, 91)]
)
def test_the_part_has_the_fraction_of_all_images(
    count: int, classes: int, fraction: float, expected: int
) -> None:
    labels = torch.arange(count) ** 2 % classes
    assert stratified_part(labels, fraction, 0).sum() == expected


def test_the_draw_is_the_same_everywhere_and_forever() -> None:
    """Changing it changes every published number: then PROTOCOL_VERSION has to change too."""
    labels = torch.arange(1000) * 7 % 10
    drawn = stratified_part(labels, 0.1, 1).nonzero().flatten()
    assert drawn[:8].tolist() == [8, 9, 13, 19, 20, 26, 35, 56]
    assert hashlib.sha256(repr(drawn.tolist()).encode()).hexdigest()[:16] == "64303a77dc300c39"


def test_the_draw_knows_no_seed_but_its_salt() -> None:
    labels = torch.arange(500) % 10
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002 - the point is that this stream is not used
    first = stratified_part(labels, 0.2, 3)
    torch.manual_seed(2)
    np.random.seed(2)  # noqa: NPY002
    assert torch.equal(first, stratified_part(labels, 0.2, 3))
    assert not torch.equal(first, stratified_part(labels, 0.2, 4))


def test_rest_and_part_are_disjoint_complete_and_in_order() -> None:
    split = Split(torch.arange(90).reshape(90, 1, 1, 1).to(torch.uint8), torch.arange(90) % 3)
    rest, part = carve(split, 0.2, 0)
    left, right = rest.images.flatten().tolist(), part.images.flatten().tolist()
    assert left == sorted(left)
    assert right == sorted(right)
    assert not set(left) & set(right)
    assert sorted(left + right) == list(range(90))
    assert torch.equal(rest.labels, rest.images.flatten().long() % 3)
