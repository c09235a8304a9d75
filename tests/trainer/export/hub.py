"""The part of the hub's API that an upload uses, over real HTTP: repositories, preupload, LFS batch (basic and
multipart), commits, trees, downloads and tags. What huggingface_hub 1.33 asks for, as its source has it.

It can break: after `drop_after` large parts every connection is closed without an answer, as when a cable is pulled.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_" + "sEcReT0fAtEsT" * 3
CHUNK = 400_000  # larger objects are sent in parts of this size


@dataclass
class Repository:
    """files: path -> content. commits: what changed in each. tags: name -> commit."""

    private: bool
    files: dict[str, bytes] = field(default_factory=lambda: {".gitattributes": b"*.safetensors filter=lfs\n"})
    commits: list[list[str]] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def head(self) -> str:
        return hashlib.sha1(str(len(self.commits)).encode()).hexdigest()


class Hub:
    """Use as a context manager; `url` is the endpoint. token: who may write. requests: (method, path) of all that were
    answered. stored: large objects by sha256. parts_received: large parts and whole objects that arrived."""

    def __init__(self, token: str):
        self.token = token
        self.repositories: dict[str, Repository] = {}
        self.stored: dict[str, bytes] = {}
        self.pending: dict[str, dict[int, bytes]] = {}
        self.requests: list[tuple[str, str]] = []
        self.parts_received: list[str] = []
        self.bodies: list[bytes] = []
        self.drop_after: int | None = None
        self.lock = threading.Lock()
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self) -> Hub:
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    @property
    def is_down(self) -> bool:
        return self.drop_after is not None and len(self.parts_received) >= self.drop_after


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.answer("GET")

    def do_HEAD(self) -> None:
        self.answer("HEAD")

    def do_POST(self) -> None:
        self.answer("POST")

    def do_PUT(self) -> None:
        self.answer("PUT")

    def do_DELETE(self) -> None:
        self.answer("DELETE")

    def answer(self, method: str) -> None:
        with self.hub.lock:
            path = unquote(urlsplit(self.path).path)
            if self.hub.is_down:
                self.close_connection = True  # no answer: the client sees a broken connection
                return
            body = self.body()
            self.hub.requests.append((method, path))
            self.hub.bodies.append(body)
            for pattern, name in _ROUTES:
                match = re.fullmatch(pattern, f"{method} {path}")
                if match:
                    return getattr(self, name)(body, *match.groups())
            self.reply(404, {"error": f"no route for {method} {path}"})

    def body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        content = b""
        while size := int(self.rfile.readline(), 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def reply(self, status: int, content: Any = None, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {
            "Content-Type": "application/json",
            "Content-Length": str(len(data)),
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def repository(self, name: str) -> Repository | None:
        """None, and answered, where it is not there or the token may not write."""
        if self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            self.reply(401, {"error": "Invalid credentials"})
            return None
        found = self.hub.repositories.get(name)
        if found is None:
            self.reply(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        return found

    # ---- repositories ------------------------------------------------

    def create(self, body: bytes) -> None:
        if self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            return self.reply(403, {"error": "You don't have the rights to create a model under this namespace"})
        asked = json.loads(body)
        name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
        private = asked["private"] if "private" in asked else asked.get("visibility") == "private"
        self.hub.repositories[name] = Repository(private)
        return self.reply(200, {"url": f"{self.hub.url}/{name}", "name": name})

    def info(self, body: bytes, name: str) -> None:
        if repository := self.repository(name):
            siblings = [{"rfilename": path} for path in repository.files]
            self.reply(200, {"id": name, "private": repository.private, "sha": repository.head, "siblings": siblings})

    def tree(self, body: bytes, name: str) -> None:
        if repository := self.repository(name):
            self.reply(200, [self.entry(path, content) for path, content in repository.files.items()])

    def entry(self, path: str, content: bytes) -> dict[str, Any]:
        out = {"type": "file", "path": path, "size": len(content), "oid": _blob(content)}
        if path.endswith(".safetensors"):
            out["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
        return out

    def download(self, body: bytes, name: str, path: str) -> None:
        if repository := self.repository(name):
            content = repository.files[path]
            self.reply(200, content, {"X-Repo-Commit": repository.head, "ETag": f'"{_blob(content)}"'})

    # ---- uploads -----------------------------------------------------

    def validate(self, body: bytes) -> None:
        self.reply(200, {"errors": [], "warnings": []})

    def preupload(self, body: bytes, name: str) -> None:
        if repository := self.repository(name):
            files = [{"path": f["path"], "shouldIgnore": False, "oid": self.known_oid(repository, f["path"]),
                      "uploadMode": "lfs" if f["path"].endswith(".safetensors") else "regular"}
                     for f in json.loads(body)["files"]]  # fmt: skip
            self.reply(200, {"files": files})

    def known_oid(self, repository: Repository, path: str) -> str | None:
        content = repository.files.get(path)
        if content is None:
            return None
        return hashlib.sha256(content).hexdigest() if path.endswith(".safetensors") else _blob(content)

    def batch(self, body: bytes, name: str) -> None:
        if self.repository(name) is None:
            return None
        return self.reply(200, {"objects": [self.instructions(o) for o in json.loads(body)["objects"]]})

    def instructions(self, asked: dict[str, Any]) -> dict[str, Any]:
        oid, size = asked["oid"], asked["size"]
        if oid in self.hub.stored:
            return {"oid": oid, "size": size}
        verify = {"href": f"{self.hub.url}/lfs/verify/{oid}"}
        if size <= CHUNK:
            return {
                "oid": oid,
                "size": size,
                "actions": {"upload": {"href": f"{self.hub.url}/lfs/{oid}"}, "verify": verify},
            }
        parts = {str(n): f"{self.hub.url}/lfs/{oid}/{n}" for n in range(1, -(-size // CHUNK) + 1)}
        upload = {"href": f"{self.hub.url}/lfs/complete/{oid}", "header": {"chunk_size": str(CHUNK), **parts}}
        return {"oid": oid, "size": size, "actions": {"upload": upload, "verify": verify}}

    def put(self, body: bytes, oid: str) -> None:
        assert hashlib.sha256(body).hexdigest() == oid
        self.hub.stored[oid] = body
        self.hub.parts_received.append(oid)
        self.reply(200)

    def put_part(self, body: bytes, oid: str, number: str) -> None:
        self.hub.pending.setdefault(oid, {})[int(number)] = body
        self.hub.parts_received.append(f"{oid}/{number}")
        self.reply(200, headers={"ETag": f'"{hashlib.md5(body).hexdigest()}"'})

    def complete(self, body: bytes, oid: str) -> None:
        content = b"".join(part for _, part in sorted(self.hub.pending[oid].items()))
        assert hashlib.sha256(content).hexdigest() == oid
        assert len(json.loads(body)["parts"]) == len(self.hub.pending[oid])
        self.hub.stored[oid] = content
        self.reply(200)

    def verify(self, body: bytes, oid: str) -> None:
        asked = json.loads(body)
        self.reply(200 if len(self.hub.stored[asked["oid"]]) == asked["size"] else 422)

    def commit(self, body: bytes, name: str) -> None:
        repository = self.repository(name)
        if repository is None:
            return
        changed: list[str] = []
        for line in body.decode().splitlines():
            key, value = (entry := json.loads(line))["key"], entry["value"]
            if key == "file":
                repository.files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                repository.files[value["path"]] = self.hub.stored[value["oid"]]
            elif key == "deletedFile":
                del repository.files[value["path"]]
            changed += [value["path"]] if key != "header" else []
        repository.commits.append(changed)
        url = f"{self.hub.url}/{name}/commit/{repository.head}"
        self.reply(200, {"success": True, "commitOid": repository.head, "commitUrl": url})

    def add_tag(self, body: bytes, name: str, revision: str) -> None:
        if repository := self.repository(name):
            repository.tags[json.loads(body)["tag"]] = revision
            self.reply(200)

    def delete_tag(self, body: bytes, name: str, tag: str) -> None:
        if repository := self.repository(name):
            if repository.tags.pop(tag, None) is None:
                return self.reply(404, {"error": "no such tag"}, {"X-Error-Code": "RevisionNotFound"})
            return self.reply(200)
        return None


def _blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


_REPO = r"([\w.-]+/[\w.-]+)"
_REVISION = "(?:main|[0-9a-f]{40})"
_ROUTES = [
    (r"POST /api/repos/create", "create"),
    (r"POST /api/validate-yaml", "validate"),
    (rf"GET /api/models/{_REPO}(?:/revision/{_REVISION})?", "info"),
    (rf"GET /api/models/{_REPO}/tree/{_REVISION}", "tree"),
    (rf"POST /api/models/{_REPO}/preupload/main", "preupload"),
    (rf"POST /api/models/{_REPO}/commit/main", "commit"),
    (rf"POST /api/models/{_REPO}/tag/(\w+)", "add_tag"),
    (rf"DELETE /api/models/{_REPO}/tag/([\w.-]+)", "delete_tag"),
    (rf"POST /{_REPO}\.git/info/lfs/objects/batch", "batch"),
    (r"PUT /lfs/(\w{64})", "put"),
    (r"PUT /lfs/(\w{64})/(\d+)", "put_part"),
    (r"POST /lfs/complete/(\w{64})", "complete"),
    (r"POST /lfs/verify/(\w{64})", "verify"),
    (rf"(?:GET|HEAD) /{_REPO}/resolve/{_REVISION}/(.+)", "download"),
]
