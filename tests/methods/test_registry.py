"""Finding methods and refusing what is none, in one line."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

import methods
from methods import registry
from methods.base import Method

MINE = '''
from methods.base import Method, SparsityPlan, Traits

class Mine(Method):
    """Keeps all."""
    name = "mine"
    title = "Mine"
    paper = "none"
    strengths = (0.0,)
    strength_meaning = "nothing"

    @property
    def traits(self) -> Traits:
        return Traits("none", "none", True)

    def plan(self, strength: float) -> SparsityPlan:
        return SparsityPlan()
'''


@pytest.fixture(autouse=True)
def _forget_files() -> Iterator[None]:
    yield
    registry._from_files.clear()


def one_line(error: pytest.ExceptionInfo[ValueError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


def test_finds_every_file_of_the_package() -> None:
    assert {"dense", "thin-dense", "random", "magnitude", "targeted-dropout"} <= set(methods.available())
    assert methods.available() == sorted(methods.available())


def test_a_file_dropped_into_the_package_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dropped_here.py").write_text(MINE)
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path)])
    registry._builtin.cache_clear()
    try:
        assert methods.get("mine").title == "Mine"
        assert methods.source("mine") == "builtin"
    finally:
        monkeypatch.undo()
        registry._builtin.cache_clear()
        sys.modules.pop("methods.dropped_here", None)


@pytest.mark.parametrize("name", methods.available())
def test_every_method_says_what_it_is(name: str) -> None:
    method = methods.create(name)
    assert method.name == name
    assert method.paper
    assert list(method.strengths) == sorted(method.strengths)
    assert method.strengths
    resolved = method.config.model_dump()
    assert methods.create(name, **resolved).config == method.config


def test_unknown_method_names_the_nearest() -> None:
    with pytest.raises(methods.UnknownMethod) as error:
        methods.create("magnitud")
    assert one_line(error) == "there is no method 'magnitud' (did you mean 'magnitude'?)"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"granularty": "unit"},
            "method 'magnitude' has no setting 'granularty' (did you mean 'granularity'?)",
        ),
        (
            {"granularity": "units"},
            "method 'magnitude', setting 'granularity': 'units': Input should be 'unit' or 'weight' "
            "(did you mean 'unit'?)",
        ),
        ({"finetune": 1.0}, "method 'magnitude', setting 'finetune': 1.0: Input should be less than 1"),
    ],
)
def test_bad_settings_are_named(config: dict[str, object], message: str) -> None:
    with pytest.raises(methods.BadConfig) as error:
        methods.create("magnitude", **config)
    assert one_line(error) == message


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_no_setting_of_any_method_is_infinite(value: float) -> None:
    tried = 0
    for name in methods.available():
        if name == "mine":
            continue
        for setting, field in methods.get(name).Config.model_fields.items():
            if field.annotation is float:
                tried += 1
                with pytest.raises(methods.BadConfig, match=setting):
                    methods.create(name, **{setting: value})
    assert tried > 20


def test_a_file_joins_by_path(tmp_path: Path) -> None:
    path = tmp_path / "my_method.py"
    path.write_text(MINE)
    loaded = methods.load_file(path)
    assert issubclass(loaded, Method)
    assert methods.load_file(str(path)) is loaded
    assert methods.get("mine") is loaded
    assert "mine" in methods.available()
    assert methods.source("mine") == str(path)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("import torch\nx = 1 / 0\n", "my_method.py, line 2: ZeroDivisionError: division by zero"),
        ("import torch\n\ndef f(:\n", "my_method.py, line 3: SyntaxError: invalid syntax"),
        ("import not_there_at_all\n", "line 1: ModuleNotFoundError: No module named 'not_there_at_all'"),
        ("raise SystemExit(3)\n", "line 1: SystemExit: 3"),
        ("raise ValueError('two\\nlines')\n", "line 1: ValueError: two lines"),
        ("from methods.dense import Dense\n", "no method in this file"),
        (MINE.replace("def plan", "def plans"), "Mine does not define plan"),
        (MINE + MINE.replace("Mine(", "Other("), "has 2 (Mine, Other)"),
        (MINE.replace('"mine"', '"dense"'), "the name 'dense' is taken (builtin)"),
        (MINE.replace("    strengths = (0.0,)\n", ""), "Mine has no strengths"),
        (MINE.replace("(0.0,)", "0.5"), "strengths is 0.5, must be a tuple of numbers"),
        (MINE.replace("(0.0,)", "('0.5',)"), "strengths is ('0.5',), must be a tuple of numbers"),
        (MINE.replace("(0.0,)", "()"), "strengths is (), must be a tuple of numbers"),
        (MINE.replace('"mine"', '"mine "'), "name 'mine ': no blanks at its ends"),
        (MINE.replace('"mine"', "3"), "name is 3, must be a text"),
    ],
)
def test_a_file_that_gives_no_method_is_refused(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "my_method.py"
    path.write_text(text)
    with pytest.raises(methods.BadMethodFile) as error:
        methods.load_file(path)
    assert one_line(error).startswith(str(path))
    assert says in str(error.value)


@pytest.mark.parametrize(("name", "says"), [("gone.py", "no such file"), ("method.txt", "no Python file")])
def test_a_path_that_is_no_python_file_is_refused(name: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "method.txt").write_text(MINE)
    with pytest.raises(methods.BadMethodFile, match=says):
        methods.load_file(tmp_path / name)


def test_a_file_of_the_package_goes_by_its_name() -> None:
    path = Path(methods.__path__[0], "dense.py")
    with pytest.raises(methods.BadMethodFile, match="a method of the package, given by its name: dense"):
        methods.load_file(path)


def test_two_files_cannot_share_a_name(tmp_path: Path) -> None:
    for name in ("one.py", "two.py"):
        (tmp_path / name).write_text(MINE)
    methods.load_file(tmp_path / "one.py")
    with pytest.raises(methods.BadMethodFile, match=r"two\.py: the name 'mine' is taken \(.*one\.py\)"):
        methods.load_file(tmp_path / "two.py")


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three entry points: one good, one that does not import, one that is named otherwise than its method."""
    (tmp_path / "plugin_of_others.py").write_text(MINE)
    monkeypatch.syspath_prepend(str(tmp_path))
    points = [
        EntryPoint(name, value, registry.ENTRY_POINTS)
        for name, value in [
            ("mine", "plugin_of_others:Mine"),
            ("broken", "not_there_at_all:Method"),
            ("other", "plugin_of_others:Mine"),
            ("no-class", "plugin_of_others:__name__"),
            ("dense", "plugin_of_others:Mine"),
        ]
    ]
    monkeypatch.setattr(registry, "entry_points", lambda group: [p for p in points if p.group == group])


@pytest.mark.usefixtures("plugins")
def test_entry_points_join() -> None:
    assert {"mine", "broken"} <= set(methods.available())
    assert methods.create("mine").title == "Mine"
    assert methods.source("mine") == "entry point plugin_of_others:Mine"
    assert methods.get("dense").__module__ == "methods.dense"


@pytest.mark.usefixtures("plugins")
@pytest.mark.parametrize(
    ("name", "says"),
    [("broken", "ModuleNotFoundError"), ("other", "calls itself 'mine'"), ("no-class", "is no subclass")],
)
def test_a_broken_entry_point_fails_when_it_is_asked_for(name: str, says: str) -> None:
    with pytest.raises(methods.BadMethodFile) as error:
        methods.create(name)
    assert one_line(error).startswith(f"entry point {name} = ")
    assert says in str(error.value)


def test_methods_never_import_the_harness() -> None:
    for path in Path(methods.__path__[0]).glob("**/*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            imported = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                imported = [node.module or ""]
            assert not [name for name in imported if name.split(".")[0] == "bench"], path
