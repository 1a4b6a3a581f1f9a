"""Selection: exact counts, ties, the right axis."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from methods.ranking import removed_count, smallest, unit_norms


@pytest.mark.parametrize(
    ("fraction", "size", "count"),
    [(0.0, 7, 0), (0.5, 7, 3), (0.29, 100, 29), (0.7, 10, 7), (0.9, 10, 9), (0.57, 100, 57), (1.0, 4, 4)],
)
def test_removed_count_is_the_floor_of_the_product_as_meant(fraction: float, size: int, count: int) -> None:
    assert removed_count(fraction, size) == count


@pytest.mark.parametrize("fraction", [-0.1, 1.1, float("nan")])
def test_removed_count_refuses_what_is_no_fraction(fraction: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        removed_count(fraction, 10)


@given(
    values=st.lists(st.lists(st.integers(0, 3), min_size=6, max_size=6), min_size=1, max_size=4),
    count=st.integers(0, 6),
    dtype=st.sampled_from(
        [torch.float32, torch.float64, torch.int32, torch.bfloat16]
    ),  # the last is not selected by numpy
)
def test_smallest_equals_a_stable_sort(values: list[list[int]], count: int, dtype: torch.dtype) -> None:
    scores = torch.tensor(values, dtype=dtype)
    expected = torch.zeros_like(scores, dtype=torch.bool)
    expected.scatter_(1, scores.sort(dim=1, stable=True).indices[:, :count], True)
    assert torch.equal(smallest(scores, count), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_smallest_of_long_rows_that_learn(dtype: torch.dtype) -> None:
    scores = torch.randn(3, 2, 1000, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
    chosen = smallest(scores, 601)
    expected = torch.zeros_like(chosen)
    expected.scatter_(2, scores.sort(dim=2, stable=True).indices[..., :601], True)
    assert torch.equal(chosen, expected)


def test_a_row_of_zeros_gives_the_first_entries() -> None:
    assert smallest(torch.zeros(2, 5), 3).tolist() == [[True, True, True, False, False]] * 2


def test_unit_norms_are_over_all_rows_of_a_unit() -> None:
    linear = torch.tensor([[3.0, 0.0], [0.0, 1.0]])
    convolution = torch.zeros(2, 1, 2, 2)
    convolution[0, 0, 1, 1] = 4.0
    assert unit_norms([linear, convolution]).tolist() == [5.0, 1.0]
