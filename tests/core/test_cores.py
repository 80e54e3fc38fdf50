import os

import pytest

from optkit.core import cores, memory
from optkit.core.cgroup import Quota, cpu_quota, free_memory


@pytest.fixture
def process(tmp_path):
    """``process(groups, mounts, files)`` writes the folder of a process in /proc, and the files of control groups."""

    def write(groups, mounts, files):
        proc = tmp_path / "self"
        proc.mkdir()
        (proc / "cgroup").write_text("".join(f"{line}\n" for line in groups))
        others = "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n"
        lines = (f"31 22 0:28 {root} {tmp_path}/{mount} rw - {rest}\n" for root, mount, rest in mounts)
        (proc / "mountinfo").write_text(others + "".join(lines))
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(f"{text}\n")
        return proc

    return write


V2 = [("/", "cg", "cgroup2 cgroup2 rw")]
V1 = [("/", "cg/memory", "cgroup cgroup rw,memory"), ("/", "cg/cpu", "cgroup cgroup rw,cpu,cpuacct")]


@pytest.mark.parametrize(
    ("groups", "mounts", "files", "expected"),
    [
        (["0::/a/b"], V2, {"cg/a/b/cpu.max": "250000 100000"}, (2.5, "cg/a/b/cpu.max")),
        (["0::/a/b"], V2, {"cg/a/b/cpu.max": "max 100000", "cg/a/cpu.max": "50000 100000"}, (0.5, "cg/a/cpu.max")),
        (["0::/a"], V2, {"cg/a/cpu.max": "400000 100000", "cg/cpu.max": "300000 100000"}, (3.0, "cg/cpu.max")),
        (["0::/a"], V2, {"cg/a/cpu.max": "max 100000"}, None),
        (["0::/"], V2, {}, None),
        (
            ["4:memory:/m", "3:cpu,cpuacct:/a", "0::/"],
            V1,
            {"cg/cpu/a/cpu.cfs_quota_us": "200000", "cg/cpu/a/cpu.cfs_period_us": "50000"},
            (4.0, "cg/cpu/a/cpu.cfs_quota_us"),
        ),
        (
            ["3:cpu,cpuacct:/a"],
            V1,
            {"cg/cpu/a/cpu.cfs_quota_us": "-1", "cg/cpu/a/cpu.cfs_period_us": "100000"},
            None,
        ),
        # a container: its group on the host is the root of what it sees
        (
            ["0::/docker/x/inner"],
            [("/docker/x", "cg", "cgroup2 cgroup2 rw")],
            {"cg/cpu.max": "100000 100000", "cg/inner/cpu.max": "max 100000"},
            (1.0, "cg/cpu.max"),
        ),
        # both versions at once
        (
            ["1:cpu:/a", "0::/u"],
            [("/", "cg/cpu", "cgroup cgroup rw,cpu"), ("/", "cg/unified", "cgroup2 cgroup2 rw")],
            {"cg/cpu/a/cpu.cfs_quota_us": "150000", "cg/cpu/a/cpu.cfs_period_us": "100000"},
            (1.5, "cg/cpu/a/cpu.cfs_quota_us"),
        ),
    ],
)
def test_the_tightest_quota_of_all_ancestors_counts(process, tmp_path, groups, mounts, files, expected):
    found = cpu_quota(process(groups, mounts, files))
    assert found == (expected and Quota(expected[0], tmp_path / expected[1]))


def test_without_control_groups_there_is_no_quota(tmp_path):
    assert cpu_quota(tmp_path / "none") is None


@pytest.mark.parametrize(
    ("groups", "mounts", "files", "free"),
    [
        (["0::/a"], V2, {"cg/a/memory.max": "1000", "cg/a/memory.current": "600", "cg/a/memory.stat": "anon 500\ninactive_file 50"}, 450),
        (["0::/a"], V2, {"cg/a/memory.max": "max", "cg/a/memory.current": "1", "cg/memory.max": "90", "cg/memory.current": "70"}, 20),
        (["0::/a"], V2, {"cg/a/memory.max": "max", "cg/a/memory.current": "1"}, None),
        (["0::/a"], V2, {"cg/a/memory.max": "10", "cg/a/memory.current": "12"}, 0),
        (["4:memory:/m"], V1, {"cg/memory/m/memory.limit_in_bytes": "500", "cg/memory/m/memory.usage_in_bytes": "100",
                               "cg/memory/m/memory.stat": "inactive_file 7\ntotal_inactive_file 30"}, 430),
        (["4:memory:/m"], V1, {"cg/memory/m/memory.limit_in_bytes": "9223372036854771712", "cg/memory/m/memory.usage_in_bytes": "1"}, None),
        (["0::/"], V2, {}, None),
    ],
)  # fmt: skip
def test_free_memory_is_what_the_tightest_group_allows(process, monkeypatch, groups, mounts, files, free):
    found = free_memory(process(groups, mounts, files))
    assert found == free
    monkeypatch.setattr(memory, "free_memory", lambda: free)
    machine = memory.psutil.virtual_memory().available
    assert memory.available_memory() == free if free is not None else memory.available_memory() > machine / 2


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """``machine(cores, mask, quota, omp)``: what limits a process there."""

    def install(count, mask, quota, omp):
        monkeypatch.setattr(os, "cpu_count", lambda: count)
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(mask)), raising=False)
        monkeypatch.setattr(cores, "cpu_quota", lambda: quota and Quota(quota, tmp_path / "cpu.max"))
        monkeypatch.setenv("OMP_NUM_THREADS", omp)

    return install


@pytest.mark.parametrize(
    ("limits", "threads", "source"),
    [
        ((8, 8, None, ""), 8, "all cores of the machine"),
        ((8, 4, None, ""), 4, "affinity mask"),
        ((8, 4, 2.0, ""), 2, "cgroup quota 200% ("),
        ((8, 8, 2.9, ""), 2, "cgroup quota 290% ("),
        ((8, 8, 0.5, ""), 1, "cgroup quota 50% ("),
        ((8, 4, 6.0, "3"), 3, "OMP_NUM_THREADS"),
        ((8, 4, None, "3,2"), 3, "OMP_NUM_THREADS"),
        ((8, 4, None, "16"), 4, "affinity mask"),
        ((8, 4, None, "0"), 4, "affinity mask"),
        ((8, 4, None, "many"), 4, "affinity mask"),
    ],
)
def test_the_tightest_limit_counts_and_says_where_it_is_from(machine, limits, threads, source):
    machine(*limits)
    assert cores.default_threads().count == threads
    assert str(cores.default_threads()).startswith(f"{threads}: {source}")


def test_the_machine_is_the_same_whatever_openmp_is_told(machine):
    machine(8, 4, None, "1")
    assert cores.usable_cores() == cores.Limit(4, "affinity mask")
