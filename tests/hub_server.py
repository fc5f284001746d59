"""A local server that speaks the part of the Hugging Face hub's API that pushing and pulling need.

Repositories are folders; each commit is a folder of whole files. `*.safetensors` go through LFS, as on the hub.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

OWNER = "me"
WRITER, READER = "hf_may_write", "hf_may_read"
TOKENS = (WRITER, READER)


class HubServer:
    """Serve repositories of the user "me" and remember what was asked ("GET /api/models/me/net")."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.private: set[str] = set()
        self.asked: list[str] = []
        self.messages: list[str] = []
        self.status = 0  # when set, the answer to every request
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,))
        self.endpoint = f"http://127.0.0.1:{self._http.server_port}"
        self.storage = f"http://localhost:{self._http.server_port}/lfs"  # another host, as on the hub
        (root / "lfs").mkdir(parents=True)

    def __enter__(self) -> HubServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread.is_alive():
            self._http.shutdown()
            self._thread.join()
            self._http.server_close()

    def commits(self, repo: str, branch: str = "main") -> list[str]:
        """List the commits of a branch, the newest last."""
        path = self.root / repo / "refs" / branch
        return path.read_text().split() if path.is_file() else []

    def files(self, repo: str, revision: str = "main") -> dict[str, bytes]:
        """Read the files of a branch's newest commit, or of a commit."""
        commit = (self.commits(repo, revision) or [revision])[-1]
        return {path.name: path.read_bytes() for path in sorted((self.root / repo / commit).iterdir())}

    def knows(self, repo: str, revision: str) -> bool:
        return bool(self.commits(repo, revision)) or (self.root / repo / revision).is_dir()

    def commit(self, repo: str, branch: str, files: dict[str, bytes]) -> str:
        past = self.commits(repo, branch)
        name = hashlib.sha1(repr((past, sorted(files.items()))).encode()).hexdigest()
        folder = self.root / repo / name
        folder.mkdir(parents=True)
        for path, content in files.items():
            (folder / path).write_bytes(content)
        (self.root / repo / "refs").mkdir(exist_ok=True)
        (self.root / repo / "refs" / branch).write_text("\n".join([*past, name]))
        return name

    def apply(self, files: dict[str, bytes], lines: list[dict]) -> str:
        """Apply the operations of a commit to `files`; returns its message."""
        message = ""
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                message = value["summary"]
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = (self.root / "lfs" / value["oid"]).read_bytes()
            else:
                assert line["key"] == "deletedFile", line
                del files[value["path"]]
        return message


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer

    def do_GET(self) -> None:
        body = self._body()
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append(f"{self.command} {path}")
        if self.hub.status:
            return self._answer(self.hub.status)
        if self._token() not in (None, *TOKENS):
            return self._answer(401, headers={"X-Error-Message": "Invalid credentials in Authorization header"})
        for pattern, handle in _ROUTES:
            found = re.fullmatch(pattern, f"{self.command} {path}")
            if found:
                return getattr(self, handle)(*found.groups(), body=body)
        return self._answer(404)

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815

    def _create(self, body: bytes) -> None:
        asked = json.loads(body)
        repo = f"{asked.get('organization') or OWNER}/{asked['name']}"
        if self._token() is None:
            return self._answer(401)
        if self._token() != WRITER or not repo.startswith(f"{OWNER}/"):
            return self._answer(403, headers={"X-Error-Message": "You don't have the rights to create a model"})
        url = {"url": f"{self.hub.endpoint}/{repo}"}
        if self.hub.commits(repo):
            return self._answer(409, url)
        if asked.get("visibility") == "private" or asked.get("private"):
            self.hub.private.add(repo)
        self.hub.commit(repo, "main", {".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"})
        return self._answer(200, url)

    def _validate(self, body: bytes) -> None:
        header = json.loads(body)["content"].split("---\n")[1]
        self._answer(200 if "library_name: torchcbl\n" in header else 400, {"warnings": [], "errors": []})

    def _branch(self, repo: str, branch: str, body: bytes) -> None:
        if self._writable(repo, "main"):
            if self.hub.commits(repo, branch):
                return self._answer(409)
            self.hub.commit(repo, branch, self.hub.files(repo))
            return self._answer(200, {})
        return None

    def _preupload(self, repo: str, branch: str, body: bytes) -> None:
        if self._writable(repo, branch):
            files = [
                {"path": path, "uploadMode": "lfs" if path.endswith(".safetensors") else "regular"}
                for path in (entry["path"] for entry in json.loads(body)["files"])
            ]
            self._answer(200, {"files": [{**entry, "shouldIgnore": False} for entry in files]})

    def _lfs_batch(self, repo: str, body: bytes) -> None:
        objects = [
            {**entry, "actions": {"upload": {"href": f"{self.hub.storage}/{entry['oid']}"}}}
            for entry in json.loads(body)["objects"]
        ]
        self._answer(200, {"transfer": "basic", "objects": objects})

    def _lfs_put(self, oid: str, body: bytes) -> None:
        assert hashlib.sha256(body).hexdigest() == oid
        (self.hub.root / "lfs" / oid).write_bytes(body)
        self._answer(200, {})

    def _lfs_get(self, oid: str, body: bytes) -> None:
        self._answer(200, (self.hub.root / "lfs" / oid).read_bytes())

    def _commit(self, repo: str, branch: str, body: bytes) -> None:
        if self._writable(repo, branch):
            files = self.hub.files(repo, branch)
            message = self.hub.apply(files, [json.loads(line) for line in body.splitlines()])
            oid = self.hub.commit(repo, branch, files)
            self.hub.messages.append(message)
            self._answer(200, {"commitUrl": f"{self.hub.endpoint}/{repo}/commit/{oid}", "commitOid": oid})

    def _info(self, repo: str, revision: str | None, body: bytes) -> None:
        if self._readable(repo, revision or "main"):
            sha = (self.hub.commits(repo, revision or "main") or [revision])[-1]
            self._answer(200, {"id": repo, "sha": sha, "private": repo in self.hub.private})

    def _tree(self, repo: str, revision: str, body: bytes) -> None:
        if self._readable(repo, revision):
            self._answer(200, [_entry(name, data) for name, data in self.hub.files(repo, revision).items()])

    def _resolve(self, repo: str, revision: str, name: str, body: bytes) -> None:
        if not self._readable(repo, revision):
            return None
        data = self.hub.files(repo, revision).get(name)
        commit = {"X-Repo-Commit": (self.hub.commits(repo, revision) or [revision])[-1]}
        if data is None:
            return self._answer(404, headers={**commit, "X-Error-Code": "EntryNotFound"})
        entry = _entry(name, data)
        if "lfs" not in entry:
            return self._answer(200, data, {**commit, "ETag": f'"{entry["oid"]}"'})
        oid = entry["lfs"]["oid"]
        linked = {"X-Linked-Etag": f'"{oid}"', "X-Linked-Size": str(len(data))}
        return self._answer(302, b"", {**commit, **linked, "Location": f"{self.hub.storage}/{oid}"})

    def _readable(self, repo: str, revision: str) -> bool:
        if not self.hub.commits(repo) or (repo in self.hub.private and self._token() is None):
            self._answer(401 if self._token() is None else 404, headers={"X-Error-Code": "RepoNotFound"})
        elif not self.hub.knows(repo, revision):
            self._answer(404, headers={"X-Error-Code": "RevisionNotFound"})
        else:
            return True
        return False

    def _writable(self, repo: str, branch: str) -> bool:
        if self._token() != WRITER:
            self._answer(403, headers={"X-Error-Message": "You need write access"})
            return False
        return self._readable(repo, branch)

    def _token(self) -> str | None:
        return (self.headers["Authorization"] or "").removeprefix("Bearer ") or None

    def _body(self) -> bytes:
        if self.headers["Transfer-Encoding"] == "chunked":
            return b"".join(self._chunks())
        return self.rfile.read(int(self.headers["Content-Length"] or 0))

    def _chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline(), 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def _answer(self, status: int, body: object = b"", headers: dict[str, str] | None = None) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        pass


