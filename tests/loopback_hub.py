"""A Hub on loopback: serves repositories that are plain folders, and keeps a log of every request.

Enough of the Hub's protocol for huggingface_hub to list and download; a client process needs `LoopbackHub.settings` in
its environment before it imports huggingface_hub. What a repository holds is read at every request, so that a test may
change it between two.
"""

from __future__ import annotations

import hashlib
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send


class LoopbackHub:
    """The repositories in `root/models/<owner>/<name>` and `root/datasets/<owner>/<name>`, each with one branch, main.

    The newest commit is the only one that a repository has.

    Use it in a `with` block; `requests` grows by a line ("GET /api/datasets/somebody/toy") a request.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.requests: list[str] = []
        api, files = "/api/{kind}/{owner}/{name}", "/{owner}/{name}/resolve/{revision}/{path:path}"
        routes = [
            Route(api, self._describe),
            Route(api + "/revision/{revision}", self._describe),
            Route(api + "/tree/{revision}", self._list),
            Route(api + "/tree/{revision}/{path:path}", self._list),
            Route("/datasets" + files, self._file),
            Route(files, self._file),  # of a model
        ]
        config = uvicorn.Config(self._logged(Starlette(routes=routes)), host="127.0.0.1", port=0, log_level="warning")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)

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
        return self.root / kind / name

    def __enter__(self) -> Self:
        self._thread.start()
        while not self._server.started:
            if not self._thread.is_alive():
                raise RuntimeError("the loopback Hub did not start")
            time.sleep(0.01)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.should_exit = True
        self._thread.join()

    def _logged(self, app: ASGIApp) -> ASGIApp:
        async def log(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http":
                self.requests.append(f"{scope['method']} {scope['path']}")
            await app(scope, receive, send)

        return log

    def _describe(self, request: Request) -> Response:
        folder = self._asked(request)
        if isinstance(folder, Response):
            return folder
        name = f"{request.path_params['owner']}/{request.path_params['name']}"
        siblings = [{"rfilename": place} for place in _files(folder)]
        facts = {"id": name, "sha": _commit(folder), "private": False, "disabled": False, "gated": False}
        return JSONResponse({**facts, "downloads": 0, "likes": 0, "tags": [], "siblings": siblings})

    def _list(self, request: Request) -> Response:
        folder = self._asked(request)
        if isinstance(folder, Response):
            return folder
        return JSONResponse(
            [
                {"type": "file", "path": place, "oid": _digest(file), "size": file.stat().st_size}
                for place, file in _files(folder).items()
                if place.startswith(request.path_params.get("path", ""))
            ]
        )

    def _file(self, request: Request) -> Response:
        folder = self._asked(request)
        if isinstance(folder, Response):
            return folder
        file = _files(folder).get(request.path_params["path"])
        headers = {"X-Repo-Commit": _commit(folder)}
        if file is None:
            return _refused("EntryNotFound", headers)
        return FileResponse(file, headers={**headers, "ETag": f'"{_digest(file)}"'})

    def _asked(self, request: Request) -> Path | Response:
        """The folder of the repository that a request is about, or the Hub's answer when it does not exist."""
        values = request.path_params
        kind = values.get("kind", "datasets" if request.url.path.startswith("/datasets/") else "models")
        folder = self.repository(kind, f"{values['owner']}/{values['name']}")
        if not folder.is_dir():
            return _refused("RepoNotFound", {})
        if values.get("revision", "main") not in ("main", _commit(folder)):
            return _refused("RevisionNotFound", {})
        return folder


def _refused(code: str, headers: dict[str, str]) -> Response:
    return JSONResponse({"error": code}, status_code=404, headers={**headers, "X-Error-Code": code})


def _files(folder: Path) -> dict[str, Path]:
    return {file.relative_to(folder).as_posix(): file for file in sorted(folder.rglob("*")) if file.is_file()}


def _commit(folder: Path) -> str:
    """40 hexadecimal digits that change with any file."""
    listing = "".join(f"{place}\0{_digest(file)}\n" for place, file in _files(folder).items())
    return hashlib.sha1(listing.encode()).hexdigest()


def _digest(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()


__all__ = ["LoopbackHub"]
