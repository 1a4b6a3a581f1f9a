"""Finding methods: the files of this package, entry points of other packages, and files by path."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pkgutil
import sys
import traceback
from collections.abc import Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

from pydantic import ValidationError

import methods
from methods.base import Method
from methods.errors import BadConfig, BadMethodFile, UnknownMethod, nearest

ENTRY_POINTS = "sparsebench.methods"
_REQUIRED = ("name", "title", "paper", "strengths", "strength_meaning")

_from_files: dict[str, tuple[Path, type[Method]]] = {}


def available() -> list[str]:
    """The names that `get` knows, sorted."""
    return sorted({*_builtin(), *_entry_points(), *_from_files})


def get(name: str) -> type[Method]:
    """The class of a method. Raises UnknownMethod, or BadMethodFile where an entry point gives no method."""
    if name in _builtin():
        return _builtin()[name]
    if name in _from_files:
        return _from_files[name][1]
    if name in _entry_points():
        return _load_entry_point(_entry_points()[name])
    raise UnknownMethod(f"there is no method {name!r}{nearest(name, available())}")


def create(name: str, **config: Any) -> Method:
    """A method with its settings checked. Raises UnknownMethod or BadConfig."""
    method = get(name)
    try:
        return method(method.Config(**config))
    except ValidationError as error:
        raise BadConfig(_explain(method, error)) from None


def source(name: str) -> str:
    """Where a method comes from: `builtin`, `entry point package.module:Class`, or the path of its file."""
    if name in _builtin():
        return "builtin"
    if name in _from_files:
        return str(_from_files[name][0])
    get(name)
    return f"entry point {_entry_points()[name].value}"


def load_file(path: str | Path) -> type[Method]:
    """The one method that a Python file defines; from then on `get` knows its name too.

    Loading a file again gives the class that it gave before. Raises BadMethodFile, with the line, where the
    file does not import, has no or several methods, or takes a name that exists.
    """
    path = Path(path)
    resolved = path.resolve()
    for loaded, method in _from_files.values():
        if loaded == resolved:
            return method
    module = _import_file(path, resolved)
    found = _methods_of(module)
    if not found:
        raise BadMethodFile(f"{path}: no method in this file{_unfinished(module)}")
    if len(found) > 1:
        names = ", ".join(method.__name__ for method in found)
        raise BadMethodFile(f"{path}: one method a file, but this one has {len(found)} ({names})")
    method = found[0]
    _check_attributes(str(path), method)
    if method.name in available():
        if Path(inspect.getfile(get(method.name))).resolve() == resolved:
            raise BadMethodFile(f"{path}: a method of the package, given by its name: {method.name}")
        raise BadMethodFile(f"{path}: the name {method.name!r} is taken ({source(method.name)})")
    _from_files[method.name] = (resolved, method)
    return method


@cache
def _builtin() -> Mapping[str, type[Method]]:
    """Every file of the package `methods` that defines a method."""
    found: dict[str, type[Method]] = {}
    for module_info in pkgutil.iter_modules(methods.__path__):
        try:
            module = importlib.import_module(f"methods.{module_info.name}")
        except Exception as error:
            path = Path(methods.__path__[0], f"{module_info.name}.py")
            raise BadMethodFile(_describe(path, path, error)) from error
        for method in _methods_of(module):
            _check_attributes(f"methods/{module_info.name}.py", method)
            if method.name in found:
                taken = found[method.name].__module__
                raise BadMethodFile(
                    f"methods/{module_info.name}.py: the name {method.name!r} is taken ({taken})"
                )
            found[method.name] = method
    return found


def _entry_points() -> dict[str, EntryPoint]:
    """Entry points by name, not loaded yet: a broken package must not take the others down. Built-in names
    win."""
    return {point.name: point for point in entry_points(group=ENTRY_POINTS) if point.name not in _builtin()}


def _load_entry_point(point: EntryPoint) -> type[Method]:
    where = f"entry point {point.name} = {point.value}"
    try:
        method = point.load()
    except Exception as error:
        raise BadMethodFile(f"{where}: {_one_line(error)}") from error
    if not (inspect.isclass(method) and issubclass(method, Method)):
        raise BadMethodFile(f"{where}: is no subclass of methods.base.Method")
    _check_attributes(where, method)
    if method.name != point.name:
        raise BadMethodFile(f"{where}: the method calls itself {method.name!r}")
    return method


def _import_file(path: Path, resolved: Path) -> ModuleType:
    if not path.is_file():
        raise BadMethodFile(f"{path}: no such file")
    name = f"method_file_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, resolved)
    if spec is None or spec.loader is None:
        raise BadMethodFile(f"{path}: is no Python file (.py)")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # pydantic looks annotations up there
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise BadMethodFile(_describe(path, resolved, error)) from error
    return module


def _methods_of(module: ModuleType) -> list[type[Method]]:
    """The methods that a module itself defines, without what it imports and without abstract bases."""
    return [method for method in _subclasses_of(module) if not inspect.isabstract(method)]


def _subclasses_of(module: ModuleType) -> list[type[Method]]:
    return [
        value
        for value in vars(module).values()
        if inspect.isclass(value) and issubclass(value, Method) and value.__module__ == module.__name__
    ]


def _unfinished(module: ModuleType) -> str:
    for method in _subclasses_of(module):
        return f" ({method.__name__} does not define {', '.join(sorted(method.__abstractmethods__))})"
    return " (a method is a subclass of methods.base.Method)"


def _check_attributes(where: str, method: type[Method]) -> None:
    missing = [attribute for attribute in _REQUIRED if not hasattr(method, attribute)]
    if missing:
        raise BadMethodFile(f"{where}: {method.__name__} has no {', '.join(missing)}")
    for attribute in _REQUIRED:
        value = getattr(method, attribute)
        if attribute != "strengths" and not isinstance(value, str):
            raise BadMethodFile(f"{where}: {attribute} is {value!r}, must be a text")
    if method.name != method.name.strip() or not method.name:
        raise BadMethodFile(f"{where}: name {method.name!r}: no blanks at its ends, and not empty")
    strengths = method.strengths
    if not isinstance(strengths, tuple | list) or not strengths or not all(map(_is_number, strengths)):
        raise BadMethodFile(
            f"{where}: strengths is {strengths!r}, must be a tuple of numbers, such as (0.5,)"
        )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _describe(path: Path, resolved: Path, error: BaseException) -> str:
    """`path, line n: what went wrong`, n being the innermost line of that file."""
    line = None
    if isinstance(error, SyntaxError) and error.filename == str(resolved):
        line = error.lineno
    else:
        for frame in traceback.extract_tb(error.__traceback__):
            if frame.filename == str(resolved):
                line = frame.lineno
    return f"{path}{'' if line is None else f', line {line}'}: {_one_line(error)}"


def _one_line(error: BaseException) -> str:
    message = error.msg if isinstance(error, SyntaxError) else str(error)
    return f"{type(error).__name__}: {' '.join(message.split())}"


def _explain(method: type[Method], error: ValidationError) -> str:
    """The first complaint of pydantic as one line."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    fields = method.Config.model_fields
    if first["type"] == "extra_forbidden":
        return f"method {method.name!r} has no setting {key!r}{nearest(key, fields)}"
    hint = ""
    if first["type"] == "literal_error" and key in fields:
        hint = nearest(str(first["input"]), [str(word) for word in get_args(fields[key].annotation)])
    return f"method {method.name!r}, setting {key!r}: {first['input']!r}: {first['msg']}{hint}"