_REPO, _REVISION = r"([^/]+/[^/]+?)", r"([^/]+)"
_ROUTES = [
    (r"POST /api/repos/create", "_create"),
    (r"POST /api/validate-yaml", "_validate"),
    (rf"POST /api/models/{_REPO}/branch/{_REVISION}", "_branch"),
    (rf"POST /api/models/{_REPO}/preupload/{_REVISION}", "_preupload"),
    (rf"POST /api/models/{_REPO}/commit/{_REVISION}", "_commit"),
    (rf"GET /api/models/{_REPO}(?:/revision/{_REVISION})?", "_info"),
    (rf"GET /api/models/{_REPO}/tree/{_REVISION}", "_tree"),
    (rf"POST /{_REPO}\.git/info/lfs/objects/batch", "_lfs_batch"),
    (r"PUT /lfs/(\w+)", "_lfs_put"),
    (r"(?:GET|HEAD) /lfs/(\w+)", "_lfs_get"),
    (rf"(?:GET|HEAD) /{_REPO}/resolve/{_REVISION}/(.+)", "_resolve"),
]


def _entry(name: str, data: bytes) -> dict:
    """What the hub's tree says of a file."""
    oid = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    entry = {"type": "file", "path": name, "size": len(data), "oid": oid}
    if name.endswith(".safetensors"):
        entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
    return entry
