"""The harness: data, networks, training, compaction, measuring, records and reports. Importing it is
cheap."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.records.read import read_results as read_results

_LAZY = {
    "read_results": ("bench.records.read", "read_results"),
    "load_compact": ("bench.compaction", "load_compact"),
    "compaction": ("bench.compaction", None),
}


def __getattr__(name: str) -> Any:
    """Load what `bench` offers when it is first asked for: torch and pandas take a second each."""
    if name not in _LAZY:
        raise AttributeError(f"module 'bench' has no attribute {name!r}")
    module_name, attribute = _LAZY[name]
    module = importlib.import_module(module_name)
    return module if attribute is None else getattr(module, attribute)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
