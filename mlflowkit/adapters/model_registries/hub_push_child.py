"""Pushes files to the Hugging Face Hub with huggingface_hub, in a process of its own.

That library has no timeout and waits between retries by itself: the process is ended at the deadline of who asked. The
request, on standard input, is JSON {endpoint, token, repository, private, folder, files: {path there: file here}, tag,
title}; the answer, in the file ANSWER, is {commit} or {problem, status, code, words}. All files are one commit on the
head of ``main`` that was read before it; files below ``folder`` that are not among them are deleted by it. The tag is
put on the commit when the Hub lists all files of it with their digests.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflowkit.system.files import use_private_umask

STATUS_STALE, STATUS_TAKEN = 412, 409
READ_SECONDS = 60.0


class PushRefusedError(Exception):
    """What the Hub has is not what may be pushed to. The argument is one of the answer's problems."""


def main(arguments: list[str]) -> int:
    """Push by one request; returns the exit code."""
    use_private_umask()
    Path(arguments[0]).write_text(json.dumps(answer_request(json.load(sys.stdin))), encoding="utf-8")
    return 0


def answer_request(request: Mapping[str, Any]) -> Mapping[str, Any]:
    """Push by a request; the answer says what came of it."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return {"commit": push(**request)}
    except PushRefusedError as error:
        return {"problem": error.args[0], "words": " ".join(error.args[1:])}
    except HfHubHTTPError as error:
        response = error.response
        code = response.headers.get("X-Error-Code", "")
        return {"problem": "refused", "status": response.status_code, "code": code, "words": _words(error)}
    except Exception as error:  # noqa: BLE001 - a vendor's: told by who asked
        return {"problem": "failed", "words": f"{type(error).__name__}: {_first_line(error)}"}


def push(
    endpoint: str, token: str, repository: str, private: bool, folder: str, files: Mapping[str, str], tag: str,
    title: str,
) -> str:  # fmt: skip
    """Commit the files and tag the commit; returns it. Raises HfHubHTTPError and PushRefusedError."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils._http import get_session

    get_session().timeout = READ_SECONDS
    api = HfApi(endpoint=endpoint, token=token)
    head = _head(api, repository, private)
    try:
        commit = _commit(api, repository, head, folder, files, title)
    except HfHubHTTPError as error:
        if error.response.status_code != STATUS_STALE:
            raise
        head = _head(api, repository, private)  # somebody else pushed meanwhile: theirs stays, ours goes on top
        commit = _commit(api, repository, head, folder, files, title)
    _require_complete(api, repository, commit, files)
    _tag(api, repository, tag, commit)
    return commit


def _head(api: Any, repository: str, private: bool) -> str:
    """The head of ``main``; the repository is made where there is none. Raises PushRefusedError for a public one."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        info = api.model_info(repository, revision="main")
    except RepositoryNotFoundError:
        api.create_repo(repository, private=private, exist_ok=True)
        info = api.model_info(repository, revision="main")
    if private and not info.private:
        raise PushRefusedError("public")
    return str(info.sha)


def _commit(api: Any, repository: str, head: str, folder: str, files: Mapping[str, str], title: str) -> str:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    present = [item.path for item in api.list_repo_tree(repository, revision=head, recursive=True)
               if hasattr(item, "blob_id")]  # fmt: skip
    stale = [path for path in present if path.startswith(f"{folder}/") and path not in files]
    operations: list[Any] = [CommitOperationDelete(path_in_repo=path, is_folder=False) for path in stale]
    operations += [CommitOperationAdd(path_in_repo=path, path_or_fileobj=file) for path, file in files.items()]
    commit = api.create_commit(repository, operations, commit_message=title, revision="main", parent_commit=head)
    return str(commit.oid)


def _require_complete(api: Any, repository: str, commit: str, files: Mapping[str, str]) -> None:
    """Raise PushRefusedError unless a commit has all files (a .gitignore there leaves some out without a word)."""
    listed = {item.path: item for item in api.list_repo_tree(repository, revision=commit, recursive=True)}
    for path, file in files.items():
        item, size = listed.get(path), Path(file).stat().st_size
        if item is None:
            raise PushRefusedError("missing", path)
        with open(file, "rb") as stream:
            if item.lfs is not None:
                same = item.lfs.sha256 == hashlib.file_digest(stream, "sha256").hexdigest()
            else:
                same = item.blob_id == hashlib.sha1(b"blob %d\0" % size + stream.read()).hexdigest()
        if not same:
            raise PushRefusedError("altered", path)


def _tag(api: Any, repository: str, tag: str, commit: str) -> None:
    """Tag a commit. Raises PushRefusedError where another commit has the tag already."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        api.create_tag(repository, tag=tag, revision=commit)
    except HfHubHTTPError as error:
        if error.response.status_code != STATUS_TAKEN:
            raise
        tagged = {item.name: item.target_commit for item in api.list_repo_refs(repository).tags}
        if tagged.get(tag) != commit:
            raise PushRefusedError("tagged", tag) from None


def _words(error: Any) -> str:
    """What the Hub says about an error."""
    return str(error.server_message or error.response.reason_phrase or "")[:300]


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines)[:300]


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
