"""What a user waits for before anything happens: `bench --help`, beside Python itself and beside importing torch."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "bench --help": [sys.executable, "-m", "bench", "--help"],
    "python -c 'import torch'": [sys.executable, "-c", "import torch"],
}
ROUNDS = 7


def main() -> None:
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(ROUNDS):
        for name, command in COMMANDS.items():
            began = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            seconds[name].append(time.perf_counter() - began)
    for name, taken in seconds.items():
        print(f"  {name:<26} {statistics.median(taken):6.3f} s (median of {ROUNDS}, max {max(taken):.3f} s)")


if __name__ == "__main__":
    main()
