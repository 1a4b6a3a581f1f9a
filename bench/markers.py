"""Whether a Markdown file has parts that `bench report` can make anew, asked before anything is written."""

from __future__ import annotations

from pathlib import Path

from bench.errors import BadInput
from bench.records.store import check_writable


def check_markers(readme: Path) -> None:
    """Raise BadInput where `readme` cannot be read or written, or has no marked part."""
    try:
        text = readme.read_text(encoding="utf-8")
    except OSError as error:
        raise BadInput(f"--readme {readme}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise BadInput(f"--readme {readme}: no text in UTF-8") from None
    if "<!-- bench: " not in text:
        raise BadInput(
            f"--readme {readme}: no marked part in it (`<!-- bench: NAME -->` … `<!-- bench: end -->`)"
        )
    check_writable(readme.resolve().parent, f"--readme {readme}")
