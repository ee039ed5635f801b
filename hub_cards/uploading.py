"""Uploading a checkpoint's folder to the Hub: in one commit, so that it is there whole or not at all."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.hf_api import ModelInfo, RepoFile

from ..configuration.adapter_files import ADAPTER_CONFIG_FILE
from .checkpoints import is_hub_id
from .privacy import require_public
from .published_files import is_written

CONFIGS = ("config.json", ADAPTER_CONFIG_FILE)  # a repository with neither holds no checkpoint
KEPT = ".gitattributes"  # the Hub's own, in every repository
LOGIN = "log in with `hf auth login`, set HF_TOKEN, or pass token="
# The client's HTTP library is httpx or httpx2, by the release of huggingface_hub.
HTTP_ERROR: type[Exception] = HfHubHTTPError.__mro__[1]


@dataclass(frozen=True)
class Upload:
    """What somebody has uploaded to a branch, or tried to, and may replace there without being asked.

    Attributes:
        commit: its commit; None while that is not known.
        files: of an upload whose answer has not come: by path the digests that the Hub may know a file by.
    """

    commit: str | None = None
    files: Mapping[str, list[str]] = field(default_factory=dict)


def upload_checkpoint(
    folder: Path,
    repo: str,
    *,
    private: bool = True,
    overwrite: bool = False,
    earlier: Upload | None = None,
    commit_message: str | None = None,
    token: str | None = None,
    revision: str | None = None,
) -> CommitInfo:
    """Makes the files of `folder` the contents of a model repository, in one commit.

    The repository is made when it is new. When the connection dies on the way, it is as it was, or new and empty: what
    was uploaded by then is in no commit. When it dies while the Hub answers, all of it may be there.

    Args:
        folder: a checkpoint's files and nothing else.
        repo: `owner/name`.
        private: of a new repository; an old one that is private becomes public with False, never the other way round.
        overwrite: replace the checkpoint that the repository holds; it stays under its commit, and files of kinds that
            publishing does not write stay where they are.
        earlier: an upload that is replaced also without `overwrite`, while nobody has changed the branch since.
        commit_message: one line. Default: what happened.
        token: default: that of HF_TOKEN or of `hf auth login`.
        revision: branch to commit to, which must exist. Default: main.

    Returns:
        The commit; as a string its address, `.oid` its id (for `revision=`).

    Raises:
        ValueError: a file holds an absolute path or a secret, the repository is public and `private` is True, or there
            is no such branch, or `private` is False and it is one of a private repository.
        PermissionError: there is no token, the Hub does not know it, or it gives no right to write there.
        FileExistsError: the repository holds something, and `overwrite` is False or it is no checkpoint.
        ConnectionError: the Hub could not be reached, or the connection was lost.
        OSError: the Hub refused something else; also when all is there and only stayed private.
    """
    require_public(folder)
    api = _api(repo, token)
    with _explained(repo):
        found = _opened(api, repo, private, revision)
        there = _require_place(api, repo, found, private, overwrite, revision, earlier)
        files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
        commit = api.create_commit(
            repo,
            [
                *(CommitOperationAdd(path_in_repo=place, path_or_fileobj=path) for place, path in files.items()),
                *(
                    CommitOperationDelete(path_in_repo=place)
                    for place in sorted(there - set(files))
                    if is_written(place)
                ),
            ],
            commit_message=commit_message or ("Replace the checkpoint" if there else "Publish a checkpoint"),
            revision=revision,
            parent_commit=found.sha,  # somebody else's commit in between is an error, and not lost
        )
    if found.private and not private:
        try:
            api.update_repo_settings(repo, private=False)
        except (OSError, HTTP_ERROR) as error:
            raise OSError(
                f"the checkpoint is at {commit}, but {repo} is still private ({error}): make it public in its settings "
                "on the Hub"
            ) from error
    return commit


def require_place(
    repo: str,
    *,
    private: bool = True,
    overwrite: bool = False,
    earlier: Upload | None = None,
    token: str | None = None,
    revision: str | None = None,
) -> None:
    """Raises what `upload_checkpoint` would raise of the repository, when there are no files yet. Writes nothing."""
    api = _api(repo, token)
    with _explained(repo):
        try:
            found = _found(api, repo, revision)
        except RepositoryNotFoundError:
            return
        _require_place(api, repo, found, private, overwrite, revision, earlier)


def digests(folder: Path) -> dict[str, list[str]]:
    """Of the files in `folder`, by path, what the Hub may know their contents by: sha256, and git's sha1."""
    told = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        large, small = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
        with open(path, "rb") as file:
            while piece := file.read(1 << 22):
                large.update(piece)
                small.update(piece)
        told[path.relative_to(folder).as_posix()] = [large.hexdigest(), small.hexdigest()]
    return told


