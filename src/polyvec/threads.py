"""The number of threads that encode on the CPU.

OpenVINO starts one thread for every core on which the process may run (`sched_getaffinity`). It
neither reads `OMP_NUM_THREADS`, with which users and job schedulers limit every other library, nor
the CPU time that a container may use. Threads beyond that time wait for one another.
"""

import os
from collections.abc import Iterator
from pathlib import Path


def choose_num_threads(threads: int | None, root: Path = Path("/")) -> int | None:
    """The number of threads, or None if nothing limits it: then it is one per core.

    The first of these counts: `threads`, the variable `OMP_NUM_THREADS`, and the quota of the
    process's control groups. Raises ValueError if `threads` is below 1.
    """
    if threads is not None:
        if isinstance(threads, bool) or not isinstance(threads, int) or threads < 1:
            raise ValueError(f"threads is {threads!r}, must be a whole number from 1 on")
        return threads
    # Its first number is that of the outermost parallel loop.
    variable = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if variable.isascii() and variable.isdigit() and int(variable) > 0:
        return int(variable)
    quota = read_cpu_quota(root)
    return None if quota is None or quota >= count_cores(root) else max(1, int(quota))


def read_cpu_quota(root: Path) -> float | None:
    """The number of CPUs whose time the control groups of this process may use; None for all.

    The smallest quota of a group and the groups above it counts. Both versions of control groups
    are read. In a container, the root of the file system is often the container's own group.
    """
    quotas = list(_read_quotas(root))
    return min(quotas) if quotas else None


def _read_quotas(root: Path) -> Iterator[float]:
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return
    for line in lines:
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers and "cpu" not in controllers.split(","):
            continue
        base = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for length in range(len(parts) + 1):
            folder = base.joinpath(*parts[:length])
            try:
                if controllers:
                    quota = int((folder / "cpu.cfs_quota_us").read_text())
                    period = int((folder / "cpu.cfs_period_us").read_text())
                else:
                    words = (folder / "cpu.max").read_text().split()
                    quota, period = (-1 if word == "max" else int(word) for word in words)
            # A group without a quota has no such file, and no file promises a form.
            except (OSError, ValueError):
                continue
            if quota > 0 and period > 0:
                yield quota / period


def count_cores(root: Path = Path("/")) -> int:
    """The number of physical cores, each of which runs one thread of OpenVINO."""
    files = (root / "sys/devices/system/cpu").glob("cpu[0-9]*/topology/thread_siblings_list")
    try:
        cores = {file.read_text().strip() for file in files}
    except OSError:
        cores = set[str]()
    return len(cores) or os.cpu_count() or 1
