"""The machine's record: whole, anonymous, and never an exception."""

import getpass
import importlib.metadata
import os
import platform
import re
from pathlib import Path

import pytest
import torch

from bench.measure import machine
from bench.records.schema import Machine

CPU = torch.device("cpu")


def test_record_round_trip() -> None:
    found = machine.describe(CPU)
    assert Machine.model_validate_json(found.model_dump_json()) == found
    assert found.device == found.processor != ""
    assert found.cores >= 1
    assert found.memory_gb > 0
    assert found.threads == torch.get_num_threads()
    assert found.gpu_driver is None


def test_no_host_user_or_path() -> None:
    text = machine.describe(CPU).model_dump_json() + str(machine.versions())
    for private in {platform.node(), getpass.getuser()} - {""}:
        assert not re.search(rf"\b{re.escape(private)}\b", text)
    assert str(Path.home()) not in text
    assert os.getcwd() not in text


def test_unknown_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> int:
        raise ValueError("unrecognized configuration name")

    monkeypatch.setattr(machine, "_read", lambda path: "")
    monkeypatch.setattr(machine, "_output", lambda *command: "")
    monkeypatch.setattr(os, "sysconf", fails)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    for name in ("processor", "machine", "system", "release"):
        monkeypatch.setattr(platform, name, lambda: "")
    found = machine.describe(CPU)
    assert (found.processor, found.cores, found.memory_gb, found.system) == ("unknown", 0, 0.0, "unknown")


def test_a_card_that_is_not_there_is_no_error() -> None:
    found = machine.describe(torch.device("cuda", 99))
    assert found.device == "unknown"
    assert found.processor == machine.describe(CPU).processor


def test_commands_and_files_that_fail_are_empty() -> None:
    assert machine._output("a-command-that-does-not-exist") == ""
    assert machine._output("false") == ""
    assert machine._read("/does/not/exist") == ""


def test_versions_leave_out_what_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = importlib.metadata.version

    def without_fvcore(package: str) -> str:
        if package == "fvcore":
            raise importlib.metadata.PackageNotFoundError(package)
        return honest(package)

    assert {"python", "torch", "torchvision", "fvcore", "numpy"} <= machine.versions().keys()
    monkeypatch.setattr(machine, "version", without_fvcore)
    machine._installed.cache_clear()
    found = machine.versions()
    machine._installed.cache_clear()
    assert "fvcore" not in found
    assert found["torch"] == honest("torch")
