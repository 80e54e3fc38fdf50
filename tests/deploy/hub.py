"""A stand-in for the Hugging Face hub on this machine: one user's repositories of models, in memory."""

import base64
import hashlib
import json
from collections import defaultdict
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import unquote, urlsplit

TOKEN = "hf_" + "a" * 34
LFS = (".onnx", ".bin", ".safetensors", ".pt2")


class Hub:
    """What the stand-in holds.

    Attributes:
        repos: content of files, by repository and name.
        commits: messages of commits, by repository.
        asked: each request, as ``METHOD path``.
        private: which repositories were made private.
        forbidden: whether the token may not write.
        full: whether the hub fails on every commit.
    """

    def __init__(self):
        self.repos = defaultdict(dict)
        self.commits = defaultdict(list)
        self.asked = []
        self.private = set()
        self.forbidden = False
        self.full = False
        self.stored = {}


@contextmanager
def local_hub():
    """A running stand-in; gives it and its address."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), lambda *a: Handler(hub, *a))
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, hub, *arguments):
        self.hub = hub
        super().__init__(*arguments)

    def log_message(self, *_):
        pass

    def answer(self, code, body=None, **headers):
        data = b"" if body is None else json.dumps(body).encode()
        self.send_response(code)
        for name, value in ({"Content-Type": "application/json", "Content-Length": len(data)} | headers).items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(data)

    def body(self):
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def handle_any(self):
        content = self.body()
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append(f"{self.command} {path}")
        if path.startswith("/upload/"):
            self.hub.stored[path.rpartition("/")[2]] = content
            return self.answer(200)
        if path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.answer(401, {"error": "Invalid username or password."}, X_Error_Code="RepoNotFound")
        if path == "/api/repos/create":
            asked = json.loads(content)
            repo = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else f"me/{asked['name']}"
            self.hub.repos[repo] = {".gitattributes": b"*.bin filter=lfs\n"}
            self.hub.private |= {repo} if asked.get("private") or asked.get("visibility") == "private" else set()
            return self.answer(200, {"url": f"http://{self.headers['Host']}/{repo}", "name": repo})
        repo = next((name for name in self.hub.repos if f"/{name}/" in f"{path}/" or f"/{name}.git/" in path), None)
        if repo is None:
            return self.answer(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
        files = self.hub.repos[repo]
        if "/tree/" in path:
            return self.answer(200, [entry(name, data) for name, data in files.items()])
        if path.endswith("/preupload/main"):
            asked = json.loads(content)["files"]
            modes = [
                {
                    "path": f["path"],
                    "uploadMode": "lfs" if f["path"].endswith(LFS) else "regular",
                    "shouldIgnore": False,
                }
                for f in asked
            ]
            return self.answer(403 if self.hub.forbidden else 200, {"files": modes})
        if path.endswith("/info/lfs/objects/batch"):
            found = [
                {
                    "oid": o["oid"],
                    "size": o["size"],
                    "actions": {"upload": {"href": f"http://{self.headers['Host']}/upload/{o['oid']}"}},
                }
                for o in json.loads(content)["objects"]
            ]
            return self.answer(200, {"transfer": "basic", "objects": found})
        if path.endswith("/commit/main"):
            if self.hub.full:
                return self.answer(400, {"error": "storage limit reached"})
            for line in map(json.loads, content.decode().splitlines()):
                value = line["value"]
                if line["key"] == "header":
                    self.hub.commits[repo].append(value["summary"])
                elif line["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    files[value["path"]] = self.hub.stored[value["oid"]]
            address = f"http://{self.headers['Host']}/{repo}/commit/1"
            return self.answer(200, {"commitUrl": address, "commitOid": "1" * 40, "pullRequestUrl": None})
        if path == f"/api/models/{repo}" or "/revision/" in path:
            return self.answer(
                200, {"id": repo, "modelId": repo, "sha": "0" * 40, "siblings": [], "private": False, "tags": []}
            )
        return self.answer(404, {"error": f"the stand-in knows no {self.command} {path}"})


for verb in ("GET", "HEAD", "POST", "PUT"):
    setattr(Handler, f"do_{verb}", Handler.handle_any)


def entry(name, data):
    """A file, as the hub lists it."""
    blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    found = {"type": "file", "path": name, "size": len(data), "oid": blob}
    if name.endswith(LFS):
        found["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
    return found
