"""Sparsification methods: one file each. A new file here is a new method; `base` is the contract."""

from methods.errors import BadConfig, BadMethodFile, UnknownMethod
from methods.registry import available, create, get, load_file, source

__all__ = [
    "BadConfig",
    "BadMethodFile",
    "UnknownMethod",
    "available",
    "create",
    "get",
    "load_file",
    "source",
]
