"""The share of processors and of memory that Linux control groups allow this process, version 1 and 2."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

PROC = Path("/proc/self")


@dataclass(frozen=True)
class Quota:
    """Cores' worth of time in each period, and the file that says so."""

    cores: float
    file: Path


def cpu_quota(proc: Path = PROC) -> Quota | None:
    """The tightest quota of this process's control groups and all their ancestors; None if there is none.

    An ancestor's quota holds for all its descendants together, and does not show in their own files.

    Args:
        proc: the folder of the process in ``/proc``.
    """
    found = [quota for folder in _folders(proc) for quota in (_version_2(folder), _version_1(folder)) if quota]
    return min(found, key=lambda quota: quota.cores, default=None)


def free_memory(proc: Path = PROC) -> int | None:
    """Bytes that the control groups of this process still allow it; None if none limits memory.

    File pages that the kernel would give up (``inactive_file``) count as free.

    Args:
        proc: the folder of the process in ``/proc``.
    """
    names = ("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")
    free = [_free(folder, *pair) for folder in _folders(proc, "memory") for pair in names]
    return min((found for found in free if found is not None), default=None)


def _free(folder: Path, limit: str, used: str) -> int | None:
    """Bytes between a group's limit and its use; None without a limit, which version 1 writes as a huge number."""
    most, now = _read(folder / limit).strip(), _read(folder / used).strip()
    if not (most.isdecimal() and now.isdecimal()) or int(most) >= 1 << 60:
        return None
    stat = dict(line.split(" ", 1) for line in _read(folder / "memory.stat").splitlines())
    return max(int(most) - int(now) + int(stat.get("total_inactive_file", stat.get("inactive_file", 0))), 0)


def _version_2(folder: Path) -> Quota | None:
    """``cpu.max`` holds the quota, or ``max``, and the period, both in microseconds."""
    fields = _read(folder / "cpu.max").split()
    return _quota(fields[0], fields[1], folder / "cpu.max") if len(fields) == 2 else None


def _version_1(folder: Path) -> Quota | None:
    """``cpu.cfs_quota_us`` is -1 where there is no quota."""
    file = folder / "cpu.cfs_quota_us"
    return _quota(_read(file).strip(), _read(folder / "cpu.cfs_period_us").strip(), file)


def _quota(quota: str, period: str, file: Path) -> Quota | None:
    if not (quota.isdecimal() and period.isdecimal() and int(quota) and int(period)):
        return None
    return Quota(int(quota) / int(period), file)


def _folders(proc: Path, controller: str = "cpu") -> Iterator[Path]:
    """The folders of the process's control groups that may limit a resource, each with all its ancestors."""
    groups = dict(_groups(proc, controller))
    for kind, root, mount in _mounts(proc, controller):
        if kind not in groups:
            continue
        group = groups[kind]
        # a container may see its own group as the root of the mount
        inside = group.relative_to(root) if group.is_relative_to(root) else group.relative_to("/")
        folder = mount / inside
        yield from (folder, *(parent for parent in folder.parents if parent.is_relative_to(mount)))


def _groups(proc: Path, controller: str) -> Iterator[tuple[str, PurePosixPath]]:
    """``cgroup2`` or ``cgroup`` (version 1, of this controller), and the group of this process there."""
    for line in _read(proc / "cgroup").splitlines():
        number, controllers, group = line.split(":", 2)
        if number == "0" and not controllers:
            yield "cgroup2", PurePosixPath(group)
        elif controller in controllers.split(","):
            yield "cgroup", PurePosixPath(group)


def _mounts(proc: Path, controller: str) -> Iterator[tuple[str, PurePosixPath, Path]]:
    """The same kinds, which group is the root of the mount, and where it is mounted (proc_pid_mountinfo(5))."""
    for line in _read(proc / "mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        root, mount = (field.replace("\\040", " ") for field in before.split()[3:5])
        kind, *_, options = after.split(" ")
        if kind == "cgroup2" or (kind == "cgroup" and controller in options.split(",")):
            yield kind, PurePosixPath(root), Path(mount)


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""
