"""An export on its way to the Hugging Face hub."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from optkit.core.errors import OptkitError, StageError, UserError, first_line
from optkit.deploy.target import ABOUT, list_files, read_about, sha256

if TYPE_CHECKING:
    from huggingface_hub import HfApi

TESTS = "test/"
CARD = "README.md"  # who exports may edit it
LOGIN = 'log in with "hf auth login", or set HF_TOKEN'
MB = 1e6


@dataclass(frozen=True)
class Sent:
    """What was sent, or would be.

    Attributes:
        repo: its name.
        address: of the repository.
        sizes: of the files that are sent, in bytes, by name.
        left: files of the folder that stay here.
        same: files that the repository has already.
        replaced: files that the repository has with another content.
        dry_run: whether nothing was sent.
    """

    repo: str
    address: str
    sizes: Mapping[str, int]
    left: tuple[str, ...] = ()
    same: tuple[str, ...] = ()
    replaced: tuple[str, ...] = field(default=())
    dry_run: bool = False

    def summary(self) -> str:
        """The files and where they go, in a few lines."""
        files = [
            f"  {name}  {size / MB:.3f} MB{'  (replaced)' if name in self.replaced else ''}"
            for name, size in self.sizes.items()
        ]
        total = f"{len(files)} files, {sum(self.sizes.values()) / MB:.3f} MB"
        lines = [f"{'would send' if self.dry_run else 'sent'} {total} to {self.address}:", *files] if files else []
        if not files:
            lines.append(f"nothing to send: {self.address} has these files already")
        if self.left:
            tests = [name for name in self.left if name.startswith(TESTS)]
            lines += [f"{len(tests)} test files stay here"] if tests else []
            others = [name for name in self.left if name not in tests]
            lines += [f"not of the export, and stays here: {', '.join(others)}"] if others else []
        if self.dry_run:
            lines.append("the repository was not asked what it holds")
        return "\n".join(lines)


def push(folder: str | Path, repo: str, *, create: bool = False, dry_run: bool = False, force: bool = False) -> Sent:
    """Sends an export to a repository of models, in one commit. Test files stay here, and what is not of the export.

    Args:
        folder: that `optkit.export` wrote.
        repo: ``NAME/MODEL``; the hub is ``HF_ENDPOINT``, the token that of ``hf auth login`` or ``HF_TOKEN``.
        create: make a private repository if there is none.
        dry_run: send nothing, and ask the hub nothing.
        force: replace files of the repository whose content differs.

    Raises:
        UserError: the folder is no export or was changed, there is no token or no repository, the token may not write
            to it, or the repository has files of the same names and another content.
        StageError: the hub cannot be reached, or answers with an error.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, constants, get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    folder = Path(folder)
    about = read_about(folder)
    _check_whole(folder, about["files"])
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError(first_line(error), key="repo", value=repo, fix="such as me/my-model") from error
    if "/" not in repo:
        raise UserError(f"'{repo}' does not say whose it is", key="repo", value=repo, fix=f"such as me/{repo}")
    own = {*about["files"], ABOUT}
    left = tuple(name for name in list_files(folder) if name.startswith(TESTS) or name not in own)
    sizes = {name: (folder / name).stat().st_size for name in list_files(folder) if name not in left}
    address = f"{constants.ENDPOINT}/{repo}"
    if dry_run:
        return Sent(repo, address, sizes, left, dry_run=True)
    token = get_token()
    if token is None:
        raise UserError("no token for the hub", key="HF_TOKEN", fix=LOGIN)
    api = HfApi(token=token)
    with _plain_errors(repo, constants.ENDPOINT):
        there = _files_of(api, repo, create)
        same = tuple(name for name in sizes if name in there and there[name] in _digests(folder / name))
        # a new repository has an attributes file, whose name no export has
        replaced = tuple(name for name in sizes if name in there and name not in same)
        if replaced and not force:
            fix = "--force replaces them"
            raise UserError(f"{repo} has another {', '.join(replaced)}", key="repo", value=repo, fix=fix)
        new = {name: size for name, size in sizes.items() if name not in same}
        if new:
            message = f"{about['name']} for {about['engine']}, exported by optkit"
            added = [CommitOperationAdd(name, folder / name) for name in new]
            # upload_folder may make several commits
            api.create_commit(repo, added, commit_message=message)
    return Sent(repo, address, new, left, same, replaced)


def _check_whole(folder: Path, files: Mapping[str, str]) -> None:
    """Raises UserError for an export of which files are missing or changed; the card may be edited."""
    for name, digest in files.items():
        if not (folder / name).is_file():
            raise UserError(f"{folder} lacks {name}", key="dir", value=str(folder), fix="export again")
        if name != CARD and sha256(folder / name) != digest:
            message = f"{folder / name} is not as it was exported"
            raise UserError(message, key="dir", value=str(folder), fix="export again")


def _files_of(api: HfApi, repo: str, create: bool) -> dict[str, str]:
    """The names of a repository's files, and a hash of each."""
    from huggingface_hub.errors import RepositoryNotFoundError
    from huggingface_hub.hf_api import RepoFile

    try:
        api.repo_info(repo)  # unlike listing it, this is not tried again and again where no hub answers
        found = [x for x in api.list_repo_tree(repo, recursive=True) if isinstance(x, RepoFile)]
    except RepositoryNotFoundError as error:
        if error.response.status_code == 401:
            raise UserError("the hub does not know this token", key="HF_TOKEN", fix=LOGIN) from error
        if not create:
            fix = "check the name, or make it with --create"
            raise UserError(f"no repository {repo} that this token can see", key="repo", value=repo, fix=fix) from error
        api.create_repo(repo, private=True)
        return {}
    return {x.path: x.lfs.sha256 if x.lfs else x.blob_id for x in found}


def _digests(path: Path) -> tuple[str, str]:
    """What the hub may name a file's content by: SHA-256 of large files, git's hash of the others."""
    content = path.read_bytes()
    git = hashlib.sha1(b"blob %d\0" % len(content), usedforsecurity=False)
    git.update(content)
    return hashlib.sha256(content).hexdigest(), git.hexdigest()


@contextmanager
def _plain_errors(repo: str, endpoint: str) -> Iterator[None]:
    """The hub's errors as one line each."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        yield
    except OptkitError:
        raise
    except OfflineModeIsEnabled as error:
        raise UserError("the hub is switched off here", key="HF_HUB_OFFLINE", fix="unset HF_HUB_OFFLINE") from error
    except HfHubHTTPError as error:
        code = error.response.status_code if error.response is not None else None
        if code in (401, 403):
            fix = "use a token with write access to it: hf auth login"
            raise UserError(f"this token may not write to {repo}", key="HF_TOKEN", fix=fix) from error
        raise StageError(f"the hub answered: {_reason(error)}") from error
    except _failures() as error:
        raise StageError(
            f"cannot send to {urlsplit(endpoint).netloc}: {_reason(error)}", fix="check the network"
        ) from error


def _failures() -> tuple[type[Exception], ...]:
    """What is raised where no hub answers: OSError, and what the errors of the HTTP library derive from."""
    from huggingface_hub.errors import HfHubHTTPError

    return tuple(kind for kind in HfHubHTTPError.__bases__ if issubclass(kind, Exception))


def _reason(error: Any) -> str:
    said = getattr(error, "server_message", None)
    return first_line(Exception(said)) if said else first_line(error)
