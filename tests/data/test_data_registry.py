from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from bench import data
from bench.data import registry, sets
from bench.data.registry import mean_and_std
from bench.data.split import Split
from bench.errors import BadInput


def test_the_sets_of_the_suite_are_there() -> None:
    assert set(data.available()) >= {"digits", "mnist", "fashion-mnist", "cifar10", "cifar100", "svhn"}


def test_digits_sizes_and_shape() -> None:
    digits = data.load("digits")
    assert (digits.name, digits.classes, digits.augment) == ("digits", 10, False)
    assert digits.input_shape == (1, 8, 8)
    assert (len(digits.train), len(digits.validation), len(data.load_test("digits"))) == (1222, 216, 359)
    for split in (digits.train, digits.validation, data.load_test("digits")):
        assert (split.images.dtype, split.labels.dtype) == (torch.uint8, torch.int64)


def test_digits_parts_hold_every_image_once_and_lose_nothing() -> None:
    digits = data.load("digits")
    values, labels = load_digits(return_X_y=True)
    expected = Counter(
        (tuple(image), int(label)) for image, label in zip(values.astype(int).tolist(), labels, strict=True)
    )
    found: Counter[tuple[tuple[int, ...], int]] = Counter()
    for split in (digits.train, digits.validation, data.load_test("digits")):
        back = (split.images.flatten(1).double() * 16 / 255).round().int().tolist()
        found.update((tuple(image), label) for image, label in zip(back, split.labels.tolist(), strict=True))
    assert found == expected
    assert digits.train.images.max() == 255


def test_digits_parts_are_stratified() -> None:
    digits = data.load("digits")
    splits = (digits.train, digits.validation, data.load_test("digits"))
    counts = torch.stack([torch.bincount(split.labels, minlength=10) for split in splits]).double()
    for part in counts:
        share = counts.sum(0) * part.sum() / counts.sum()
        assert (part - share).abs().max() < 2


def test_digits_are_the_same_whatever_the_seed() -> None:
    torch.manual_seed(0)
    first = data.load("digits")
    registry._prepared.cache_clear()
    torch.manual_seed(1)
    second = data.load("digits")
    assert torch.equal(first.validation.images, second.validation.images)
    assert first.fingerprint == second.fingerprint == "7521e444033ecd2e"


def test_a_set_is_read_once_in_a_process() -> None:
    assert data.load("digits").train is data.load("digits").train


def test_mean_and_std_are_of_the_train_part() -> None:
    digits = data.load("digits")
    pixels = digits.train.images.double() / 255
    torch.testing.assert_close(digits.mean.double(), pixels.mean(dim=(0, 2, 3)), rtol=1e-6, atol=0)
    torch.testing.assert_close(
        digits.std.double(), pixels.std(dim=(0, 2, 3), correction=0), rtol=1e-6, atol=0
    )


def test_mean_and_std_of_many_images_and_of_a_constant_channel() -> None:
    images = torch.randint(
        0, 256, (600, 3, 4, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    images[:, 1] = 51
    mean, std = mean_and_std(images)
    pixels = images.double() / 255
    torch.testing.assert_close(mean.double(), pixels.mean(dim=(0, 2, 3)), rtol=1e-6, atol=0)
    torch.testing.assert_close(std[[0, 2]].double(), pixels[:, [0, 2]].std(dim=(0, 2, 3), correction=0))
    assert std[1] == 1


def test_the_test_split_is_refused_while_sealed() -> None:
    with data.test_is_sealed():
        assert len(data.load("digits").train)
        with pytest.raises(data.TestSplitRefused, match="digits"):
            data.load_test("digits")
        with data.test_is_sealed(), pytest.raises(data.TestSplitRefused):
            data.load_test("digits")
        with pytest.raises(data.TestSplitRefused):
            data.load_test("digits")
    assert len(data.load_test("digits"))


def test_the_seal_is_lifted_after_an_error() -> None:
    with pytest.raises(ValueError, match="diverged"), data.test_is_sealed():
        raise ValueError("diverged")
    assert len(data.load_test("digits"))


def test_a_data_set_holds_no_test_images() -> None:
    splits = [value for value in vars(data.load("digits")).values() if isinstance(value, Split)]
    assert len(splits) == 2


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(BadInput, match=r"unknown data set 'minst' \(did you mean 'mnist'\?\)"):
        data.load("minst")


@pytest.mark.parametrize("path", ["./nothing.npz", "nothing.npz", "no/such/folder"])
def test_a_path_to_nothing(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match="no such file"):
        data.load(path)
    assert not os.listdir(tmp_path)


def test_own_npz_by_path(npz: Callable[..., Path], arrays: Callable[..., dict[str, np.ndarray]]) -> None:
    path = npz()
    mine = data.load(path)
    assert (mine.name, mine.classes, mine.input_shape) == (str(path), 4, (1, 6, 5))
    assert (len(mine.train), len(mine.validation)) == (36, 4)
    assert torch.bincount(mine.validation.labels).tolist() == [1, 1, 1, 1]
    test = data.load_test(path)
    assert np.array_equal(test.images[:, 0].numpy(), arrays()["x_test"])
    assert np.array_equal(test.labels.numpy(), arrays()["y_test"])


@pytest.mark.parametrize("key", ["x_train", "y_train", "x_test", "y_test"])
def test_the_fingerprint_tells_one_changed_value(
    key: str, npz: Callable[..., Path], arrays: Callable[..., dict[str, np.ndarray]]
) -> None:
    changed = arrays()[key].copy()
    changed.flat[0] = (int(changed.flat[0]) + 1) % 4
    same, other = npz("same.npz"), npz("other.npz", **{key: changed})
    assert data.load(npz()).fingerprint == data.load(same).fingerprint
    assert data.load(same).fingerprint != data.load(other).fingerprint


def test_too_few_images_for_a_validation_split(
    npz: Callable[..., Path], arrays: Callable[..., dict[str, np.ndarray]]
) -> None:
    few = {key: value[:4] for key, value in arrays().items()}
    with pytest.raises(BadInput, match=r"my\.npz: no class has the two train images"):
        data.load(npz(**few))


def test_the_root_is_the_argument_before_the_environment(
    npz: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    npz("mnist.npz")
    monkeypatch.setenv(registry.ROOT_VARIABLE, str(tmp_path))
    assert data.load("mnist").input_shape == (1, 6, 5)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(BadInput, match="download failed"):
        data.load("mnist", empty)


def test_a_file_dropped_into_the_folder_is_a_data_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "stripes.py").write_text(
        "import torch\n"
        "from bench.data.split import RawData, Split\n"
        "def load(root):\n"
        "    part = Split(torch.eye(8, dtype=torch.uint8).reshape(8, 1, 2, 4), torch.arange(8) % 2)\n"
        "    return RawData(part, part, classes=2, validation_fraction=0.5, augment=True)\n"
        "DATASETS = {'stripes': load}\n"
    )
    monkeypatch.setattr(sets, "__path__", [*sets.__path__, str(tmp_path)])
    registry._loaders.cache_clear()
    try:
        assert "stripes" in data.available()
        stripes = data.load("stripes")
        assert (stripes.augment, stripes.input_shape, len(stripes.validation)) == (True, (1, 2, 4), 4)
    finally:
        registry._loaders.cache_clear()


@pytest.mark.parametrize("name", ["~nobody-of-this-name/set.npz", "~nobody-of-this-name"])
def test_a_home_folder_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(BadInput, match="~nobody-of-this-name"):
        data.load(name)
    with pytest.raises(BadInput, match="~nobody-of-this-name"):
        data.load("imagenet", name)
