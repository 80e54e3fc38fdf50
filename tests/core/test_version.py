"""The version follows git's tags, and there is one with neither tags nor git."""

import subprocess

import pytest
from packaging.version import Version

import optkit
from optkit.core.compat.versions import version_of
from optkit.core.environment import versions
from optkit.core.git import checkout_of, git
from optkit.core.version import UNKNOWN, version, version_of_source

IDENTITY = ("-c", "user.name=test", "-c", "user.email=test@example.org")


@pytest.fixture
def source(tmp_path):
    """A source tree of optkit without git."""
    root = tmp_path / "source"
    root.mkdir()
    (root / "pyproject.toml").write_text('[project]\nname = "optkit"\n')
    return root


@pytest.fixture
def checkout(source):
    """The same as a git repository with one commit; gives the tree, and a function that commits a change."""
    count = iter(range(100))

    def commit():
        (source / "code.py").write_text(f"N = {next(count)}\n")
        for command in (("add", "."), ("commit", "-qm", "a change")):
            subprocess.run(["git", *IDENTITY, *command], cwd=source, check=True)

    subprocess.run(["git", "init", "-q"], cwd=source, check=True)
    commit()
    return source, commit


def tag(root, name):
    subprocess.run(["git", "tag", name], cwd=root, check=True)


def head(root):
    return git(root, "rev-parse", "--short=7", "HEAD")


def test_a_clone_without_tags_has_a_version_with_its_commit(checkout):
    root, commit = checkout
    commit()
    found = version_of_source(root)
    assert found == f"0.1.0.dev2+g{head(root)}"
    assert Version(found) < Version("0.1.0")


def test_a_tagged_commit_has_the_version_of_the_tag(checkout):
    root, _ = checkout
    tag(root, "v1.2.3")
    assert version_of_source(root) == "1.2.3"


def test_commits_after_a_tag_count_and_are_newer_than_it(checkout):
    root, commit = checkout
    tag(root, "v1.2.3")
    tag(root, "nightly")  # not a release
    commit()
    found = version_of_source(root)
    assert found == f"1.2.3.post1.dev1+g{head(root)}"
    assert Version("1.2.3") < Version(found) < Version("1.2.4")


def test_a_changed_file_shows(checkout):
    root, _ = checkout
    tag(root, "v1.2.3")
    (root / "code.py").write_text("N = -1\n")
    found = version_of_source(root)
    assert found == f"1.2.3.post1.dev0+g{head(root)}.dirty"
    assert Version(found).local == f"g{head(root)}.dirty"


def test_an_archive_without_git_has_a_version(source):
    assert version_of_source(source) == UNKNOWN
    assert Version(UNKNOWN).is_devrelease


def test_a_source_tree_within_another_repository_does_not_take_its_commit(checkout, source):
    inner = source / "vendored"
    inner.mkdir()
    (inner / "pyproject.toml").write_text('name = "optkit"\n')
    assert version_of_source(inner) == UNKNOWN


def test_an_unpacked_sdist_keeps_the_version_that_it_was_built_with(source):
    (source / "PKG-INFO").write_text("Metadata-Version: 2.4\nName: optkit\nVersion: 4.5.6\n\nText\n")
    assert version_of_source(source) == "4.5.6"


def test_a_folder_of_installed_packages_is_no_source_tree(tmp_path):
    (tmp_path / "pyproject.toml").write_text('name = "another"\n')
    assert version_of_source(tmp_path) is None


def test_a_hook_of_another_repository_does_not_change_the_answer(checkout, tmp_path, monkeypatch):
    root, _ = checkout
    before = version_of_source(root)
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "nowhere"))
    assert version_of_source(root) == before


def test_the_package_the_command_and_the_records_agree(optkit_command):
    assert optkit.__version__ == version() == version_of("optkit") == versions()["optkit"]
    assert str(Version(version())) == version()
    assert optkit_command("--version").stdout.strip() == f"optkit, version {version()}"


def test_a_checkout_says_its_commit_and_whether_it_is_changed(checkout):
    root, _ = checkout
    found = checkout_of(root)
    assert (found.root.resolve(), found.commit, found.dirty) == (root.resolve(), git(root, "rev-parse", "HEAD"), False)
    assert checkout_of(root.parent) is None
