"""`make perf`: what the speed promises of the README and the issues come to on this machine. Nothing is asserted."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent


def section(title: str, *command: str | Path) -> None:
    """Each part runs in a process of its own, with one thread."""
    print(f"\n== {title}", flush=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parents[1])}
    subprocess.run([sys.executable, *map(str, command)], env=environment, check=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-root", default=os.environ.get("BENCH_DATA"), help="folder that holds MNIST")
    options = parser.parse_args()
    section("start-up", HERE / "start_up.py")
    section("reading 10,000 records", HERE / "check_read_results.py")
    section("a training step of each method", HERE / "method_steps.py")
    section("removing half of ResNet-50", HERE / "compaction_speed.py")
    if options.data_root:
        section(
            "harness against a bare loop", HERE / "harness_against_bare.py", "--data-root", options.data_root
        )
    else:
        print("\n== harness against a bare loop: left out, MNIST is needed (BENCH_DATA or --data-root)")
    section("training on a GPU", HERE / "cuda_training.py")
    with tempfile.TemporaryDirectory() as folder:
        section("all of `make bench`", HERE / "whole_suite.py", folder)


if __name__ == "__main__":
    main()
