"""The suite `digits` from nothing to its figures: time, and the memory of all its processes together (Linux)."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path


def family(root: int) -> list[int]:
    """The process and all below it."""
    members, found = [root], [root]
    while members:
        try:
            children = Path(f"/proc/{members[0]}/task/{members[0]}/children").read_text().split()
        except OSError:
            children = []
        members = [*members[1:], *map(int, children)]
        found += map(int, children)
    return found


def kilobytes(pid: int, field: str) -> int:
    """From smaps_rollup: `Rss` counts a shared page in every process, `Pss` once in all."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(field + ":")), 0)


def main() -> None:
    results = Path(sys.argv[1])
    command = [sys.executable, "-m", "bench", "run", "digits", "--results", str(results)]
    peaks = {"Rss": 0, "Pss": 0}
    began = time.perf_counter()
    with open(os.devnull, "w") as nowhere:
        process = subprocess.Popen(command, stdout=nowhere)
        while process.poll() is None:
            members = family(process.pid)
            for field in peaks:
                peaks[field] = max(peaks[field], sum(kilobytes(pid, field) for pid in members))
            time.sleep(1)
    took = time.perf_counter() - began
    began = time.perf_counter()
    again = subprocess.run(command, check=False, stdout=subprocess.DEVNULL)
    print(f"  exit code {process.returncode}, {took:.0f} s on {len(os.sched_getaffinity(0))} cores")
    print(f"  peak memory of all processes: {peaks['Pss'] / 2**20:.2f} GiB (shared pages once),")
    print(f"  {peaks['Rss'] / 2**20:.2f} GiB (shared pages in every process)")
    print(f"  started again when done: exit code {again.returncode}, {time.perf_counter() - began:.2f} s")


if __name__ == "__main__":
    main()
