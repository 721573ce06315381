"""A small imitation of the two hubs that data sets come from, on this machine, for tests without a network."""

import contextlib
import hashlib
import http.server
import json
import threading
import urllib.parse

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """What the imitation holds, and what it was asked.

    Attributes:
        files: {path: bytes} of the one repository `repo`; files in `large` have a SHA-256 as LFS files do.
        cut_after: bytes after which the connection of the next download breaks; None: never.
        served: {path: bytes} that are sent instead of the announced ones.
        status: {repository: HTTP status} instead of an answer; "gated" for a gated one.
        requests: addresses that were asked for; fetched: [(path of a file, first byte)];
            credentials: what came with them.
    """

    def __init__(self, repo, files):
        self.repo, self.files, self.large = repo, dict(files), set(files)
        self.cut_after, self.served, self.status = None, {}, {}
        self.requests, self.fetched, self.credentials = [], [], set()
        self.licence = "cc-by-nc-4.0"
        self.address = None

    def siblings(self):
        """The files as Hugging Face lists them."""
        for path, data in self.files.items():
            sha1 = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            entry = {"rfilename": path, "size": len(data), "blobId": sha1}
            if path in self.large:
                entry["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
            yield entry


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        hub, url = self.server.hub, urllib.parse.urlsplit(self.path)
        hub.requests.append(self.path)
        hub.credentials |= {self.headers[name] for name in ("Authorization", "Cookie") if self.headers[name]}
        parts, query = url.path.strip("/").split("/"), dict(urllib.parse.parse_qsl(url.query))
        if parts[:2] == ["api", "datasets"]:
            self.repository("/".join(parts[2:4]), parts[5] if len(parts) > 5 else "main")
        elif parts[0] == "datasets" and parts[3] == "resolve":
            self.file("/".join(parts[1:3]), "/".join(parts[5:]))
        elif parts[:3] == ["api", "v1", "datasets"] and parts[-1] == "tree":
            self.tree("/".join(parts[3:5]))
        elif parts[:3] == ["api", "v1", "datasets"] and "FilePath" in query:
            self.file("/".join(parts[3:5]), query["FilePath"])
        else:
            self.answer(404, {"error": "not found"})

    do_HEAD = do_GET

    def answer(self, status, value, **headers):
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Length": len(data), "Content-Type": "application/json", **headers}.items():
            self.send_header(name.replace("_", "-"), str(text))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def refused(self, repo):
        """Answers for a repository that is not shown; False if it is."""
        status = self.server.hub.status.get(repo, 200 if repo == self.server.hub.repo else 404)
        if status == "gated":
            self.answer(401, {"error": "restricted"}, X_Error_Code="GatedRepo", X_Error_Message="restricted")
        elif status == 404:
            message = {"error": "Repository not found", "Code": 404, "Success": False, "Message": "not found"}
            self.answer(404, message, X_Error_Code="RepoNotFound")
        elif status == "page":
            self.answer(200, b"<html>log in to this network</html>")
        elif status != 200:
            self.answer(status, {"error": "no", "Code": status, "Success": False, "Message": "no"})
        return status != 200

    def repository(self, repo, revision):
        hub = self.server.hub
        if self.refused(repo):
            return
        if revision not in ("main", COMMIT):
            self.answer(404, {"error": "Invalid rev id"}, X_Error_Code="RevisionNotFound")
            return
        info = {"id": repo, "sha": COMMIT, "private": False, "gated": False, "siblings": list(hub.siblings())}
        self.answer(200, info | {"downloads": 0, "likes": 0, "tags": [], "cardData": {"license": hub.licence}})

    def tree(self, repo):
        hub = self.server.hub
        if self.refused(repo):
            return
        files = [
            {"Path": p, "Name": p, "Type": "blob", "Size": len(d), "Sha256": hashlib.sha256(d).hexdigest()}
            for p, d in hub.files.items()
        ]
        self.answer(200, {"Code": 200, "Success": True, "Data": {"Files": files, "TotalCount": len(files)}})

    def file(self, repo, path):
        hub = self.server.hub
        if self.refused(repo):
            return
        if path not in hub.files:
            self.answer(404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound")
            return
        data = hub.served.get(path, hub.files[path])
        digest = hashlib.sha256(hub.files[path]).hexdigest()
        start = int(self.headers["Range"].removeprefix("bytes=").split("-")[0]) if self.headers.get("Range") else 0
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", f'"{digest}"')
        self.send_header("X-Linked-Etag", f'"{digest}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command == "HEAD":
            return
        hub.fetched.append((path, start))
        if hub.cut_after is not None:
            self.wfile.write(data[start : start + hub.cut_after])
            hub.cut_after = None
            self.close_connection = True
            return
        self.wfile.write(data[start:])


@contextlib.contextmanager
def serving(hub):
    """A context in which `hub` answers at hub.address."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.hub, hub.address = hub, f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
