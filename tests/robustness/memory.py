"""Peak memory of whole commands: `python -m tests.robustness.memory` measures it beside its bars, in an hour."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
DEEP = ("verify", "depth6", "--hops", "16")
FEW = ("verify", "depth5", "--hops", "8", "--sequences", "200")
MANY = (*FEW[:-1], "2000")


def peak(words: tuple[str, ...]) -> float:
    """Gigabytes that a command has at most, on one thread."""
    command = [sys.executable, "-c", "from hopinterp.cli import main; main()", *words]
    settings = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HOPINTERP_CACHE": "off"}
    process = subprocess.Popen(command, env=settings, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    assert status == 0
    found = used.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9
    print(f"{' '.join(words)}: {found:.2f} GB, {used.ru_utime + used.ru_stime:.0f} s of CPU", flush=True)
    return found


if __name__ == "__main__":
    met = peak(DEEP) <= 1
    few, many = peak(FEW), peak(MANY)
    print(f"2,000 sequences need {many / few:.2f} times the memory of 200")
    sys.exit(not (met and many <= 2 * few))
