"""A Hub on loopback: repositories with a history, users with tokens, faults on demand, and a log of every request.

Enough of the Hub's protocol for huggingface_hub to create, upload, commit, list, search and download. A client process
needs `LoopbackHub.settings` in its environment before it imports huggingface_hub. The branch main of a repository is a
plain folder, which is read at every request: a test may fill and change it between two, and each change that is seen
is a commit.
"""

# No `from __future__ import annotations`: dataclasses would look for this module among the imported ones, and conftest
# loads it beside them.

import asyncio
import base64
import hashlib
import json
import shutil
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import parse_qs

import uvicorn
import yaml
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from priorvla.hub_cards.licenses import LICENSES

LARGE = (".safetensors", ".gguf", ".bin", ".png", ".mp4", ".parquet")  # goes through LFS, as .gitattributes says
TOKENS = {"hf_of_me": "me", "hf_of_somebody": "somebody"}


@dataclass
class Fault:
    """What befalls the next `times` requests whose line ("POST /api/models/me/x/commit/main") holds `request`.

    `drop`: the connection dies after the first bytes of the request arrived, and nothing is done ("request"), when all
    is done and only the answer is missing ("answer"), or in the middle of the answer ("middle"). `status`: an error
    with this number instead of an answer. `delay`: seconds before anything else.
    """

    request: str
    drop: Literal["request", "answer", "middle"] | None = None
    status: int | None = None
    delay: float = 0.0
    times: int = 1


@dataclass
class Commit:
    id: str
    title: str
    files: dict[str, str]  # place -> sha256 of what it holds


@dataclass
class Repository:
    """Commits, by id in the order in which they were made, and the names that point at them."""

    folder: Path  # the branch main
    blobs: Path
    private: bool = False
    downloads: int = 0
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def at(self, revision: str) -> Commit | None:
        """The commit that a branch, a tag or a commit's id means."""
        return self.commits.get(self.branches.get(revision) or self.tags.get(revision) or revision)

    def head(self, branch: str = "main") -> Commit:
        return self.commits[self.branches[branch]]

    def refresh(self) -> None:
        """What lies in the folder now becomes the newest commit of main, unless it is that already."""
        files = {}
        for file in sorted(path for path in self.folder.rglob("*") if path.is_file()):
            digest = hashlib.sha256(file.read_bytes()).hexdigest()
            if not (self.blobs / digest).exists():
                shutil.copyfile(file, self.blobs / digest)
            files[file.relative_to(self.folder).as_posix()] = digest
        if "main" not in self.branches or files != self.head().files:
            self.add(files, "main", "changed in its folder")

    def add(self, files: dict[str, str], branch: str, title: str) -> Commit:
        told = json.dumps([self.branches.get(branch), title, files, len(self.commits)]).encode()
        commit = Commit(hashlib.sha1(told).hexdigest(), title, dict(sorted(files.items())))
        self.commits[commit.id] = commit
        self.branches[branch] = commit.id
        return commit

    def check_out(self) -> None:
        """Makes the folder what main holds."""
        shutil.rmtree(self.folder)
        self.folder.mkdir()
        for place, digest in self.head().files.items():
            (self.folder / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.blobs / digest, self.folder / place)

    def card_data(self) -> dict[str, Any]:
        digest = self.head().files.get("README.md")
        return _front_matter((self.blobs / digest).read_text(encoding="utf-8")) if digest else {}


class Refused(Exception):  # noqa: N818, it is an answer
    """An answer other than the one asked for."""

    def __init__(self, status: int, code: str | None, told: str | None = None, **headers: str) -> None:
        self.status, self.told = status, told or str(code)
        self.headers = {**headers, **({"X-Error-Code": code} if code else {}), "X-Error-Message": self.told}


