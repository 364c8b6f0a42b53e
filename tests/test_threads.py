"""The number of threads that encode."""

from pathlib import Path

import pytest

from polyvec import threads
from polyvec.threads import choose_num_threads, read_cpu_quota


@pytest.fixture(autouse=True)
def no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment of the tests limits nothing."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


GROUPS = {
    "version 2, in a container": (
        {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"},
        1.5,
    ),
    "version 2, nested": (
        {
            "proc/self/cgroup": "0::/a.slice/job\n",
            "sys/fs/cgroup/a.slice/cpu.max": "300000 100000\n",
            "sys/fs/cgroup/a.slice/job/cpu.max": "max 100000\n",
        },
        3,
    ),
    "version 1": (
        {
            "proc/self/cgroup": "4:memory:/x\n3:cpu,cpuacct:/docker/1\n0::/\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "200000\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "50000\n",
        },
        4,
    ),
    "version 1 without a quota": (
        {
            "proc/self/cgroup": "3:cpu:/\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        },
        None,
    ),
    "damaged": ({"proc/self/cgroup": "x\n0::/../..\n", "sys/fs/cgroup/cpu.max": "?\n"}, None),
    "no Linux": ({}, None),
}


@pytest.mark.parametrize(("files", "quota"), GROUPS.values(), ids=GROUPS)
def test_the_smallest_quota_of_the_control_groups_counts(tmp_path, files, quota):
    assert read_cpu_quota(write(tmp_path, files)) == quota


@pytest.mark.parametrize(
    ("cpu_max", "expected"),
    [("20000 100000", 1), ("250000 100000", 2), ("400000 100000", None), ("max 100000", None)],
)
def test_a_quota_limits_threads_unless_every_core_may_run(tmp_path, cpu_max, expected):
    cores = {
        f"sys/devices/system/cpu/cpu{n}/topology/thread_siblings_list": f"{n // 2}\n"
        for n in range(8)
    }
    files = {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": cpu_max}
    assert choose_num_threads(None, write(tmp_path, files | cores)) == expected


def test_an_argument_counts_before_the_variable_and_the_variable_before_quotas(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(threads, "read_cpu_quota", lambda root: 2.0)
    monkeypatch.setattr(threads, "count_cores", lambda root: 8)
    assert choose_num_threads(None, tmp_path) == 2
    monkeypatch.setenv("OMP_NUM_THREADS", "3,2")
    assert choose_num_threads(None, tmp_path) == 3
    assert choose_num_threads(4, tmp_path) == 4
    monkeypatch.setenv("OMP_NUM_THREADS", "many")
    assert choose_num_threads(None, tmp_path) == 2


@pytest.mark.parametrize("number", [0, -1, True, 1.5, "2"])
def test_an_impossible_number_is_refused(number, monkeypatch):
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)
    with pytest.raises(ValueError, match="threads is"):
        choose_num_threads(number)
