"""How long the light commands take: the best and the median of some runs of the installed console script.

python benchmarks/startup.py [--runs 20]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    runs = parser.parse_args().runs
    script = Path(sys.executable).with_name("deploykit")
    for arguments, bound in ((["--help"], 0.35), (["models"], 0.5)):
        times = []
        for _ in range(runs):
            start = time.perf_counter()
            subprocess.run([script, *arguments], check=True, stdout=subprocess.DEVNULL)
            times.append(time.perf_counter() - start)
        print(
            f"deploykit {arguments[0]}: median {statistics.median(times):.3f} s, best {min(times):.3f} s, bound {bound}"
        )


if __name__ == "__main__":
    main()
