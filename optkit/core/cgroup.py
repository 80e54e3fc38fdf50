"""The share of the processors that Linux control groups allow this process, version 1 and 2."""

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


def _folders(proc: Path) -> Iterator[Path]:
    """The folders of the process's control groups that may limit processors, each with all its ancestors."""
    groups = dict(_groups(proc))
    for kind, root, mount in _mounts(proc):
        if kind not in groups:
            continue
        group = groups[kind]
        # a container may see its own group as the root of the mount
        inside = group.relative_to(root) if group.is_relative_to(root) else group.relative_to("/")
        folder = mount / inside
        yield from (folder, *(parent for parent in folder.parents if parent.is_relative_to(mount)))


def _groups(proc: Path) -> Iterator[tuple[str, PurePosixPath]]:
    """``cgroup2`` or ``cgroup`` (version 1, the processor's controller), and the group of this process there."""
    for line in _read(proc / "cgroup").splitlines():
        number, controllers, group = line.split(":", 2)
        if number == "0" and not controllers:
            yield "cgroup2", PurePosixPath(group)
        elif "cpu" in controllers.split(","):
            yield "cgroup", PurePosixPath(group)


def _mounts(proc: Path) -> Iterator[tuple[str, PurePosixPath, Path]]:
    """The same kinds, which group is the root of the mount, and where it is mounted (proc_pid_mountinfo(5))."""
    for line in _read(proc / "mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        root, mount = (field.replace("\\040", " ") for field in before.split()[3:5])
        kind, *_, options = after.split(" ")
        if kind == "cgroup2" or (kind == "cgroup" and "cpu" in options.split(",")):
            yield kind, PurePosixPath(root), Path(mount)


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""
