"""`make bench`: every benchmark in turn; each writes its section of docs/performance.md."""

import subprocess
import sys

for name in ("size", "speed", "startup"):
    subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=True)
