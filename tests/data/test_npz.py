from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bench import data
from bench.data import registry
from bench.data.npz import read_npz
from bench.errors import BadInput

Write = Callable[..., Path]
Make = Callable[..., dict[str, np.ndarray]]


def refusal(path: Path) -> str:
    """The one line that refuses a file; it begins with its path."""
    with pytest.raises(BadInput) as caught:
        data.load(path)
    line = str(caught.value)
    assert line.startswith(f"{path}: ")
    assert "\n" not in line
    return line.removeprefix(f"{path}: ")


def test_colour_images_come_channels_first(npz: Write, arrays: Make) -> None:
    content = arrays((6, 5, 3))
    read = read_npz(npz(**content))
    assert read.train.images.shape == (40, 3, 6, 5)
    assert read.train.images.is_contiguous()
    assert np.array_equal(read.train.images.permute(0, 2, 3, 1).numpy(), content["x_train"])
    assert np.array_equal(read.test.labels.numpy(), content["y_test"])


@pytest.mark.parametrize("kind", [np.uint8, np.int32, np.uint64])
def test_labels_of_any_integer_type(kind: type, npz: Write, arrays: Make) -> None:
    read = read_npz(npz(y_train=arrays()["y_train"].astype(kind)))
    assert read.train.labels.tolist() == arrays()["y_train"].tolist()


def test_names_of_classes_count_them(npz: Write) -> None:
    """A class may then be without images, as in a part of a larger set."""
    path = npz(classes=np.array(list("abcdef")))
    assert read_npz(path).classes == 6
    of_six = data.load(path).fingerprint
    registry._prepared.cache_clear()
    assert data.load(npz(classes=np.array(list("abcdefg")))).fingerprint != of_six


@pytest.mark.parametrize("key", ["x_train", "y_train", "x_test", "y_test"])
def test_a_missing_key(key: str, npz: Write) -> None:
    line = refusal(npz(**{key: None}))
    assert line.startswith(f"key {key!r} is missing; the file has: ")
    assert key not in line.split("has: ")[1]


@pytest.mark.parametrize(
    ("key", "change", "expected"),
    [
        ("x_train", lambda x: x / np.float32(255), "x_train has dtype float32, must be uint8"),
        ("x_test", lambda x: x.astype(np.int64), "x_test has dtype int64, must be uint8"),
        (
            "x_train",
            lambda x: x.reshape(40, 30),
            "x_train has shape (40, 30), must be (N, H, W) or (N, H, W, C)",
        ),
        ("x_test", lambda x: x[:0], "x_test has shape (0, 6, 5), holds no pixels"),
        ("x_test", lambda x: x[:, :4], "x_test has images of (4, 5), x_train of (6, 5)"),
        ("y_train", lambda y: y[:-1], "y_train has 39 labels for the 40 images of x_train"),
        ("y_test", lambda y: y[1:], "y_test has 11 labels for the 12 images of x_test"),
        ("y_train", lambda y: y.astype(float), "y_train has dtype float64, must be an integer type"),
        ("y_test", lambda y: y > 1, "y_test has dtype bool, must be an integer type"),
        ("y_train", lambda y: y.astype(str), "y_train has dtype <U21, must be an integer type"),
        ("y_train", lambda y: y[:, None], "y_train has shape (40, 1), must be (N,)"),
        ("y_train", lambda y: y - 1, "y_train has label -1, out of range (labels count from 0)"),
        ("y_test", lambda y: y + 1, "y_test has label 4, out of range 0 to 3"),
        ("y_test", lambda y: y - 1, "y_test has label -1, out of range 0 to 3"),
        ("y_train", lambda y: y * 0, "y_train has fewer than 2 classes"),
        ("y_train", lambda y: y + 1, "y_train has label 4 but no image of class 0; labels must run from 0"),
        ("y_train", lambda y: y * 2, "y_train has label 6 but no image of class 1; labels must run from 0"),
    ],
)
def test_a_damaged_key(
    key: str, change: Callable[[np.ndarray], np.ndarray], expected: str, npz: Write, arrays: Make
) -> None:
    assert refusal(npz(**{key: change(arrays()[key])})).startswith(expected)


def test_channels_first_is_told_apart(npz: Write, arrays: Make) -> None:
    line = refusal(npz(**arrays((3, 32, 32))))
    assert line == "x_train has shape (40, 3, 32, 32), looks like (N, C, H, W), must be (N, H, W, C)"


def test_more_labels_than_named_classes(npz: Write) -> None:
    assert refusal(npz(classes=np.array(["a", "b"]))) == "y_train has label 2, out of range 0 to 1"


def test_class_names_of_the_wrong_shape(npz: Write) -> None:
    assert refusal(npz(classes=np.array(4))).startswith("classes has shape (), must be (classes,)")


def test_pickled_objects_are_never_loaded(npz: Write, arrays: Make) -> None:
    line = refusal(npz(y_train=arrays()["y_train"].astype(object)))
    assert line.startswith("y_train cannot be read (ValueError: Object arrays cannot be loaded")


@pytest.mark.parametrize(
    "content",
    [b"", b"not a zip file", b"PK\x03\x04 a zip that ends here", b"\x93NUMPY\x01\x00", b"\x80\x04K\x01."],
)
def test_a_file_of_another_kind(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "broken.npz"
    path.write_bytes(content)
    assert refusal(path).startswith("is not a readable .npz file (")


def test_a_single_array(tmp_path: Path) -> None:
    with (tmp_path / "single.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    assert refusal(tmp_path / "single.npz") == "is not a readable .npz file (it holds a single array)"


def test_a_file_cut_short(npz: Write) -> None:
    path = npz()
    path.write_bytes(path.read_bytes()[:-200])
    assert refusal(path).startswith("is not a readable .npz file (")


def test_a_flipped_byte_is_noticed(npz: Write, arrays: Make) -> None:
    path = npz()
    content, pixels = path.read_bytes(), arrays()["x_train"].tobytes()
    at = content.index(pixels) + 100
    path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    assert refusal(path).startswith("x_train cannot be read (BadZipFile: Bad CRC-32")


def test_encrypted(npz: Write) -> None:
    """One flipped bit, in the directory of the archive, says so."""
    path = npz()
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    assert " cannot be read (RuntimeError: File " in refusal(path)


def test_more_than_there_is_memory_for(npz: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(archive: np.lib.npyio.NpzFile, key: str) -> np.ndarray:
        raise MemoryError("Unable to allocate 9 TiB")

    path = npz()
    monkeypatch.setattr(np.lib.npyio.NpzFile, "__getitem__", full)
    assert refusal(path) == "x_train cannot be read (MemoryError: Unable to allocate 9 TiB)"
