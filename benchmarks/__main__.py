"""Run the benchmarks of `make bench` in turn. Each fills its tables in docs/performance.md."""

import subprocess
import sys

for name in ("size", "startup", "speed", "training"):
    subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=True)
