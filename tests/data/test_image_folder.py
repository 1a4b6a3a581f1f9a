from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench import data
from bench.data.image_folder import read_image_folder
from bench.errors import BadInput

COUNTS = {"train": {"cat": 5, "ant": 4, "bee": 3}, "test": {"bee": 2, "ant": 1}}


def pixels(label: str, index: int, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng([ord(label[0]), index]).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture
def grey(tmp_path: Path) -> Path:
    return write(tmp_path / "animals", (7, 6))


def write(folder: Path, shape: tuple[int, ...]) -> Path:
    for part, classes in COUNTS.items():
        for name, count in classes.items():
            (folder / part / name).mkdir(parents=True)
            for index in range(count):
                Image.fromarray(pixels(name, index, shape)).save(folder / part / name / f"{index}.png")
    return folder


def refusal(folder: Path) -> str:
    with pytest.raises(BadInput) as caught:
        data.load(folder)
    line = str(caught.value)
    assert "\n" not in line
    return line


@pytest.mark.parametrize("shape", [(7, 6), (7, 6, 3)])
def test_round_trip(tmp_path: Path, shape: tuple[int, ...]) -> None:
    read = read_image_folder(write(tmp_path / "animals", shape))
    assert read.classes == 3
    assert read.train.labels.tolist() == [0] * 4 + [1] * 3 + [2] * 5
    assert read.test.labels.tolist() == [0, 1, 1]
    assert read.train.images.shape[1:] == (len(shape) if len(shape) == 3 else 1, 7, 6)
    third_cat = read.train.images[4 + 3 + 2].permute(1, 2, 0).numpy().reshape(shape)
    assert np.array_equal(third_cat, pixels("cat", 2, shape))


def test_by_path(grey: Path) -> None:
    animals = data.load(grey)
    assert (animals.name, animals.input_shape) == (str(grey), (1, 7, 6))
    assert len(animals.train) + len(animals.validation) == 12
    assert len(data.load_test(grey)) == 3


def test_one_colour_image_makes_all_of_them_colour(grey: Path) -> None:
    Image.fromarray(pixels("c", 9, (7, 6, 4)), "RGBA").save(grey / "test" / "ant" / "9.png")
    read = read_image_folder(grey)
    assert read.train.images.shape[1:] == (3, 7, 6)
    assert np.array_equal(read.test.images[1].permute(1, 2, 0).numpy(), pixels("c", 9, (7, 6, 4))[:, :, :3])
    assert np.array_equal(read.train.images[0, 2].numpy(), pixels("ant", 0, (7, 6)))


def test_other_files_are_left_alone(grey: Path) -> None:
    (grey / "train" / "ant" / "notes.txt").write_text("no image")
    (grey / "train" / "ant" / ".hidden.png").write_text("no image")
    (grey / "train" / ".cache").mkdir()
    (grey / "train" / "list.csv").write_text("")
    assert len(read_image_folder(grey).train) == 12


def test_images_of_unequal_sizes(grey: Path) -> None:
    Image.fromarray(pixels("b", 0, (9, 8))).save(grey / "test" / "bee" / "5.png")
    first = grey / "train" / "ant" / "0.png"
    odd = grey / "test" / "bee" / "5.png"
    assert refusal(grey) == f"{odd}: is 8×9 pixels but {first} 6×7; all must be equal"


def test_a_file_that_is_no_image(grey: Path) -> None:
    broken = grey / "train" / "bee" / "0.png"
    broken.write_bytes(b"no image")
    assert refusal(grey).startswith(f"{broken}: is not a readable image (UnidentifiedImageError")


def test_an_image_cut_short(grey: Path) -> None:
    broken = grey / "train" / "bee" / "0.png"
    broken.write_bytes(broken.read_bytes()[:60])
    assert refusal(grey).startswith(f"{broken}: is not a readable image (")


def test_sixteen_bits_are_refused(grey: Path) -> None:
    deep = grey / "train" / "bee" / "0.png"
    Image.fromarray(np.full((7, 6), 1000, dtype=np.uint16)).save(deep)
    assert refusal(grey).startswith(f"{deep}: has pixels of kind 'I;16', must be 8 bits a channel")


@pytest.mark.parametrize("part", ["train", "test"])
def test_a_missing_part(grey: Path, part: str) -> None:
    (grey / part).rename(grey / "elsewhere")
    assert refusal(grey) == f"{grey}: no folder {part!r} (expected animals/{part}/<class>/*.png)"


def test_a_class_that_is_only_in_test(grey: Path) -> None:
    (grey / "test" / "dog").mkdir()
    assert refusal(grey) == f"{grey / 'test' / 'dog'}: class 'dog' is not in train"


def test_a_class_without_images(grey: Path) -> None:
    (grey / "train" / "dog").mkdir()
    assert refusal(grey).startswith(f"{grey / 'train' / 'dog'}: no images (")


def test_no_test_images(grey: Path) -> None:
    for path in (grey / "test").rglob("*.png"):
        path.unlink()
    assert refusal(grey).startswith(f"{grey / 'test'}: no images (")


def test_a_single_class(tmp_path: Path) -> None:
    for part in ("train", "test"):
        (tmp_path / part / "only").mkdir(parents=True)
        Image.fromarray(pixels("o", 0, (4, 4))).save(tmp_path / part / "only" / "0.png")
    line = f"{tmp_path / 'train'}: holds 1 folders, must hold one for each class, two at least"
    assert refusal(tmp_path) == line


def test_images_that_lie_in_no_class(grey: Path) -> None:
    for image in grey.rglob("*.png"):
        image.rename(image.parent.parent / f"{image.parent.name}-{image.name}")
    for part in COUNTS:
        for name in COUNTS[part]:
            (grey / part / name).rmdir()
    assert refusal(grey).startswith(f"{grey / 'train'}: holds 0 folders, must hold one for each class")
