"""A small Hub of models on this machine: what the client of huggingface_hub asks for to publish and to download."""

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import yaml


class Hub:
    """Repositories by name, each a list of commits: a dictionary of files, by their hash."""

    def __init__(self):
        self.commits: dict[str, list[tuple[str, dict[str, bytes]]]] = {}
        self.requests: list[str] = []
        self.lock = threading.Lock()

    def commit(self, name: str, change: dict[str, bytes]) -> str:
        with self.lock:
            files = {**(self.commits[name][-1][1] if self.commits[name] else {}), **change}
            digest = hashlib.sha1(repr((len(self.commits[name]), sorted(files.items()))).encode()).hexdigest()
            self.commits[name].append((digest, files))
            return digest

    def files(self, name: str, revision: str = "main") -> tuple[str, dict[str, bytes]] | None:
        for digest, files in reversed(self.commits.get(name, [])):
            if revision in ("main", digest):
                return digest, files
        return None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *args) -> None:
        pass

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def answer(self, content: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def answer_json(self, content, status: int = 200, **headers: str) -> None:
        self.answer(json.dumps(content).encode(), status, Content_Type="application/json", **headers)

    def do_POST(self) -> None:
        path, body = urlsplit(self.path).path, self.body()
        self.hub.requests.append(f"POST {path}")
        if self.headers.get("Authorization") != "Bearer hf_test" and path != "/api/validate-yaml":
            self.answer_json({"error": "not logged in"}, 401)
        elif path == "/api/repos/create":
            fields = json.loads(body)
            name = f"{fields.get('organization') or 'tester'}/{fields['name']}"
            is_new = name not in self.hub.commits
            self.hub.commits.setdefault(name, [])
            if is_new:
                self.hub.commit(name, {".gitattributes": b""})
            self.answer_json({"url": f"/{name}", "id": name, "name": name}, 200 if is_new else 409)
        elif path == "/api/validate-yaml":
            content = json.loads(body)["content"]
            block = re.match(r"---\n(.*?)\n---", content, re.DOTALL)
            yaml.safe_load(block[1])
            self.answer_json({"errors": [], "warnings": []})
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/[^/]+", path):
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            self.answer_json({"files": files})
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/[^/]+", path):
            lines = [json.loads(line) for line in body.splitlines() if line]
            change = {
                line["value"]["path"]: base64.b64decode(line["value"]["content"])
                for line in lines
                if line["key"] == "file"
            }
            digest = self.hub.commit(match[1], change)
            self.answer_json({"success": True, "commitOid": digest, "commitUrl": f"/{match[1]}/commit/{digest}"})
        else:
            self.answer_json({"error": path}, 404)

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        if path == "/api/whoami-v2":
            self.answer_json({"name": "tester", "type": "user", "orgs": []})
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            found = self.hub.files(match[1], match[2])
            if found is None:
                self.answer(
                    b"", 404, X_Error_Code="RepoNotFound" if match[1] not in self.hub.commits else "RevisionNotFound"
                )
                return
            digest, files = found
            if match[3] not in files:
                self.answer(b"", 404, X_Error_Code="EntryNotFound", X_Repo_Commit=digest)
                return
            etag = hashlib.sha1(files[match[3]]).hexdigest()
            self.answer(files[match[3]], X_Repo_Commit=digest, ETag=f'"{etag}"')
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?(?:/.*)?", path):
            found = self.hub.files(match[1], match[3] or "main")
            if found is None:
                self.answer(b"", 404, X_Error_Code="RepoNotFound")
            elif match[2] == "tree":
                entries = [
                    {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                    for name, content in found[1].items()
                ]
                self.answer_json(entries)
            else:
                siblings = [{"rfilename": name} for name in found[1]]
                self.answer_json({"id": match[1], "sha": found[0], "siblings": siblings, "tags": [], "private": False})
        else:
            self.answer(b"", 404)

    def do_HEAD(self) -> None:
        self.do_GET()


@contextmanager
def running_hub():
    """A Hub that answers while this context lasts: itself, and its address."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