class LoopbackHub:
    """The repositories in `root/models/<owner>/<name>` and `root/datasets/<owner>/<name>`.

    Use it in a `with` block. `requests` grows by a line ("GET /api/datasets/somebody/toy") a request; `faults` are
    what goes wrong next; `token` is that of the user `me`, who may write to `me/...` and read what is private there.
    """

    token = "hf_of_me"
    Fault = Fault

    def __init__(self, root: Path) -> None:
        self.root = root
        self.requests: list[str] = []
        self.faults: list[Fault] = []
        self.tokens = dict(TOKENS)
        self._repositories: dict[Path, Repository] = {}
        self._blobs = root / "blobs"
        self._blobs.mkdir(parents=True)
        app = Starlette(routes=self._routes(), exception_handlers={Refused: _refusal})
        config = uvicorn.Config(self._disturbed(app), host="127.0.0.1", port=0, log_level="critical")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)

    def _routes(self) -> list[Route]:
        api = "/api/{kind}/{owner}/{name}"
        files, lfs = "/{owner}/{name}/resolve/{revision}/{path:path}", "/{owner}/{name}.git/info/lfs/objects/batch"
        return [
            Route("/api/whoami-v2", self._who_am_i),
            Route("/api/validate-yaml", self._validate, methods=["POST"]),
            Route("/api/repos/create", self._create, methods=["POST"]),
            Route("/api/models", self._search),
            Route("/api/datasets", self._search),
            Route(api, self._describe),
            Route(api + "/revision/{revision}", self._describe),
            Route(api + "/tree/{revision}", self._list),
            Route(api + "/tree/{revision}/{path:path}", self._list),
            Route(api + "/paths-info/{revision}", self._paths_info, methods=["POST"]),
            Route(api + "/commits/{revision}", self._list_commits),
            Route(api + "/settings", self._change_settings, methods=["PUT"]),
            Route(api + "/branch/{branch}", self._make_branch, methods=["POST"]),
            Route(api + "/tag/{revision}", self._make_tag, methods=["POST"]),
            Route(api + "/preupload/{revision}", self._preupload, methods=["POST"]),
            Route(api + "/commit/{revision}", self._commit, methods=["POST"]),
            Route("/datasets" + lfs, self._start_upload, methods=["POST"]),
            Route(lfs, self._start_upload, methods=["POST"]),
            Route("/lfs/{digest}", self._upload, methods=["PUT"]),
            Route("/lfs/{digest}/verify", self._verify, methods=["POST"]),
            Route("/datasets" + files, self._file),
            Route(files, self._file),  # of a model
        ]

    @property
    def url(self) -> str:
        port = self._server.servers[0].sockets[0].getsockname()[1]
        return f"http://127.0.0.1:{port}"

    def settings(self, cache: Path) -> dict[str, str]:
        """Environment variables of a client, whose cache is the folder `cache`."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(cache),
            "HF_HUB_CACHE": str(cache / "hub"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_OFFLINE": "0",
        }

    def repository(self, kind: str, name: str) -> Path:
        """The folder of its branch main, whether it exists or not; `kind` is models or datasets."""
        return self.root / kind / name

    def opened(self, kind: str, name: str) -> Repository:
        """The repository of which `repository` is the folder: its history, and whether it is private.

        Raises KeyError when there is none.
        """
        folder = self.repository(kind, name)
        if not folder.is_dir():
            raise KeyError(f"{kind}/{name}")
        repository = self._repositories.setdefault(folder, Repository(folder, self._blobs))
        repository.refresh()
        return repository

    def __enter__(self) -> Self:
        self._thread.start()
        while not self._server.started:
            if not self._thread.is_alive():
                raise RuntimeError("the loopback Hub did not start")
            time.sleep(0.01)
        return self

    def __exit__(self, *raised: object) -> None:
        self.stop()

    def stop(self) -> None:
        """The network is gone."""
        self._server.should_exit = True
        self._thread.join()

    def _disturbed(self, app: ASGIApp) -> ASGIApp:
        async def run(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            line = f"{scope['method']} {scope['path']}"
            self.requests.append(line)
            fault = next((fault for fault in self.faults if fault.times > 0 and fault.request in line), None)
            if fault is None:
                await app(scope, receive, send)
                return
            fault.times -= 1
            await asyncio.sleep(fault.delay)
            if fault.status is not None:
                await JSONResponse({"error": "out of order"}, fault.status)(scope, receive, send)
            elif fault.drop is None:
                await app(scope, receive, send)
            else:
                if fault.drop == "request":
                    await receive()
                else:
                    await app(scope, receive, _cut(send, half=fault.drop == "middle"))
                receive.__self__.transport.abort()  # type: ignore[attr-defined]  # uvicorn's: ASGI cannot hang up

        return run

    def _user(self, request: Request) -> str | None:
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in self.tokens:
            raise Refused(401, None, "Invalid credentials in Authorization header")
        return self.tokens.get(token)

    def _require_writer(self, request: Request, owner: str) -> None:
        user = self._user(request)
        if user is None:
            raise Refused(401, None, "Invalid username or password.")
        if user != owner:
            raise Refused(403, None, f"You don't have the rights to write under the namespace {owner!r}")

    async def _who_am_i(self, request: Request) -> Response:
        if (user := self._user(request)) is None:
            raise Refused(401, None, "Invalid username or password.")
        return JSONResponse({"type": "user", "name": user, "orgs": []})

    def _asked(self, request: Request, writes: bool = False) -> Repository:
        """The repository that a request is about, if whoever asks may know of it."""
        values = request.path_params
        kind = values.get("kind", "datasets" if request.url.path.startswith("/datasets/") else "models")
        if writes:
            self._require_writer(request, values["owner"])
        try:
            repository = self.opened(kind, f"{values['owner']}/{values['name']}")
        except KeyError:
            raise Refused(404, "RepoNotFound") from None
        user = self._user(request)
        if repository.private and user != values["owner"]:
            raise Refused(401 if user is None else 404, "RepoNotFound")
        return repository

    def _commit_asked(self, request: Request, repository: Repository) -> Commit:
        commit = repository.at(request.path_params.get("revision", "main"))
        if commit is None:
            raise Refused(404, "RevisionNotFound")
        return commit

    async def _create(self, request: Request) -> Response:
        asked = await request.json()
        owner = asked.get("organization") or self._user(request) or ""
        self._require_writer(request, owner)
        kind, name = f"{asked.get('type') or 'model'}s", f"{owner}/{asked['name']}"
        folder = self.repository(kind, name)
        url = f"{self.url}/{'datasets/' * (kind == 'datasets')}{name}"
        if folder.is_dir():
            return JSONResponse({"error": "You already created this repo", "url": url}, 409)
        folder.mkdir(parents=True)
        (folder / ".gitattributes").write_text("".join(f"*{end} filter=lfs\n" for end in LARGE))
        self.opened(kind, name).private = asked.get("visibility") == "private" or bool(asked.get("private"))
        return JSONResponse({"url": url, "name": name})

    async def _change_settings(self, request: Request) -> Response:
        repository, asked = self._asked(request, writes=True), await request.json()
        repository.private = asked.get("visibility") == "private" or asked.get("private") is True
        return JSONResponse({})

    async def _search(self, request: Request) -> Response:
        kind, asked = Path(request.url.path).name, request.query_params
        user, found = self._user(request), []
        for folder in sorted((self.root / kind).glob("*/*")):
            owner, name = folder.parent.name, f"{folder.parent.name}/{folder.name}"
            repository = self.opened(kind, name)
            data = repository.card_data()
            visible = not repository.private or user == owner
            fits = set(asked.getlist("filter")) <= set(_tags(data)) and asked.get("search", "") in name
            if visible and fits and asked.get("author", owner) == owner:
                facts = {"id": name, "modelId": name, "private": repository.private, "tags": _tags(data)}
                found.append({**facts, "downloads": repository.downloads, "likes": 0, "cardData": data})
        return JSONResponse(found[: int(asked.get("limit", len(found)))])

    async def _describe(self, request: Request) -> Response:
        repository = self._asked(request)
        commit = self._commit_asked(request, repository)
        data = repository.card_data()
        facts = {
            "id": f"{request.path_params['owner']}/{request.path_params['name']}",
            "sha": commit.id,
            "private": repository.private,
            "disabled": False,
            "gated": False,
            "downloads": repository.downloads,
            "likes": 0,
            "tags": _tags(data),
            "cardData": data,
            "siblings": [{"rfilename": place} for place in commit.files],
        }
        return JSONResponse(facts)

    async def _list(self, request: Request) -> Response:
        commit = self._commit_asked(request, self._asked(request))
        under = request.path_params.get("path", "")
        return JSONResponse([self._entry(commit, place) for place in commit.files if place.startswith(under)])

    async def _paths_info(self, request: Request) -> Response:
        commit = self._commit_asked(request, self._asked(request))
        asked = parse_qs((await request.body()).decode())["paths"]
        return JSONResponse([self._entry(commit, place) for place in asked if place in commit.files])

    def _entry(self, commit: Commit, place: str) -> dict[str, Any]:
        digest = commit.files[place]
        size = (self._blobs / digest).stat().st_size
        entry = {"type": "file", "path": place, "oid": self._git_id(digest), "size": size}
        return {**entry, "lfs": {"oid": digest, "size": size, "pointerSize": 134}} if place.endswith(LARGE) else entry

    async def _list_commits(self, request: Request) -> Response:
        repository = self._asked(request)
        until = list(repository.commits).index(self._commit_asked(request, repository).id)
        made = list(repository.commits.values())[: until + 1]
        told = {"authors": [], "date": "2026-01-01T00:00:00.000Z", "message": ""}
        return JSONResponse([{"id": commit.id, "title": commit.title, **told} for commit in reversed(made)])

    async def _make_branch(self, request: Request) -> Response:
        repository = self._asked(request, writes=True)
        start = (await request.json() if await request.body() else {}).get("startingPoint", "main")
        return self._name(repository, repository.branches, request.path_params["branch"], start)

    async def _make_tag(self, request: Request) -> Response:
        repository, asked = self._asked(request, writes=True), await request.json()
        return self._name(repository, repository.tags, asked["tag"], request.path_params["revision"])

    def _name(self, repository: Repository, names: dict[str, str], name: str, revision: str) -> Response:
        commit = repository.at(revision)
        if commit is None:
            raise Refused(404, "RevisionNotFound")
        names[name] = commit.id
        return JSONResponse({})

    # --- files go in ---

    async def _validate(self, request: Request) -> Response:
        try:
            data = _front_matter((await request.json())["content"])
            if data.get("license", "other") not in LICENSES:
                raise ValueError('"license" must be one of those that the Hub lists')
        except (ValueError, yaml.YAMLError) as error:
            return JSONResponse({"errors": [{"message": str(error)}], "warnings": []}, 400)
        return JSONResponse({"errors": [], "warnings": [] if data else [{"message": "missing yaml metadata in card"}]})

    async def _preupload(self, request: Request) -> Response:
        commit = self._commit_asked(request, self._asked(request, writes=True))
        told = []
        for file in (await request.json())["files"]:
            place, digest = file["path"], commit.files.get(file["path"])
            mode = "lfs" if place.endswith(LARGE) else "regular"
            known = digest and (digest if mode == "lfs" else self._git_id(digest))
            told.append({"path": place, "uploadMode": mode, "shouldIgnore": False, "oid": known})
        return JSONResponse({"files": told})

    async def _start_upload(self, request: Request) -> Response:
        self._asked(request, writes=True)
        objects = []
        for asked in (await request.json())["objects"]:
            place = f"{self.url}/lfs/{asked['oid']}"
            actions = {"upload": {"href": place}, "verify": {"href": f"{place}/verify"}}
            there = (self._blobs / asked["oid"]).exists()
            objects.append({"oid": asked["oid"], "size": asked["size"], **({} if there else {"actions": actions})})
        return JSONResponse({"transfer": "basic", "objects": objects})

    async def _upload(self, request: Request) -> Response:
        digest, content = request.path_params["digest"], await request.body()
        if hashlib.sha256(content).hexdigest() != digest:
            raise Refused(400, None, "the content is not that of the sha256 in the address")
        (self._blobs / digest).write_bytes(content)
        return Response()

    async def _verify(self, request: Request) -> Response:
        return JSONResponse({}, 200 if (self._blobs / request.path_params["digest"]).exists() else 404)

    async def _commit(self, request: Request) -> Response:
        repository, branch = self._asked(request, writes=True), request.path_params["revision"]
        if branch not in repository.branches:
            raise Refused(404, "RevisionNotFound")
        files, title = dict(repository.head(branch).files), ""
        for line in (await request.body()).splitlines():
            key, value = (part := json.loads(line))["key"], part["value"]
            if key == "header":
                title = value["summary"]
                if value.get("parentCommit", repository.head(branch).id) != repository.head(branch).id:
                    raise Refused(412, None, "A commit has happened since. Please refresh and try again.")
            elif key == "file":
                content = base64.b64decode(value["content"])
                digest = files[value["path"]] = hashlib.sha256(content).hexdigest()
                (self._blobs / digest).write_bytes(content)
            elif key == "lfsFile":
                if not (self._blobs / value["oid"]).exists():
                    raise Refused(400, None, f"{value['path']} was not uploaded")
                files[value["path"]] = value["oid"]
            elif key == "deletedFile":
                if files.pop(value["path"], None) is None:
                    raise Refused(404, "EntryNotFound", "A file with this name doesn't exist")
            else:
                raise Refused(400, None, f"{key}: this Hub cannot")
        commit = repository.add(files, branch, title)
        if branch == "main":
            repository.check_out()
        name = f"{request.path_params['owner']}/{request.path_params['name']}"
        url = f"{self.url}/{'datasets/' * (request.path_params['kind'] == 'datasets')}{name}/commit/{commit.id}"
        return JSONResponse({"success": True, "commitUrl": url, "commitOid": commit.id, "hookOutput": ""})

    # --- files come out ---

    async def _file(self, request: Request) -> Response:
        repository = self._asked(request)
        commit, place = self._commit_asked(request, repository), request.path_params["path"]
        if place not in commit.files:
            raise Refused(404, "EntryNotFound", **{"X-Repo-Commit": commit.id})
        if place == "config.json" and request.method == "GET":
            repository.downloads += 1
        digest = commit.files[place]
        tag = digest if place.endswith(LARGE) else self._git_id(digest)
        headers = {"X-Repo-Commit": commit.id, "ETag": f'"{tag}"'}
        return FileResponse(self._blobs / digest, headers=headers, media_type="application/octet-stream")

    def _git_id(self, digest: str) -> str:
        content = (self._blobs / digest).read_bytes()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _cut(send: Send, half: bool) -> Send:
    over = not half

    async def cut(message: Message) -> None:
        nonlocal over
        if not over:
            over, body = "body" in message, message.get("body", b"")
            await send({**message, "body": body[: len(body) // 2], "more_body": True} if over else message)

    return cut


async def _refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return JSONResponse({"error": error.told}, status_code=error.status, headers=error.headers)


def _front_matter(text: str) -> dict[str, Any]:
    """The metadata of a card. Raises ValueError when they are no mapping, or YAMLError."""
    if not text.startswith("---\n"):
        return {}
    data = yaml.safe_load(text.split("\n---", 1)[0].removeprefix("---\n")) or {}
    if not isinstance(data, dict):
        raise ValueError("metadata must be a mapping")
    return data


def _tags(data: Mapping[str, Any]) -> list[str]:
    """What the Hub makes of a card's metadata, and searches."""
    bases = data.get("base_model") or []
    named = [f"base_model:{name}" for name in ([bases] if isinstance(bases, str) else bases)]
    named += [f"license:{data['license']}"] if "license" in data else []
    return [*data.get("tags", []), *(data[key] for key in ("library_name", "pipeline_tag") if key in data), *named]


__all__ = ["Commit", "Fault", "LoopbackHub", "Repository"]
