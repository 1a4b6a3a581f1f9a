"""Whatever a user gets wrong ends in exit code 2 and one line that says what and where, and nothing is written."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bench.cli import main
from tests.cli.folders import METHOD, SUITE, tree, write

Refused = Callable[..., str]


@pytest.fixture
def refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    plan_here: None,
) -> Refused:
    """Runs a command that must be refused; its one line."""
    monkeypatch.chdir(tmp_path)

    def refuse(*words: str) -> str:
        before = tree(tmp_path)
        code = main(list(words))
        out, err = capsys.readouterr()
        assert code == 2
        assert out == ""
        assert err.count("\n") == 1, err
        assert err.startswith("bench: ")
        assert tree(tmp_path) == before
        return err

    return refuse


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (('"magnitude"\nstr', '"magnitud"\nstr'), ["methods.1.name", "'magnitud'", "'magnitude'"]),
        (("mlp-300-100", "mlp-300-10"), ["workloads.0.network", "'mlp-300-10'", "'mlp-300-100'"]),
        (('"digits"', '"digit"'), ["workloads.0.dataset", "'digit'", "'digits'"]),
        (('"digits"', '"./gone.npz"'), ["workloads.0.dataset", "gone.npz", "no such file"]),
        (("granularity =", "granularty ="), ["methods.2.config", "'granularty'", "'granularity'"]),
        (('"weight"', '"weights"'), ["methods.2.config", "'weights'", "'weight'"]),
        (("batch_size", "batchsize"), ["workloads.0.recipe.batchsize", "'batch_size'"]),
        (("batch_size = 256", "learning_rate = inf"), ["workloads.0.recipe.learning_rate", "finite", "inf"]),
        (
            ("epochs = 2", "step_at = [1, 2], epochs = 2"),
            ["workloads.0.recipe.step_at.1", "equal to 1", "got 2"],
        ),
        (
            ("epochs = 2", "epochs = 2, nesterov = true, momentum = 0"),
            ["workloads.0.recipe", "a momentum above"],
        ),
        (
            ("batch_size = 256", "batch_size = 1e18"),
            ["workloads.0.recipe.batch_size", "less than or equal to"],
        ),
        (("epochs = 2", f"epochs = {2**63}"), ["workloads.0.recipe.epochs", "less than or equal to"]),
        (
            ("recipe =", "cpu = { threads = 100000000000 }\nrecipe ="),
            ["workloads.0.cpu.threads", "less than or equal to 4096"],
        ),
        (("recipe =", f"round_to = {2**63}\nrecipe ="), ["workloads.0.round_to", "less than or equal to"]),
        (("recipe =", 'start = ""\nrecipe ='), ["workloads.0.start", "at least 1 character"]),
        (('"digits"', '""'), ["workloads.0.dataset", "at least 1 character"]),
        (("epochs = 2", "epochs = 1"), ["workloads.0.recipe.epochs", "1 epochs are too few for 2 phases"]),
        (("seeds = [0]", 'seeds = ["one"]'), ["seeds.0", "'one'"]),
        (("seeds = [0]", "seeds = [1, 1]"), ["seeds", "1 stands there twice"]),
        (("seeds = [0]", "seeds = 0"), ["seeds: input should be a list, got 0"]),
        (("seeds = [0]", "seeds = [-1]"), ["seeds.0", "greater than or equal to 0"]),
        (("seeds = [0]", f"seeds = [{2**63}]"), ["seeds.0", f"less than or equal to {2**63 - 1}"]),
        (("[0.5]", "[0.5, 0.5]"), ["methods.1.strengths", "0.5 stands there twice"]),
        (("[0.5]", "[]"), ["methods.1.strengths"]),
        (("[0.5]", "[1.5]"), ["methods.1.strengths", "1.5 is out of range"]),
        (("[0.5]", "[nan]"), ["methods.1.strengths", "nan is out of range"]),
        (("latency", "latncy"), ["measure.latncy", "'latency'"]),
        (("title =", "titel ="), ["titel", "'title'"]),
        (("mlp-300-100", "lenet5"), ["workloads.0.network", "'lenet5'", "at least 16×16, got 8×8"]),
        (("[[methods]]", "[[methods"), ["not a TOML file", "line"]),
    ],
)
def test_a_wrong_word_in_a_suite(
    change: tuple[str, str], says: list[str], refused: Refused, tmp_path: Path
) -> None:
    assert change[0] in SUITE
    write(tmp_path / "mine.toml", SUITE.replace(*change, 1))
    line = refused("run", "mine.toml", "--results", "r")
    for part in ["mine.toml", *says]:
        assert part in line


def test_a_suite_that_is_none(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "binary.toml").write_bytes(b"\x89PNG\r\n\x1a\n\x00\xff")
    assert "binary.toml: not a TOML file" in refused("run", "binary.toml")
    assert "'digit' (did you mean 'digits'?)" in refused("run", "digit")
    assert "gone.toml: no such file" in refused("plan", "gone.toml")
    (tmp_path / "folder.toml").mkdir()
    assert "folder.toml: no such file" in refused("run", "folder.toml")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--method", "magnitud"], ["--method magnitud", "mine.toml", "'magnitude'"]),
        (["--network", "mlp-300"], ["--network mlp-300", "mine.toml", "'mlp-300-100'"]),
        (["--dataset", "digit"], ["--dataset digit", "mine.toml", "'digits'"]),
        (["--strength", "0.55"], ["--strength 0.55", "mine.toml", "0.5?"]),
        (["--seed", "7"], ["--seed 7", "mine.toml", "0?"]),
        (["--device", "gpu"], ["--device gpu", "cpu, cuda"]),
        (["--device", "meta"], ["--device meta", "cpu and cuda"]),
    ],
)
def test_a_wrong_word_on_the_command_line(
    words: list[str], says: list[str], refused: Refused, tmp_path: Path
) -> None:
    write(tmp_path / "mine.toml")
    for command in ("run", "plan"):
        line = refused(command, "mine.toml", "--results", "r", *words)
        for part in says:
            assert part in line


def test_cuda_without_cuda(refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    write(tmp_path / "mine.toml")
    assert "--device cuda: this machine has 0 CUDA devices" in refused("run", "mine.toml", "--device", "cuda")


def test_a_strength_that_one_method_has_is_no_error_for_another(
    tmp_path: Path, plan_here: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "mine.toml")
    assert main(["plan", "mine.toml", "--strength", "0.75"]) == 0
    out = capsys.readouterr().out
    assert "weights 0.75" in out
    assert "dense" in out
    assert "magnitude 0.5" not in out


def test_missing_data_says_how_to_get_it(refused: Refused, tmp_path: Path) -> None:
    write(tmp_path / "mine.toml", SUITE.replace('"digits"', '"mnist"'))
    line = refused("run", "mine.toml")
    for part in ("mine.toml: workloads.0.dataset", "'mnist'", "--data-root", "BENCH_DATA", "mnist.npz"):
        assert part in line


@pytest.fixture
def arrays() -> dict[str, np.ndarray]:
    labels = np.arange(20) % 2
    images = np.zeros((20, 8, 8), np.uint8)
    return {"x_train": images, "y_train": labels, "x_test": images, "y_test": labels}


@pytest.mark.parametrize(
    ("key", "change", "says"),
    [
        ("x_train", lambda a: a.astype(np.float32), ["x_train", "float32", "uint8"]),
        ("x_test", lambda a: a[:, :7], ["x_test", "(7, 8)", "(8, 8)"]),
        ("x_train", lambda a: a[:, :, 0], ["x_train", "(20, 8)", "(N, H, W)"]),
        ("y_train", lambda a: a[:5], ["y_train", "5 labels", "20 images"]),
        ("y_test", lambda a: a + 5, ["y_test", "label 5", "0 to 1"]),
        ("y_test", lambda a: a - 1, ["y_test", "label -1", "0 to 1"]),
        ("y_train", lambda a: a * 0.5, ["y_train", "float64"]),
        ("y_train", lambda a: a.astype(object), ["y_train"]),
    ],
)
def test_damaged_arrays(
    key: str,
    change: Callable[[np.ndarray], np.ndarray],
    says: list[str],
    arrays: dict[str, np.ndarray],
    refused: Refused,
    tmp_path: Path,
) -> None:
    np.savez(tmp_path / "mine.npz", **{**arrays, key: change(arrays[key])})
    write(tmp_path / "mine.toml", SUITE.replace('"digits"', '"./mine.npz"'))
    line = refused("run", "mine.toml")
    for part in ["mine.toml: workloads.0.dataset", "mine.npz", *says]:
        assert part in line


def test_a_file_that_is_no_npz(arrays: dict[str, np.ndarray], refused: Refused, tmp_path: Path) -> None:
    write(tmp_path / "mine.toml", SUITE.replace('"digits"', '"./mine.npz"'))
    path = tmp_path / "mine.npz"
    np.savez(path, **arrays)
    whole = path.read_bytes()
    for content in (b"", b"not an archive", whole[: len(whole) // 2]):
        path.write_bytes(content)
        assert "mine.npz: is not a readable .npz file" in refused("run", "mine.toml")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x_train.npy", b"nothing")
    assert "mine.npz: key 'y_train' is missing" in refused("run", "mine.toml")


@pytest.mark.parametrize("place", ["file", "file/below", "file/below/it"])
def test_a_results_folder_that_cannot_be_written(place: str, refused: Refused, tmp_path: Path) -> None:
    write(tmp_path / "mine.toml")
    (tmp_path / "file").write_text("in the way")
    assert f"results folder {place}: cannot write in file" in refused("run", "mine.toml", "--results", place)


def test_a_stage_folder_that_cannot_be_written(refused: Refused, tmp_path: Path) -> None:
    write(tmp_path / "mine.toml")
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "point").write_text("in the way")
    line = refused("run", "mine.toml", "--results", "r")
    assert "results folder r: cannot write in r/point: Not a directory" in line


def test_views_that_cannot_be_written(refused: Refused, tmp_path: Path, finished: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for command in ("report", "figures"):
        line = refused(command, "--results", str(finished), "--out", "file/below")
        assert "folder file/below: cannot write in file: Not a directory" in line


def test_a_markdown_file_without_parts_to_make_anew(refused: Refused, tmp_path: Path, finished: Path) -> None:
    words = ("report", "--results", str(finished), "--out", "out", "--readme")
    assert "--readme gone.md: cannot be read: No such file" in refused(*words, "gone.md")
    (tmp_path / "plain.md").write_text("# Nothing of ours\n")
    assert "--readme plain.md: no marked part in it" in refused(*words, "plain.md")
    (tmp_path / "picture.md").write_bytes(b"\x89PNG\xff")
    assert "--readme picture.md: no text" in refused(*words, "picture.md")


def test_a_folder_that_cannot_keep_what_was_pushed(
    refused: Refused, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bench.records import store

    def read_only(dir: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(store.tempfile, "TemporaryFile", read_only)
    assert "cannot write in" in refused("push", "--offline", "--results", str(finished))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("import torch\nx = 1 / 0\n", ["line 2", "ZeroDivisionError"]),
        ("import not_there\n", ["line 1", "No module named 'not_there'"]),
        ("def f(:\n", ["line 1", "SyntaxError"]),
        ("x = 1\n", ["no method in this file"]),
        (METHOD.replace('"mine"', '"dense"'), ["the name 'dense' is taken"]),
        (METHOD.replace("def plan", "def plans"), ["does not define plan"]),
        (METHOD.replace("(0.5,)", "(1.0,)"), ["strengths", "1 is out of range"]),
        (METHOD.replace("network.fc1", "network.fc9"), ["AttributeError", "fc9"]),
        (METHOD.replace("(0.5,)", "0.5"), ["strengths is 0.5"]),
        (METHOD.replace('"ratio"', '"ration"'), ["traits of 'mine'", "'ration' (did you mean 'ratio'?)"]),
        (METHOD.replace('"unit"', '"units"'), ["traits of 'mine'", "'units' (did you mean 'unit'?)"]),
        (METHOD.replace("Traits(", "tuple("), ["traits of 'mine'", "TypeError"]),
        (METHOD.replace('Traits("unit", "ratio", False)', '"unit"'), ["traits of 'mine'", "a str, not"]),
    ],
)
def test_a_method_file_that_is_none(text: str, says: list[str], refused: Refused, tmp_path: Path) -> None:
    write(tmp_path / "mine.toml")
    write(tmp_path / "method.py", text)
    line = refused("run", "mine.toml", "--method", "./method.py")
    for part in ["method.py", *says]:
        assert part in line


def test_a_method_file_that_is_not_there(refused: Refused, tmp_path: Path) -> None:
    write(tmp_path / "mine.toml")
    assert "gone.py: no such file" in refused("run", "mine.toml", "--method", "gone.py")


def test_in_a_process_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The plan is made elsewhere: its complaint comes home, and a process that ends there is one too."""
    write(tmp_path / "mine.toml", SUITE.replace("mlp-300-100", "lenet5"))
    assert main(["run", str(tmp_path / "mine.toml"), "--results", str(tmp_path / "r")]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "got 8×8" in err
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("command", ["status", "report", "figures", "measure", "verify", "push"])
def test_commands_that_read_a_folder(command: str, refused: Refused, tmp_path: Path) -> None:
    assert "gone: there is no such folder" in refused(command, "--results", "gone")
    (tmp_path / "empty").mkdir()
    assert "results folder empty: there are no" in refused(command, "--results", "empty")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--method", "magnitud"], "--method magnitud: results folder"),
        (["--strength", "0.6"], "did you mean 0.5?"),
        (["--seed", "3"], "did you mean 0?"),
        (["--network", "lenet5"], "--network lenet5"),
    ],
)
def test_filters_that_no_record_knows(words: list[str], says: str, refused: Refused, finished: Path) -> None:
    for command in ("measure", "verify"):
        assert says in refused(command, "--results", str(finished), *words)


@pytest.mark.parametrize(
    "words",
    [
        ["run"],
        ["fly"],
        ["list", "method"],
        ["run", "digits", "--jobs", "0"],
        ["run", "digits", "--jobs", "two"],
        ["run", "digits", "--timeout", "nan"],
        ["run", "digits", "--strength", "half"],
        ["measure", "--latency", "slow"],
    ],
)
def test_words_that_argparse_refuses(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    err = capsys.readouterr().err
    assert "_positive" not in err
    assert "_seconds" not in err
