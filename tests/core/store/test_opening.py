"""What store= may be, and what is said when it is not."""

import os
import subprocess

import pytest

from optkit.core.errors import UserError
from optkit.core.store import FolderStore, check_store, open_store
from optkit.core.store.folder import ReadOnlyStore
from optkit.core.store.opening import open_remote
from optkit.core.store.shared import SharedStore
from tests.core.store.conftest import EXAMPLE, model, variant


@pytest.fixture(autouse=True)
def _own_places(tmp_path, monkeypatch):
    monkeypatch.setenv("OPTKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    open_remote.cache_clear()


def test_a_folder_is_used_as_it_is_and_a_url_has_a_cache_in_front(tmp_path):
    assert isinstance(open_store("runs/store"), FolderStore)
    shared = open_store("memory://bucket/optkit")
    assert isinstance(shared, SharedStore)
    assert shared.cache.root.is_relative_to(tmp_path / "cache")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_a_url_is_that_store_also_by_its_path(tmp_path):
    open_store((tmp_path / "shared").as_uri()).put(variant(), model(), EXAMPLE)
    found = open_store("shared")
    assert isinstance(found, SharedStore)
    assert found.find("id") is not None


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("s4://x", "store: no file system 's4://' (give a folder, or a URL of fsspec such as s3://BUCKET/PATH"),
        ("memroy://x", "store: no file system 'memroy://' (did you mean 'memory'?)"),
        ("s3:/bucket/x", "store: 's3:/bucket/x' is no URL (did you mean 's3://bucket/x'?)"),
        ("simplecache::memory://x", "store: 'simplecache::memory://x' is a chain of file systems"),
        ("file", "store: file is a file (choose a folder)"),
        ("file/store", "store: file is a file (choose a folder)"),
        ("file://{here}/file", "store: {here}/file is a file (choose a folder)"),
        ("file://{here}/plain", "store: is a store that is used as a folder (store={here}/plain)"),
        ("http://127.0.0.1:9/x", "store: cannot reach http://127.0.0.1:9/x: "),
        (" ", "store: ' ' is no folder and no URL"),
    ],
)
def test_what_cannot_be_a_store_is_one_line(tmp_path, place, said):
    (tmp_path / "file").touch()
    FolderStore(tmp_path / "plain").put(variant(), model(), EXAMPLE)
    with pytest.raises(UserError) as error:
        check_store(place.format(here=tmp_path))
    assert str(error.value).startswith(said.format(here=tmp_path))
    assert "\n" not in str(error.value)


def test_a_package_that_is_not_installed_is_named(monkeypatch):
    def missing(protocol):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr("fsspec.get_filesystem_class", missing)
    with pytest.raises(UserError, match=r"s3:// needs a package that is not installed: .* \(pip install s3fs\)"):
        check_store("s3://bucket/optkit")


def _refuse(error):
    def refuse(self, path, *args, **kwargs):
        raise error

    return refuse


@pytest.mark.parametrize("error", [PermissionError("AccessDenied"), OSError(30, "Read-only"), NotImplementedError()])
def test_a_url_that_may_only_be_read_is_read(monkeypatch, caplog, error):
    open_store("memory://shared-1").put(variant(), model(), EXAMPLE)
    open_remote.cache_clear()
    monkeypatch.setattr("fsspec.implementations.memory.MemoryFileSystem.pipe_file", _refuse(error))
    store = open_store("memory://shared-1")
    assert store.remote.read_only
    assert store.find("id") is not None
    assert "memory://shared-1 cannot be written: what is new goes to" in caplog.text


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (FileNotFoundError("NoSuchBucket"), "store: there is no memory://b (make the bucket or the folder first"),
        (ConnectionError("refused"), "store: cannot reach memory://b: ConnectionError: refused"),
    ],
)
def test_a_url_that_cannot_be_reached_is_named_without_its_password(monkeypatch, error, said):
    monkeypatch.setattr("fsspec.implementations.memory.MemoryFileSystem.pipe_file", _refuse(error))
    with pytest.raises(UserError) as found:
        open_store("memory://me:secret@b")
    assert str(found.value).startswith(said)


def test_a_url_that_may_not_even_be_read_is_a_mistake(monkeypatch):
    denied = PermissionError("AccessDenied")
    for name in ("pipe_file", "ls"):
        monkeypatch.setattr(f"fsspec.implementations.memory.MemoryFileSystem.{name}", _refuse(denied))
    with pytest.raises(UserError, match="you may not read memory://c: AccessDenied"):
        open_store("memory://c")


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 2 MB, and a function that mounts it again for reading only."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options):
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        return subprocess.run(command, capture_output=True, check=False).returncode

    if mount("size=2m"):
        pytest.skip("only root may mount a disk")
    yield folder, lambda: mount("remount,ro")
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("as_url", [False, True])
def test_a_disk_that_is_mounted_for_reading_only(small_disk, as_url, caplog):
    folder, remount = small_disk
    place = (folder / "store").as_uri() if as_url else str(folder / "store")
    open_store(place).put(variant(), model(), EXAMPLE)
    open_remote.cache_clear()
    if remount():
        pytest.skip("a disk cannot be mounted again")
    store = open_store(place)
    if not as_url:
        assert isinstance(store, ReadOnlyStore)
    with store.making("new", "making"):
        store.put(variant("new"), model(), EXAMPLE)
    assert store.find("id") is not None
    assert open_store(place).find("new") is not None
    assert "cannot be written: what is new goes to" in caplog.text


def test_a_shared_disk_that_is_full_leaves_the_entry_in_the_cache(small_disk, caplog):
    folder, _ = small_disk
    store = open_store((folder / "store").as_uri())
    with open(folder / "ballast", "wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            pass
    assert store.put(variant(), model(), EXAMPLE).module() is not None
    assert "is not uploaded: " in caplog.text
    assert "No space left on device" in caplog.text
    os.unlink(folder / "ballast")
    open_remote.cache_clear()
    again = open_store((folder / "store").as_uri())
    again.find("id")
    assert again.remote.entry("id") is not None
