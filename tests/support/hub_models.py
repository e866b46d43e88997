"""The models of the fake Hub: repositories, commits of files of git and LFS, tags, and what the real one refuses."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

WRITE_TOKEN, READ_TOKEN = "hf_canary0123456789abcdefTOKEN", "hf_canary_of_a_READER"
LICENSES = ("apache-2.0", "mit", "cc-by-4.0", "other")
LFS_ENDS = (".onnx", ".npy", ".whylogs")
_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}")


@dataclass
class ModelRepository:
    """One repository of models."""

    private: bool = True
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    titles: list[str] = field(default_factory=list)

    def commit(self, files: Mapping[str, bytes], title: str = "a commit") -> str:
        """Commit these files, and no others, on main."""
        self.titles.append(title)
        commit = hashlib.sha1(f"{len(self.commits)}{sorted(files)}{title}".encode()).hexdigest()
        self.commits[commit] = dict(files)
        self.branches["main"] = commit
        return commit

    @property
    def head(self) -> dict[str, bytes]:
        return self.commits[self.branches["main"]]


@dataclass
class FakeModels:
    """All repositories, and the contents that were uploaded for commits to come."""

    repositories: dict[str, ModelRepository] = field(default_factory=dict)
    uploaded: dict[str, bytes] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    """Paths that a .gitignore leaves out."""

    def create(self, name: str, *, private: bool = True) -> ModelRepository:
        made = self.repositories[name] = ModelRepository(private)
        made.commit({".gitattributes": b"*.onnx filter=lfs"}, "initial commit")
        return made

    def contents(self) -> Iterator[Mapping[str, bytes]]:
        for repository in self.repositories.values():
            yield from repository.commits.values()

    def get(self, handler: Any, segments: list[str], query: dict[str, str], fault: Any) -> None:
        is_api = segments[0] == "api"
        name, rest = "/".join(segments[2:4] if is_api else segments[:2]), segments[4 if is_api else 2 :]
        repository = self._readable(handler, name)
        if repository is None:
            return None
        if rest == ["refs"] and not query:
            groups = {"branches": ("heads", repository.branches), "tags": ("tags", repository.tags)}
            return handler.answer({
                **{group: [{"name": key, "ref": f"refs/{kind}/{key}", "targetCommit": commit}
                           for key, commit in named.items()] for group, (kind, named) in groups.items()},
                "converts": [],
            })  # fmt: skip
        if len(rest) < 2 or rest[0] not in ("revision", "tree", "resolve"):
            return handler.violate("unknown route")
        commit = {**repository.tags, **repository.branches}.get(rest[1], rest[1])
        if commit not in repository.commits:
            return handler.refuse(404, "RevisionNotFound", f"Invalid rev id: {rest[1]}")
        files = repository.commits[commit]
        if rest[0] == "revision" and len(rest) == 2 and not query:
            siblings = [{"rfilename": path} for path in files]
            return handler.answer(
                {"_id": "1", "id": name, "modelId": name, "sha": commit, "siblings": siblings,
                 "private": repository.private}
            )  # fmt: skip
        if not re.fullmatch(r"[0-9a-f]{40}", rest[1]):
            return handler.violate("read by a name that moves")
        if rest[0] == "tree":
            return handler.tree(files, commit, "/".join(rest[2:]), query)
        return handler.resolve(files, commit, "/".join(rest[2:]), fault)

    def post(self, handler: Any, segments: list[str], query: dict[str, str], content: bytes) -> None:
        if query:
            return handler.violate(f"query {query}")
        if not self._may_write(handler):
            return None
        if segments == ["api", "repos", "create"]:
            return self._create(handler, json.loads(content))
        if segments == ["api", "validate-yaml"]:
            return self._validate(handler, json.loads(content))
        if segments[:2] == ["api", "models"] and len(segments) == 6:
            name, verb, revision = "/".join(segments[2:4]), segments[4], segments[5]
        elif segments[2:] in (["info", "lfs", "objects", "batch"], ["info", "lfs", "objects", "verify"]):
            name, verb, revision = f"{segments[0]}/{segments[1].removesuffix('.git')}", segments[-1], "main"
        else:
            return handler.violate("unknown route")
        repository = self._readable(handler, name)
        if repository is None:
            return None
        if verb == "preupload":
            return self._preupload(handler, repository, json.loads(content))
        if verb == "batch":
            return self._batch(handler, json.loads(content))
        if verb == "verify":
            known = self.uploaded.get(json.loads(content)["oid"])
            return handler.answer({}) if known is not None else handler.refuse(404, "", "no such object")
        if verb == "commit" and revision == "main":
            return self._commit(handler, name, repository, content)
        if verb == "tag":
            return self._tag(handler, repository, revision, json.loads(content))
        return handler.violate("unknown route")

    def _readable(self, handler: Any, name: str) -> ModelRepository | None:
        token, repository = handler.headers.get("Authorization"), self.repositories.get(name)
        if token is not None and token not in (f"Bearer {WRITE_TOKEN}", f"Bearer {READ_TOKEN}"):
            handler.refuse(401, "", "Invalid credentials in Authorization header")
        elif repository is None or (repository.private and token is None):
            handler.refuse(404 if token else 401, "RepoNotFound", "Repository not found")
        else:
            return repository
        return None

    def _may_write(self, handler: Any) -> bool:
        token = handler.headers.get("Authorization")
        if token == f"Bearer {WRITE_TOKEN}":
            return True
        if token == f"Bearer {READ_TOKEN}":
            handler.refuse(403, "", "you don't have the rights to write")
        else:
            handler.refuse(401, "", "Invalid credentials in Authorization header")
        return False

    def _create(self, handler: Any, asked: dict[str, Any]) -> None:
        if set(asked) - {"name", "organization", "visibility", "type"} or asked.get("type", "model") != "model":
            return handler.violate(f"create {asked}")
        name = f"{asked['organization']}/{asked['name']}"
        if not _NAME.fullmatch(asked["name"]) or asked["name"].endswith((".git", ".ipynb")):
            return handler.refuse(400, "", f"Invalid repository name {asked['name']}")
        if name in self.repositories:
            return handler.refuse(409, "", "You already created this model repo")
        self.create(name, private=asked.get("visibility") == "private")
        return handler.answer({"url": f"{handler.hub.url}/{name}", "name": name})

    def _validate(self, handler: Any, asked: dict[str, Any]) -> None:
        if set(asked) != {"content", "repoType"}:
            return handler.violate(f"validate {sorted(asked)}")
        problem = ""
        try:
            header = yaml.safe_load(asked["content"].split("---\n")[1])
            if header.get("license", "mit") not in LICENSES:
                problem = f'"license" must be one of {LICENSES}'
            for result in (header.get("model-index") or [{}])[0].get("results", ()):
                if not result["dataset"]["type"] or not result["dataset"]["name"]:
                    problem = "model-index: dataset needs type and name"
                if any(not isinstance(metric["value"], int | float) for metric in result["metrics"]):
                    problem = "model-index: a metric has no value"
        except (yaml.YAMLError, LookupError, AttributeError) as error:
            problem = f"the header is not YAML: {error}"
        answer = {"errors": [{"message": problem}] if problem else [], "warnings": []}
        return handler.send(400 if problem else 200, json.dumps(answer).encode(), Content_Type="application/json")

    def _preupload(self, handler: Any, repository: ModelRepository, asked: dict[str, Any]) -> None:
        files = []
        for item in asked["files"]:
            if set(item) != {"path", "sample", "size"} or len(base64.b64decode(item["sample"])) > 512:
                return handler.violate(f"preupload {sorted(item)}")
            is_lfs = item["path"].endswith(LFS_ENDS)
            known = repository.head.get(item["path"])
            ignored = item["path"] in self.ignored
            oid = None if known is None else _oid(known, is_lfs)
            files.append({"path": item["path"], "uploadMode": "lfs" if is_lfs else "regular", "shouldIgnore": ignored,
                          "oid": oid})  # fmt: skip
        return handler.answer({"files": files})

    def _batch(self, handler: Any, asked: dict[str, Any]) -> None:
        if asked["operation"] != "upload" or asked["hash_algo"] != "sha256":
            return handler.violate(f"batch {asked}")
        objects = []
        for item in asked["objects"]:
            value: dict[str, Any] = {"oid": item["oid"], "size": item["size"]}
            if item["oid"] not in self.uploaded:
                place = f"{handler.hub.network}/upload/{item['oid']}?signature=canary-signature"
                verify = f"{handler.hub.url}{handler.path.removesuffix('batch')}verify"
                value["actions"] = {"upload": {"href": place}, "verify": {"href": verify}}
            objects.append(value)
        return handler.answer({"transfer": "basic", "objects": objects})

    def _commit(self, handler: Any, name: str, repository: ModelRepository, content: bytes) -> None:
        lines = [json.loads(line) for line in content.splitlines()]
        header = lines[0]["value"]
        if handler.headers["Content-Type"] != "application/x-ndjson" or lines[0]["key"] != "header":
            return handler.violate("a commit begins with its header, in ndjson")
        if "parentCommit" not in header:
            return handler.violate("a commit without a parent")
        if header["parentCommit"] != repository.branches["main"]:
            return handler.refuse(412, "", "A commit has happened since. Please refresh and try again.")
        files = dict(repository.head)
        for line in lines[1:]:
            value, path = line["value"], line["value"]["path"]
            if line["key"] == "deletedFile":
                if files.pop(path, None) is None:
                    return handler.refuse(404, "EntryNotFound", "A file with this name doesn't exist")
            elif line["key"] == "file" and not path.endswith(LFS_ENDS):
                files[path] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile" and value["oid"] in self.uploaded:
                files[path] = self.uploaded[value["oid"]]
            else:
                return handler.refuse(400, "", f"{path}: its LFS object was not uploaded")
        commit = repository.commit(files, header["summary"])
        return handler.answer(
            {"success": True, "commitOid": commit, "commitUrl": f"{handler.hub.url}/{name}/commit/{commit}"}
        )

    def _tag(self, handler: Any, repository: ModelRepository, revision: str, asked: dict[str, Any]) -> None:
        if set(asked) != {"tag"}:
            return handler.violate(f"tag {asked}")
        if revision not in repository.commits:
            return handler.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        if asked["tag"] in repository.tags:
            return handler.refuse(409, "", "Tag reference exists already")
        repository.tags[asked["tag"]] = revision
        return handler.answer({})


def _oid(content: bytes, is_lfs: bool) -> str:
    return hashlib.sha256(content).hexdigest() if is_lfs else hashlib.sha1(
        b"blob %d\0" % len(content) + content
    ).hexdigest()  # fmt: skip
