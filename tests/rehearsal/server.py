"""A hub, a web server and an HTTP proxy on loopback, all out of one folder: what tests download from.

    python tests/rehearsal/server.py --root DIR --port 0        # prints its address, http://127.0.0.1:<port>

    DIR/models/<organisation>/<name>/...       a model repository; clients are told by HF_ENDPOINT=<address>
    DIR/datasets/<organisation>/<name>/...     a dataset repository
    DIR/web/<host>/<path>                      http://<host>/<path>, for clients told by http_proxy=<address>,
                                               or <address>/web/<host>/<path> directly

A repository with a file `.gated` wants a token; hidden files are not served. A repository's commit is a hash of its
content. As much of the Hub's interface is spoken as huggingface_hub's HfApi, hf_hub_download and snapshot_download use.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import mimetypes
import re
import threading
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

DATE = "2026-01-01T00:00:00.000Z"
LARGE = 1_000_000
# Stored apart from Git (as "LFS") on the Hub, and so known by their SHA-256.
LARGE_SUFFIXES = frozenset(
    {".bin", ".jpeg", ".jpg", ".onnx", ".parquet", ".png", ".pt", ".safetensors", ".tar", ".zip"}
)
REFUSED_TOKEN = "hf_refused"  # of somebody who has not accepted a gate's terms
CHUNK = 1 << 16


@dataclass
class Request:
    """One request and its answer, noted before a client can know of it; ``sent`` counts the bytes of the body."""

    method: str
    path: str
    headers: dict[str, str]
    status: int = 0
    sent: int = 0


class Refusal(Exception):
    """An answer that is not the thing asked for: status, message and the Hub's error code."""

    def __init__(self, status: int, message: str, code: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.code = code


# A fault answers a request instead of the server, or returns False to let it be answered.
Fault = Callable[["Handler"], bool]


@dataclass(frozen=True)
class Repository:
    """A folder that is served as a repository of the Hub."""

    kind: str
    name: str
    folder: Path
    pinned: str = ""  # the commit that a client believes to see

    @property
    def gated(self) -> bool:
        return (self.folder / ".gated").exists()

    def files(self) -> dict[str, Path]:
        """Path within the repository to file, sorted."""
        paths = (path for path in sorted(self.folder.rglob("*")) if path.is_file())
        names = {path.relative_to(self.folder).as_posix(): path for path in paths}
        return {name: path for name, path in names.items() if not name.startswith(".") and "/." not in name}

    @property
    def commit(self) -> str:
        """A hash of everything in the repository, in the form of a commit's."""
        if self.pinned:
            return self.pinned
        text = "".join(f"{name} {digests(path).sha256}\n" for name, path in self.files().items())
        return hashlib.sha1(text.encode()).hexdigest()


class Digests(NamedTuple):
    """Content hashes of a file: SHA-256, and the one by which Git knows it."""

    sha256: str
    git: str


def digests(path: Path) -> Digests:
    """Content hashes of a file, remembered until it changes."""
    status = path.stat()
    return _digests(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=100_000)
def _digests(path: Path, size: int, _changed: int) -> Digests:
    sha256, git = hashlib.sha256(), hashlib.sha1(f"blob {size}\0".encode())
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            sha256.update(chunk)
            git.update(chunk)
    return Digests(sha256.hexdigest(), git.hexdigest())


def is_large(path: Path) -> bool:
    """Whether the Hub would store a file apart from Git."""
    return path.suffix.lower() in LARGE_SUFFIXES or path.stat().st_size > LARGE


def entry(name: str, path: Path) -> dict[str, Any]:
    """A file as the Hub lists it."""
    size, hashes = path.stat().st_size, digests(path)
    listed: dict[str, Any] = {"type": "file", "path": name, "size": size, "oid": hashes.git}
    if is_large(path):
        listed["lfs"] = {"oid": hashes.sha256, "size": size, "pointerSize": 134}
    return listed


def sibling(name: str, path: Path) -> dict[str, Any]:
    """A file as the Hub's description of a repository mentions it."""
    size, hashes = path.stat().st_size, digests(path)
    listed: dict[str, Any] = {"rfilename": name, "size": size, "blobId": hashes.git}
    if is_large(path):
        listed["lfs"] = {"sha256": hashes.sha256, "size": size, "pointerSize": 134}
    return listed


@dataclass
class Hub:
    """The server, for use as a context manager: runs in threads of this process until the block is left."""

    root: Path
    port: int = 0
    any_revision: bool = False  # answer every commit hash with the commit that is there, so that real pins work
    names: set[str] = field(default_factory=set)  # further hosts that are this hub, for who comes by way of the proxy
    requests: list[Request] = field(default_factory=list)
    faults: dict[str, deque[Fault]] = field(default_factory=lambda: defaultdict(deque))

    def __post_init__(self) -> None:
        hub = self

        class Bound(Handler):
            server_hub = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Bound)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self.names.add(f"127.0.0.1:{self.port}")
        self.address = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Hub:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def serve(self) -> None:
        """Serve in the calling thread, until interrupted."""
        self._server.serve_forever()

    def repository(self, kind: str, name: str, revision: str) -> Repository:
        """The repository of that name, or Refusal as the Hub would refuse."""
        folder = self.root / kind / name
        if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) or ".." in name or not folder.is_dir():
            raise Refusal(404, "Repository not found", "RepoNotFound")
        repository = Repository(kind, name, folder)
        if self.any_revision and re.fullmatch(r"[0-9a-f]{40}", revision):
            return Repository(kind, name, folder, pinned=revision)
        if revision not in ("main", "refs/heads/main", repository.commit):
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return repository

    def sent(self, part: str = "") -> int:
        """Bytes sent in answer to GET requests whose path contains ``part``."""
        return sum(request.sent for request in self.requests if request.method == "GET" and part in request.path)


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    server_hub: Hub
    protocol_version = "HTTP/1.1"

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except ConnectionError:  # a client that went away
            self.close_connection = True

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_CONNECT(self) -> None:
        self.send_error(501, "This proxy speaks plain HTTP only; give it http:// addresses")

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing; ``Hub.requests`` remembers."""

    def _answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        self.form = parse_qs(self.rfile.read(length).decode()) if length else {}
        self.request_made = Request(
            self.command, self.path, {name.lower(): value for name, value in self.headers.items()}
        )
        self.server_hub.requests.append(self.request_made)
        try:
            faults = self.server_hub.faults.get(urlsplit(self.path).path)
            if self.command == "GET" and faults and faults.popleft()(self):
                return
            self._route()
        except Refusal as refusal:
            self._refuse(refusal)

    def _route(self) -> None:
        find = self.server_hub.repository
        target = urlsplit(self.path)
        path, query = unquote(target.path), parse_qs(target.query)
        if target.scheme and target.netloc not in self.server_hub.names:  # asked as a proxy for another host
            path = f"/web/{target.netloc}{path}"
        if path.startswith("/web/"):
            self._serve_web(path.removeprefix("/web/"))
        elif path == "/api/whoami-v2":
            self.send_json({"type": "user", "name": self._reader(), "orgs": [], "auth": {"type": "access_token"}})
        elif match := re.fullmatch(r"/api/(models|datasets)/(.+?)/tree/([^/]+)(?:/(.*))?", path):
            self._list(find(match[1], match[2], match[3]).files(), match[4] or "", "true" in query.get("recursive", []))
        elif match := re.fullmatch(r"/api/(models|datasets)/(.+?)/paths-info/([^/]+)", path):
            self._list_paths(find(match[1], match[2], match[3]))
        elif match := re.fullmatch(r"/api/(models|datasets)/(.+?)(?:/revision/(.+))?", path):
            self._describe(find(match[1], match[2], match[3] or "main"))
        elif match := re.fullmatch(r"/(datasets/)?([^/]+(?:/[^/]+)?)/resolve/([^/]+)/(.+)", path):
            self._resolve(find("datasets" if match[1] else "models", match[2], match[3]), match[4])
        else:
            raise Refusal(404, "Not found")

    def _reader(self) -> str:
        """Name of who asks, by the token; Refusal without one."""
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if not token:
            raise Refusal(401, "Access to this resource is restricted. Please log in.", "GatedRepo")
        return "refused" if token == REFUSED_TOKEN else "reader"

    def _describe(self, repository: Repository) -> None:
        gated = "manual" if repository.gated else False
        siblings = [sibling(name, path) for name, path in repository.files().items()]
        names = {"_id": repository.commit[:24], "id": repository.name, "author": repository.name.partition("/")[0]}
        state = {"sha": repository.commit, "private": False, "gated": gated, "disabled": False}
        counts = {"downloads": 0, "likes": 0, "tags": [], "lastModified": DATE, "createdAt": DATE}
        self.send_json({**names, **state, **counts, "siblings": siblings})

    def _list(self, files: dict[str, Path], below: str, recursive: bool) -> None:
        prefix = f"{below}/" if below else ""
        inside = {name: path for name, path in files.items() if name.startswith(prefix)}
        if below and not inside:
            raise Refusal(404, f"{below} does not exist", "EntryNotFound")
        depth = prefix.count("/")
        levels = range(depth + 1, max((name.count("/") for name in inside), default=0) + 1)
        parents = {"/".join(name.split("/")[:level]) for name in inside for level in levels if name.count("/") >= level}
        folders = [{"type": "directory", "path": name, "size": 0, "oid": "0" * 40} for name in sorted(parents)]
        listed = [*folders, *(entry(name, path) for name, path in inside.items())]
        self.send_json([item for item in listed if recursive or str(item["path"]).count("/") == depth])

    def _list_paths(self, repository: Repository) -> None:
        files = repository.files()
        self.send_json([entry(name, files[name]) for name in self.form.get("paths", []) if name in files])

    def _resolve(self, repository: Repository, name: str) -> None:
        if repository.gated and self._reader() == "refused":
            raise Refusal(403, f"Access to {repository.name} is restricted and you are not in the list.", "GatedRepo")
        path = repository.files().get(name)
        if path is None:
            raise Refusal(404, "Entry not found", "EntryNotFound")
        hashes = digests(path)
        tag = hashes.sha256 if is_large(path) else hashes.git
        extra = {"X-Repo-Commit": repository.commit}
        if is_large(path):
            extra |= {"X-Linked-Etag": f'"{tag}"', "X-Linked-Size": str(path.stat().st_size)}
        self.send_file(path, tag, extra)

    def _serve_web(self, name: str) -> None:
        folder = (self.server_hub.root / "web").resolve()
        path = (folder / name).resolve()
        if not path.is_file() or not path.is_relative_to(folder):
            raise Refusal(404, "Not found")
        self.send_file(path, digests(path).sha256, {})

    def send_json(self, value: Any) -> None:
        """Answer with JSON."""
        self.send_body(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def send_body(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        """Answer with some bytes."""
        self.start(status, {**headers, "Content-Length": str(len(body))})
        self.write(body)

    def start(self, status: int, headers: dict[str, str]) -> None:
        """Send an answer's head."""
        self.request_made.status = status
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def write(self, data: bytes) -> None:
        """Send a piece of an answer's body, unless only the head was asked for."""
        if self.command != "HEAD":
            self.request_made.sent += len(data)
            self.wfile.write(data)

    def send_file(self, path: Path, tag: str, extra: dict[str, str]) -> None:
        """Answer with a file, or with the part of it that the client asks for."""
        size = path.stat().st_size
        kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        headers = {"ETag": f'"{tag}"', "Accept-Ranges": "bytes", "Content-Type": kind, **extra}
        start, stop = self._range(size, f'"{tag}"')
        if start >= size > 0:
            self.start(416, {**headers, "Content-Range": f"bytes */{size}", "Content-Length": "0"})
            return
        part = (start, stop) != (0, size)
        if part:
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        self.start(206 if part else 200, {**headers, "Content-Length": str(stop - start)})
        with path.open("rb") as file:
            file.seek(start)
            while self.command != "HEAD" and (chunk := file.read(min(CHUNK, stop - file.tell()))):
                self.write(chunk)

    def _range(self, size: int, tag: str) -> tuple[int, int]:
        """First byte to send and the one after the last; all if no part is asked for, or of another version."""
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not match or self.headers.get("If-Range", tag) != tag:
            return 0, size
        return int(match[1]), min(size, int(match[2]) + 1) if match[2] else size

    def _refuse(self, refusal: Refusal) -> None:
        headers = {"Content-Type": "application/json", "X-Error-Message": str(refusal)}
        if refusal.code:
            headers["X-Error-Code"] = refusal.code
        self.send_body(refusal.status, json.dumps({"error": str(refusal)}).encode(), headers)


def main() -> None:
    """Serve a folder until interrupted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="folder with models/, datasets/ and web/")
    parser.add_argument("--port", type=int, default=0, help="0: any free one")
    parser.add_argument("--any-revision", action="store_true", help="answer every commit hash with what is there")
    arguments = parser.parse_args()
    hub = Hub(arguments.root, arguments.port, arguments.any_revision)
    print(hub.address, flush=True)
    hub.serve()


if __name__ == "__main__":
    main()