def repository_id(name: str, token: str | None = None) -> str:
    """`owner/name`, as it is; a bare name gets the account of the token.

    Raises:
        ValueError: it is neither. PermissionError, ConnectionError: as `upload_checkpoint`.
    """
    if not is_hub_id(name if "/" in name else f"me/{name}"):
        raise ValueError(f"{name!r} is no name of a repository on the Hub: use owner/name, or a bare name of your own")
    if "/" in name:
        return name
    with _explained(name):
        return f"{_api(name, token).whoami()['name']}/{name}"


def _api(repo: str, token: str | None) -> HfApi:
    if token is None and get_token() is None:
        raise PermissionError(f"uploading to {repo} needs a token of the Hub, and there is none: {LOGIN}")
    return HfApi(token=token, library_name="priorvla")


def _opened(api: HfApi, repo: str, private: bool, revision: str | None) -> ModelInfo:
    """The repository as it is now, made when there is none."""
    try:
        return _found(api, repo, revision)
    except RepositoryNotFoundError:
        api.create_repo(repo, private=private)
        return _found(api, repo, revision)


def _found(api: HfApi, repo: str, revision: str | None) -> ModelInfo:
    try:
        return api.model_info(repo, revision=revision)
    except RevisionNotFoundError:
        raise ValueError(
            f"{repo} has no branch {revision!r}: publish to main first (revision=None), then make the branch with "
            f"huggingface_hub.create_branch({repo!r}, branch={revision!r})"
        ) from None


def _require_place(
    api: HfApi,
    repo: str,
    found: ModelInfo,
    private: bool,
    overwrite: bool,
    revision: str | None,
    earlier: Upload | None,
) -> set[str]:
    """The files that are there, and of which a checkpoint's may be replaced."""
    there = {sibling.rfilename for sibling in found.siblings or []} - {KEPT}
    if there and not there.intersection(CONFIGS):
        raise FileExistsError(
            f"{repo} exists and holds no checkpoint ({', '.join(sorted(there)[:3])}): it is not replaced, choose "
            "another name"
        )
    if there and not overwrite and not (earlier is not None and _is_there(api, repo, found, earlier)):
        raise FileExistsError(
            f"{repo} exists and holds a checkpoint: choose another name, or pass overwrite=True (--overwrite) to "
            "replace it; the old one stays readable under its commit"
        )
    if private and not found.private:
        raise ValueError(
            f"{repo} is public, and so would be this checkpoint: pass private=False (--public) if that is meant, "
            "or choose another name"
        )
    if found.private and not private and revision not in (None, "main"):
        raise ValueError(
            f"{repo} is private, and a branch of it cannot be public alone: publish {revision} to a repository of its "
            "own, or leave private=False (--public) out"
        )
    return there


def _is_there(api: HfApi, repo: str, found: ModelInfo, earlier: Upload) -> bool:
    """Whether what was uploaded earlier is what the branch holds now; where no answer came, the files tell."""
    if earlier.commit is not None and earlier.commit == found.sha:
        return True
    held = {
        file.path: file.lfs.sha256 if file.lfs else file.blob_id
        for file in (api.list_repo_tree(repo, recursive=True, revision=found.sha) if earlier.files else ())
        if isinstance(file, RepoFile)
    }
    return bool(held) and all(held.get(place) in known for place, known in earlier.files.items())


@contextmanager
def _explained(repo: str) -> Iterator[None]:
    """What the Hub refuses, and a network that is gone, as errors that say what to do."""
    try:
        yield
    except RuntimeError as error:  # of a file's upload; what happened is its cause
        cause = error.__cause__
        if not isinstance(cause, HTTP_ERROR):
            raise
        raise _told(repo, cause) from error
    except HTTP_ERROR as error:
        raise _told(repo, error) from error


def _told(repo: str, error: Exception) -> OSError:
    owner = repo.partition("/")[0]
    if not isinstance(error, HfHubHTTPError):
        return ConnectionError(
            f"the connection to the Hub failed on the way to {repo} ({type(error).__name__}: {error}): no file of it "
            "appeared alone. Try again; if it then says that a checkpoint is there, all of it had arrived"
        )
    status = error.response.status_code
    if status == 401:
        return PermissionError(f"the Hub does not know the token that {repo} was asked for with: {LOGIN}")
    if status in (403, 404):
        return PermissionError(
            f"the token may not write to {repo}: publish under your own name, or make a token with write access to "
            f"{owner!r} in the Hub's settings"
        )
    if status == 412:
        return FileExistsError(f"{repo} got another commit in the meantime: look at it, then publish again")
    return OSError(f"the Hub refused the upload to {repo} and nothing was published: {error}")


__all__ = ["Upload", "digests", "repository_id", "require_place", "upload_checkpoint"]
