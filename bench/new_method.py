"""`bench new-method`: a file to begin a method with."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import methods
from bench.errors import BadInput
from bench.records.store import check_writable

if TYPE_CHECKING:
    from rich.console import Console

TEMPLATE = Path(__file__).with_name("method_template.py")


def write_new_method(name: str, folder: Path, console: Console) -> None:
    """Write `<name>.py` to `folder`. Raises BadInput for a name that is none or taken, and where the file exists."""
    if not re.fullmatch(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*", name):
        raise BadInput(
            f"new-method {name!r}: a name is lower-case words with - or _ between them, such as my-method"
        )
    path = folder / f"{name}.py"
    if path.exists() or path.is_symlink():
        raise BadInput(f"new-method {name}: {path} exists; it is not overwritten")
    try:
        taken = name in methods.available()
    except ValueError as error:
        raise BadInput(str(error)) from None
    if taken:
        raise BadInput(f"new-method {name}: the name is taken ({methods.source(name)})")
    check_writable(folder, f"new-method {name}")
    path.write_text(filled_in(name), encoding="utf-8")
    console.print(
        f"written: {path}; try it with: bench run digits --method ./{path.name}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def filled_in(name: str) -> str:
    """The template under the name of a method."""
    of_class = "".join(word.capitalize() for word in re.split("[-_]", name))
    text = TEMPLATE.read_text(encoding="utf-8")
    return text.replace("MyMethod", of_class).replace("MY_METHOD", name).replace("my-method", name)
