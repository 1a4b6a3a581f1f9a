"""What ends a run from outside ends its processes, and the service by which they share a GPU."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from bench.execute.gpu_sharing import CONTROL, PIPES
from bench.execute.interrupts import signals_interrupt

ROOT = Path(__file__).parents[2]


def heed_signals() -> None:
    """In a child: what the tests' own starter ignores (nohup, a shell's `&`), it would ignore too."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


@pytest.mark.parametrize(
    ("blow", "to_all"),
    [(signal.SIGTERM, False), (signal.SIGTERM, True), (signal.SIGHUP, False), (signal.SIGKILL, False)],
)
def test_nothing_goes_on_alone(blow: signal.Signals, to_all: bool, tmp_path: Path) -> None:
    log, pid = tmp_path / "told", tmp_path / "pid"
    script = tmp_path / CONTROL
    script.write_text(f'#!/bin/sh\necho "$@" $([ $# = 0 ] && cat) >> {log}\n')
    script.chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }
    environment.pop(PIPES, None)
    command = [sys.executable, "-m", "tests.execute.interrupted", str(pid)]
    run = subprocess.Popen(
        command, env=environment, cwd=ROOT, start_new_session=True, preexec_fn=heed_signals
    )
    wait_for(pid.exists)
    (os.killpg if to_all else os.kill)(run.pid, blow)
    assert run.wait(timeout=30) == (130 if blow != signal.SIGKILL else -blow)
    wait_for(lambda: not is_alive(int(pid.read_text())))
    if blow != signal.SIGKILL:
        assert log.read_text().split("\n") == ["-d", "quit -t 5", ""]
    assert not pid.with_suffix(".lost").exists()


@pytest.mark.parametrize("blow", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_plan_is_waited_for(blow: signal.Signals, tmp_path: Path) -> None:
    """Interrupted twice while a method file keeps the process that plans."""
    pid = tmp_path / "pid"
    method = tmp_path / "slow.py"
    method.write_text(
        f"import os, time\nfrom pathlib import Path\n"
        f"Path({str(pid)!r} + '.part').write_text(str(os.getpid()))\n"
        f"Path({str(pid)!r} + '.part').rename({str(pid)!r})\ntime.sleep(600)\n"
    )
    command = [sys.executable, "-m", "bench", "run", "digits", "--method", str(method), "--results", "r"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.Popen(
        command,
        env=environment,
        cwd=tmp_path,
        start_new_session=True,
        preexec_fn=heed_signals,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(pid.exists)
    os.killpg(run.pid, blow) if blow == signal.SIGINT else os.kill(run.pid, blow)
    if blow == signal.SIGINT:
        time.sleep(0.02)
        with suppress(ProcessLookupError):
            os.killpg(run.pid, blow)
    _, told = run.communicate(timeout=30)
    assert run.returncode == (-blow if blow == signal.SIGKILL else 130)
    assert told == ("" if blow == signal.SIGKILL else "interrupted; the same command goes on from here\n")
    wait_for(lambda: not is_alive(int(pid.read_text())))


def wait_for(what: object, seconds: float = 60) -> None:
    assert callable(what)
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_alive(pid: int) -> bool:
    """A zombie is not: nobody may be there to fetch it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_handlers_are_given_back_and_what_is_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)

    @signals_interrupt()
    def interrupted() -> None:
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)

    try:
        with pytest.raises(KeyboardInterrupt):
            interrupted()
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)


def test_elsewhere_than_in_the_main_thread_they_are_left_alone() -> None:
    seen: list[object] = []

    def look() -> None:
        with signals_interrupt():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [signal.SIG_DFL]
