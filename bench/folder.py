"""Discovery by file drop: whatever a folder's files put into one table, without a list elsewhere to keep."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

from bench.errors import BadInput


def collect(package: str, table: str) -> dict[str, Any]:
    """The union of the dict named `table` over all modules of `package`; modules that begin with `_` are
    helpers.

    Raises BadInput, naming the file, where one does not import, has no such dict, or takes a name that is
    taken.
    """
    folder = importlib.import_module(package)
    found: dict[str, Any] = {}
    for info in pkgutil.iter_modules(folder.__path__):
        if info.name.startswith("_"):
            continue
        where = f"{'/'.join(package.split('.'))}/{info.name}.py"
        try:
            module = importlib.import_module(f"{package}.{info.name}")
        except Exception as error:
            raise BadInput(f"{where}: does not import ({in_one_line(error)})") from error
        entries = getattr(module, table, None)
        if not isinstance(entries, dict):
            raise BadInput(f"{where}: has no dict {table!r}")
        for name, entry in entries.items():
            if name in found:
                raise BadInput(f"{where}: the name {name!r} in {table} is taken by another file")
            found[name] = entry
    return found


def in_one_line(error: BaseException) -> str:
    """Type and text of an error, at most 200 characters of it, for messages that must stay one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__
