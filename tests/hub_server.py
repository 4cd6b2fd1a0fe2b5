"""A model hub on loopback: enough of its API for huggingface_hub, and the ways in which a hub can fail."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from command_line import BUNDLE

FILES = {p.relative_to(BUNDLE).as_posix(): p.read_bytes() for p in BUNDLE.rglob("*") if p.is_file()}
"""A bundle that a hub may serve."""
LARGEST = max(FILES, key=lambda path: len(FILES[path]))
COMMIT = hashlib.sha1(b"first").hexdigest()


@dataclass
class Hub:
    """What is served. files: by repository and path. asked: every request, "METHOD path range"."""

    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    commit: str = COMMIT
    revisions: set[str] = field(default_factory=lambda: {"main"})
    token: str | None = None
    """Where set, requests without it are refused as of a private repository."""
    gated: bool = False
    status: int | None = None
    """Answer everything with it."""
    busy: int = 0
    """So many answers with a file are that nobody may ask for now."""
    cuts: list[int] = field(default_factory=list)
    """Bytes after which the next answers that are longer are cut off."""
    ranges: bool = True
    through: str | None = None
    """Send large files by a redirect to this other host."""
    lies: dict[str, int] = field(default_factory=dict)
    """Sizes that the listing gives instead."""
    swapped: dict[str, bytes] = field(default_factory=dict)
    """Contents that are sent instead of the listed ones."""
    asked: list[str] = field(default_factory=list)
    tokens: list[tuple[str, str | None]] = field(default_factory=list)
    url: str = ""
    stall_after: int | None = None
    """Bytes after which the answers that are longer wait for `stalled`."""
    stalled: threading.Event = field(default_factory=threading.Event)

    def add(self, repository: str, files: dict[str, bytes], folder: str = "") -> None:
        """Put files into a repository."""
        held = self.files.setdefault(repository, {})
        held.update({f"{folder}/{path}" if folder else path: data for path, data in files.items()})

    def fetched(self) -> list[str]:
        """Paths of files that were asked for."""
        return [
            re.sub(r"^GET /[^/]+/[^/]+/resolve/[^/]+/", "", line)
            for line in self.asked
            if "/resolve/" in line
        ]


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """In the block the hub answers at `hub.url`."""
    server = _Server(hub)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, hub: Hub) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hub = hub


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def _hub(self) -> Hub:
        assert isinstance(self.server, _Server)
        return self.server.hub

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self._hub.asked.append(" ".join(["GET", path, *filter(None, [self.headers.get("Range")])]))
        self._hub.tokens.append((path, self.headers.get("Authorization")))
        if self._hub.status is not None:
            self._refuse(self._hub.status, "", {"Retry-After": "7"} if self._hub.status == 429 else {})
        elif path.startswith("/elsewhere/"):
            self._file(self._hub.files, path.removeprefix("/elsewhere/"))
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            self._about(found[1], found[2])
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._resolve(found[1], found[2], found[3])
        else:
            self._refuse(404, "RepoNotFound")

    def _allowed(self, repository: str) -> bool:
        if self._hub.token is not None and self.headers.get("Authorization") != f"Bearer {self._hub.token}":
            self._refuse(401, "RepoNotFound")
            return False
        if repository not in self._hub.files:
            self._refuse(404, "RepoNotFound")
            return False
        return True

    def _about(self, repository: str, revision: str | None) -> None:
        if not self._allowed(repository):
            return
        if revision is not None and revision not in {*self._hub.revisions, self._hub.commit}:
            self._refuse(404, "RevisionNotFound")
            return
        siblings = []
        for path, data in self._hub.files[repository].items():
            one: dict[str, Any] = {
                "rfilename": path,
                "size": self._hub.lies.get(path, len(data)),
                "blobId": "0" * 40,
            }
            if _large(path):
                digest = hashlib.sha256(data).hexdigest()
                one["lfs"] = {"sha256": digest, "size": one["size"], "pointerSize": 134}
            siblings.append(one)
        self._json({"id": repository, "sha": self._hub.commit, "siblings": siblings, "tags": []})

    def _resolve(self, repository: str, commit: str, path: str) -> None:
        if not self._allowed(repository):
            return
        if self._hub.busy:
            self._hub.busy -= 1
            self._refuse(429, "", {"Retry-After": "1"})
        elif self._hub.gated:
            self._refuse(403, "GatedRepo")
        elif commit != self._hub.commit or path not in self._hub.files[repository]:
            self._refuse(404, "EntryNotFound")
        elif self._hub.through is not None and _large(path):
            self.send_response(302)
            self.send_header("Location", f"{self._hub.through}/elsewhere/{repository}/{path}")
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            self._file(self._hub.files, f"{repository}/{path}")

    def _file(self, files: dict[str, dict[str, bytes]], place: str) -> None:
        owner, name, path = place.split("/", 2)
        data = self._hub.swapped.get(path, files[f"{owner}/{name}"][path])
        begin = 0
        if self._hub.ranges and (found := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))):
            begin = int(found[1])
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {begin}-{len(data) - 1}/{len(data)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(data) - begin))
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", self._hub.commit)
        self.end_headers()
        rest = data[begin:]
        if self._hub.cuts and self._hub.cuts[0] < len(rest):
            self.wfile.write(rest[: self._hub.cuts.pop(0)])
            self.close_connection = True
            return
        if self._hub.stall_after is not None and self._hub.stall_after < len(rest):
            self.wfile.write(rest[: self._hub.stall_after])
            self.wfile.flush()
            self._hub.stalled.wait(60)
            rest = rest[self._hub.stall_after :]
        with contextlib.suppress(ConnectionError):  # who asked has gone
            self.wfile.write(rest)

    def _json(self, found: object) -> None:
        body = json.dumps(found).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _refuse(self, status: int, code: str, more: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"X-Error-Code": code, "Content-Length": "0", **(more or {})}.items():
            if value:
                self.send_header(name, value)
        self.end_headers()


def _large(path: str) -> bool:
    return path.endswith((".data", ".gguf", ".safetensors"))


def use(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let huggingface_hub ask there, as HF_ENDPOINT does where it is set before the import."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", url)
    monkeypatch.setattr(
        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
        url + "/{repo_id}/resolve/{revision}/{filename}",
    )


@contextmanager
def hub_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with a bundle in me/Tale that commands in this process ask; the store is `folder`/models, and empty."""
    monkeypatch.setenv("PACELINE_MODELS", str(folder / "models"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(folder / "no token"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY", True)
    with serving(Hub()) as hub:
        use(hub.url, monkeypatch)
        hub.add("me/Tale", FILES)
        yield hub


def changed(**files: bytes | None) -> dict[str, bytes]:
    """A bundle whose manifest says what its files are; None takes one away. Names have _ for / and -."""
    made = dict(FILES)
    for name, data in files.items():
        path = next(p for p in [*FILES, "NOTES"] if p.replace("/", "_").replace(".", "_") == name)
        if data is not None:
            made[path] = data
    manifest = json.loads(made["manifest.json"])
    for path, data in made.items():
        if path in manifest["files"]:
            manifest["files"][path] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    return {**made, "manifest.json": json.dumps(manifest).encode()}
