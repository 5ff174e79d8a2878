"""A stand-in for the Hugging Face Hub on this machine: as much of its protocol as downloads of files need.

`fake_hub` is a fixture; a `conftest.py` that wants it says `from files.hub_server import fake_hub`.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest


@dataclass
class Repo:
    files: dict[str, bytes]
    token: str | None = None
    revision: str = "main"
    gated: bool = False

    @property
    def commit(self) -> str:
        return hashlib.sha1(repr(sorted(self.files.items())).encode()).hexdigest()


@dataclass
class FakeHub:
    """Repositories by id, and what was asked of the server."""

    url: str = ""
    repos: dict[str, Repo] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    """Method and path of each request."""
    tokens: list[str | None] = field(default_factory=list)

    def add(self, repo_id: str, files: dict[str, bytes], **kwargs: Any) -> None:
        self.repos[repo_id] = Repo(files, **kwargs)


def _handler(hub: FakeHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

        def answer(self) -> None:
            path = unquote(self.path.split("?")[0]).strip("/")
            if path == "api/agent-harnesses":  # huggingface_hub asks for it once a process
                return self.refuse(404, "NotFound")
            hub.requests.append(f"{self.command} /{path}")
            token = (self.headers.get("authorization") or "").removeprefix("Bearer ") or None
            hub.tokens.append(token)
            parts = path.removeprefix("api/models/").split("/")
            repo = hub.repos.get("/".join(parts[:2]))
            if repo is None or (repo.token and token is None):
                return self.refuse(401 if token is None else 404, "RepoNotFound")
            if repo.token and repo.token != token:
                return self.refuse(403, "GatedRepo") if repo.gated else self.refuse(404, "RepoNotFound")
            revision = parts[3] if len(parts) > 3 else "main"
            if revision not in (repo.revision, repo.commit):
                return self.refuse(404, "RevisionNotFound")
            if path.startswith("api/models/"):
                siblings = [{"rfilename": name} for name in repo.files]
                body = json.dumps(
                    {"id": "/".join(parts[:2]), "sha": repo.commit, "siblings": siblings}
                ).encode()
                return self.send(200, body, {"Content-Type": "application/json"})
            name = "/".join(parts[4:])
            if name not in repo.files:
                return self.refuse(404, "EntryNotFound", {"X-Repo-Commit": repo.commit})
            content = repo.files[name]
            etag = hashlib.sha1(content).hexdigest()
            return self.send(200, content, {"X-Repo-Commit": repo.commit, "ETag": f'"{etag}"'})

        def refuse(self, status: int, code: str, headers: dict[str, str] | None = None) -> None:
            self.send(status, b"{}", {"X-Error-Code": code, "X-Error-Message": code, **(headers or {})})

        def send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

    return Handler


@pytest.fixture
def fake_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    """A running stand-in that huggingface_hub takes for the Hub, with an empty cache."""
    from huggingface_hub import constants
    from huggingface_hub.utils import close_session

    hub = FakeHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    for variable in ("HF_TOKEN", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    close_session()
    yield hub
    close_session()
    server.shutdown()
    server.server_close()
    thread.join()
