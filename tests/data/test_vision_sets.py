"""The sets of torchvision, from files that the tests write in torchvision's formats."""

from __future__ import annotations

import functools
import gzip
import hashlib
import os
import pickle
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torchvision.datasets as vision
from scipy.io import savemat

from bench import data
from bench.data import download
from bench.errors import BadInput

Make = Callable[..., dict[str, np.ndarray]]
MNIST_FILES = {
    "x_train": "train-images-idx3-ubyte",
    "y_train": "train-labels-idx1-ubyte",
    "x_test": "t10k-images-idx3-ubyte",
    "y_test": "t10k-labels-idx1-ubyte",
}


def idx(array: np.ndarray) -> bytes:
    """An array of bytes as the files of MNIST hold it: type and rank, then big-endian sizes, then the
    values."""
    sizes = struct.pack(f">{array.ndim}I", *array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.astype(np.uint8).tobytes()


def write_raw(root: Path, content: dict[str, np.ndarray], kind: str = "MNIST") -> Path:
    raw = root / kind / "raw"
    raw.mkdir(parents=True)
    for key, file in MNIST_FILES.items():
        (raw / file).write_bytes(idx(content[key]))
    return raw


def refusal(name: str, root: Path | None) -> str:
    with pytest.raises(BadInput) as caught:
        data.load(name, root)
    line = str(caught.value)
    assert "\n" not in line
    return line


def everything(name: str, root: Path) -> list[tuple[bytes, int]]:
    """Image and label of all parts, sorted."""
    loaded = data.load(name, root)
    return sorted(
        (image.numpy().tobytes(), int(label))
        for split in (loaded.train, loaded.validation, data.load_test(name, root))
        for image, label in zip(split.images, split.labels, strict=True)
    )


def expected(content: dict[str, np.ndarray]) -> list[tuple[bytes, int]]:
    return sorted(
        (np.moveaxis(image, -1, 0).tobytes() if image.ndim == 3 else image.tobytes(), int(label))
        for part in ("train", "test")
        for image, label in zip(content[f"x_{part}"], content[f"y_{part}"], strict=True)
    )


@pytest.mark.parametrize(("name", "kind"), [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST")])
def test_raw_files_of_mnist(name: str, kind: str, tmp_path: Path, arrays: Make) -> None:
    content = arrays((28, 28), 60, 20, 10)
    write_raw(tmp_path, content, kind)
    loaded = data.load(name, tmp_path)
    assert (loaded.classes, loaded.input_shape, loaded.augment) == (10, (1, 28, 28), False)
    assert everything(name, tmp_path) == expected(content)


@pytest.mark.parametrize(
    ("name", "folder"), [("cifar10", "cifar-10-batches-py"), ("cifar100", "cifar-100-python")]
)
def test_batches_of_cifar(
    name: str, folder: str, tmp_path: Path, arrays: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = arrays((32, 32, 3), 50, 20, 10)
    kind = vision.CIFAR10 if name == "cifar10" else vision.CIFAR100
    for part in ("train", "test"):
        files = [[file, None] for file, _ in getattr(kind, f"{part}_list")]
        monkeypatch.setattr(kind, f"{part}_list", files)  # no checksums: these are not the real files
        (tmp_path / folder).mkdir(exist_ok=True)
        chunks = np.array_split(np.arange(len(content[f"x_{part}"])), len(files))
        for (file, _), chunk in zip(files, chunks, strict=True):
            rows = np.moveaxis(content[f"x_{part}"][chunk], 3, 1).reshape(len(chunk), -1)
            labels = content[f"y_{part}"][chunk].tolist()
            key = "labels" if name == "cifar10" else "fine_labels"
            (tmp_path / folder / file).write_bytes(pickle.dumps({"data": rows, key: labels}))
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": None})
    (tmp_path / folder / kind.meta["filename"]).write_bytes(pickle.dumps({kind.meta["key"]: ["a"]}))
    loaded = data.load(name, tmp_path)
    assert (loaded.input_shape, loaded.augment) == ((3, 32, 32), True)
    assert loaded.classes == (10 if name == "cifar10" else 100)
    assert everything(name, tmp_path) == expected(content)


def test_matlab_files_of_svhn(tmp_path: Path, arrays: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    content = arrays((32, 32, 3), 50, 20, 10)
    listing = dict(vision.SVHN.split_list)
    for part in ("train", "test"):
        file = f"{part}_32x32.mat"
        labels = np.where(content[f"y_{part}"] == 0, 10, content[f"y_{part}"])  # the files write 10 for a 0
        savemat(tmp_path / file, {"X": np.moveaxis(content[f"x_{part}"], 0, 3), "y": labels[:, None]})
        listing[part] = [listing[part][0], file, None]
    monkeypatch.setattr(vision.SVHN, "split_list", listing)
    assert data.load("svhn", tmp_path).augment is False
    assert everything("svhn", tmp_path) == expected(content)


def test_the_npz_comes_first(tmp_path: Path, arrays: Make) -> None:
    write_raw(tmp_path, arrays((28, 28), 60, 20, 10))
    np.savez(tmp_path / "mnist.npz", **arrays((14, 14)))
    loaded = data.load("mnist", tmp_path)
    assert (loaded.input_shape, loaded.classes) == ((1, 14, 14), 10)


def test_labels_beyond_the_classes_of_the_set(tmp_path: Path, arrays: Make) -> None:
    np.savez(tmp_path / "mnist.npz", **arrays(classes=12))
    assert (
        refusal("mnist", tmp_path) == f"{tmp_path / 'mnist.npz'}: y_train has label 10, out of range 0 to 9"
    )


def test_without_a_root() -> None:
    line = refusal("mnist", None)
    for word in ("'mnist'", "--data-root", "BENCH_DATA", "mnist.npz", "x_train (N,H,W)"):
        assert word in line


def test_a_root_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert refusal("mnist", tmp_path / "file") == f"data root {tmp_path / 'file'}: is not a folder"


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "cifar10", "cifar100", "svhn"])
@pytest.mark.parametrize("folder", [".", "new/folder"])
def test_a_download_that_fails_leaves_nothing(name: str, folder: str, tmp_path: Path) -> None:
    line = refusal(name, tmp_path / folder)
    for word in ("download failed", "--data-root", "BENCH_DATA", str(tmp_path / folder / f"{name}.npz")):
        assert word in line
    assert os.listdir(tmp_path) == []


Serve = Callable[..., Path]


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """`serve(content, checksum)`: a server that has MNIST to download; gives an empty data root."""
    folder, root = tmp_path / "server", tmp_path / "root"
    folder.mkdir()
    root.mkdir()
    handler = functools.partial(QuietHandler, directory=str(folder))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setattr(vision.MNIST, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])

    def put(content: dict[str, np.ndarray], checksum: str | None = None) -> Path:
        resources = []
        for key, file in MNIST_FILES.items():
            packed = gzip.compress(idx(content[key]))
            (folder / f"{file}.gz").write_bytes(packed)
            resources.append((f"{file}.gz", checksum or hashlib.md5(packed).hexdigest()))
        monkeypatch.setattr(vision.MNIST, "resources", resources)
        return root

    yield put
    server.shutdown()
    thread.join()
    server.server_close()


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        """Says nothing."""


def test_a_download_arrives_whole(serve: Serve, arrays: Make, capfd: pytest.CaptureFixture[str]) -> None:
    content = arrays((28, 28), 60, 20, 10)
    root = serve(content)
    assert everything("mnist", root) == expected(content)
    assert sorted(path.name for path in root.rglob("*")) == sorted(["MNIST", "raw", *MNIST_FILES.values()])
    assert capfd.readouterr() == ("", f"downloading mnist to {root}\n")


def test_a_download_with_the_wrong_checksum(serve: Serve, arrays: Make) -> None:
    root = serve(arrays((28, 28), 60, 20, 10), checksum="0" * 32)
    line = refusal("mnist", root)
    assert "download failed (RuntimeError" in line
    assert os.listdir(root) == []


def test_a_download_fills_a_gap_and_leaves_the_rest(serve: Serve, arrays: Make) -> None:
    content = arrays((28, 28), 60, 20, 10)
    root = serve(content)
    raw = write_raw(root, {**content, "y_train": content["y_train"][::-1]})
    (raw / MNIST_FILES["x_test"]).unlink()
    mine = (raw / MNIST_FILES["y_train"]).read_bytes()
    assert np.array_equal(data.load_test("mnist", root).images[:, 0].numpy(), content["x_test"])
    assert (raw / MNIST_FILES["y_train"]).read_bytes() == mine


def test_a_silent_server_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "SILENCE_SECONDS", 0.2)
    before = socket.getdefaulttimeout()
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections and never answers
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        monkeypatch.setattr(vision.MNIST, "mirrors", [address])
        assert "download failed (" in refusal("mnist", tmp_path / "root")
    assert socket.getdefaulttimeout() == before
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("key", ["x_train", "y_test"])
def test_a_raw_file_cut_short(key: str, tmp_path: Path, arrays: Make) -> None:
    raw = write_raw(tmp_path, arrays((28, 28), 60, 20, 10))
    file = raw / MNIST_FILES[key]
    file.write_bytes(file.read_bytes()[:-10])
    assert refusal("mnist", tmp_path).startswith(f"{raw}: the files of 'mnist' are damaged (")


def test_raw_files_that_do_not_belong_together(tmp_path: Path, arrays: Make) -> None:
    content = arrays((28, 28), 60, 20, 10)
    raw = write_raw(tmp_path, {**content, "y_train": content["y_train"][:50]})
    assert refusal("mnist", tmp_path) == f"{raw}: y_train has 50 labels for the 60 images of x_train"
