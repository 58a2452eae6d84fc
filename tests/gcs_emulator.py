"""A bucket of Google Cloud Storage in memory, behind the JSON API that its clients speak.

It answers what gcsfs, TensorStore and array_record ask for, and 501 for anything else, so that a
test fails when a client asks for more. It counts the bytes that it served, and can refuse.
"""

import collections
import contextlib
import http.server
import itertools
import json
import re
import sys
import threading
import time
import urllib.parse

# What makes each client talk to another server than Google's, without credentials.
VARIABLES = ("STORAGE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL", "CLOUD_STORAGE_EMULATOR_ENDPOINT")


class Emulator:
    """Buckets by name, on a port of this machine.

    Attributes:
      objects: {bucket: {name: (generation, content)}}.
      served: bytes of content that were sent, by "bucket/name".
      read_only: buckets in which nothing may be written.
      forbidden: buckets of which nothing may be read or written.
      hidden: buckets whose own properties may not be read.
    """

    def __init__(self, *buckets: str):
        self.objects: dict[str, dict[str, tuple[int, bytes]]] = {name: {} for name in buckets}
        self.served: collections.Counter[str] = collections.Counter()
        self.requests: collections.Counter[str] = collections.Counter()
        self.read_only: set[str] = set()
        self.forbidden: set[str] = set()
        self.hidden: set[str] = set()
        self.lock = threading.RLock()
        self.uploads: dict[str, list] = {}
        # As of Google's: a number that grows with each write.
        self.generations = itertools.count(time.time_ns() // 1000)
        self.server = _Server(("127.0.0.1", 0), _Handler)
        self.server.emulator = self
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def environment(self) -> dict[str, str]:
        """The variables for a process whose clients are to use this server."""
        others = {"GOOGLE_CLOUD_PROJECT": "none", "NO_GCE_CHECK": "true"}
        return dict.fromkeys(VARIABLES, self.url) | others

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def write(self, url: str, content: bytes) -> None:
        """Replaces an object, as another program would."""
        bucket, _, name = url.removeprefix("gs://").partition("/")
        with self.lock:
            self.objects[bucket][name] = (next(self.generations), content)

    def read(self, url: str) -> bytes:
        bucket, _, name = url.removeprefix("gs://").partition("/")
        return self.objects[bucket][name][1]

    def upload(self, folder, url: str) -> None:
        """Writes the files below a local directory."""
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                self.write(f"{url}/{file.relative_to(folder).as_posix()}", file.read_bytes())

    def below(self, url: str) -> list[str]:
        """URLs of the objects whose URL begins with another."""
        bucket, _, prefix = url.removeprefix("gs://").partition("/")
        names = sorted(self.objects[bucket])
        return [f"gs://{bucket}/{name}" for name in names if name.startswith(prefix)]


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        """Says nothing of a client that left: readers of a range do so when they have enough."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _Refused(Exception):
    def __init__(self, status: int, message: str = ""):
        super().__init__(message)
        self.status = status


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_):
        pass

    def _answer(self):
        self.emulator: Emulator = self.server.emulator
        url = urllib.parse.urlsplit(self.path)
        self.query = {k: v[0] for k, v in urllib.parse.parse_qs(url.query, True).items()}
        self.body = self._body()
        try:
            for pattern, answer in _ROUTES:
                match = re.fullmatch(pattern, f"{self.command} {url.path}")
                if match:
                    groups = {k: urllib.parse.unquote(v) for k, v in match.groupdict().items()}
                    self.emulator.requests[f"{self.command} {answer.__name__}"] += 1
                    self._check(groups["bucket"], writes=self.command != "GET")
                    answer(self, **groups)
                    return
            raise _Refused(501, f"the emulator does not know {self.command} {self.path}")
        except _Refused as error:
            what = {"error": {"code": error.status, "message": str(error)}}
            self._send(error.status, b"" if error.status == 304 else json.dumps(what).encode())

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = _answer

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _send(self, status: int, content: bytes = b"", **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            self.wfile.write(content)

    def _json(self, value: dict):
        self._send(200, json.dumps(value).encode(), Content_Type="application/json")

    def _check(self, bucket: str, *, writes: bool):
        if bucket not in self.emulator.objects:
            raise _Refused(404, "The specified bucket does not exist.")
        if bucket in self.emulator.forbidden:
            raise _Refused(403, "The caller does not have storage.objects access.")
        if writes and bucket in self.emulator.read_only:
            raise _Refused(403, "The caller does not have storage.objects.create access.")

    def _found(self, bucket: str, name: str) -> tuple[int, bytes]:
        found = self.emulator.objects[bucket].get(name)
        self._compare(found)
        if found is None or self.query.get("generation") not in (None, str(found[0])):
            raise _Refused(404, f"No such object: {bucket}/{name}")
        return found

    def _compare(self, found: tuple[int, bytes] | None):
        """The preconditions: generation 0 is that of an object that is not there."""
        generation = str(found[0]) if found else "0"
        if self.query.get("ifGenerationMatch", generation) != generation:
            raise _Refused(412, "At least one of the pre-conditions you specified did not hold.")
        if self.query.get("ifGenerationNotMatch") == generation:
            raise _Refused(304)

    def _store(self, bucket: str, name: str, content: bytes):
        with self.emulator.lock:
            self._compare(self.emulator.objects[bucket].get(name))
            self.emulator.objects[bucket][name] = (next(self.emulator.generations), content)
            self._json(self._resource(bucket, name))

    def _resource(self, bucket: str, name: str) -> dict:
        generation, content = self.emulator.objects[bucket][name]
        quoted = urllib.parse.quote(name, safe="")
        link = f"{self.emulator.url}/download/storage/v1/b/{bucket}/o/{quoted}?alt=media"
        return {
            "kind": "storage#object", "bucket": bucket, "name": name, "id": f"{bucket}/{name}",
            "generation": str(generation), "metageneration": "1", "size": str(len(content)),
            "mediaLink": link, "timeCreated": "2026-01-01T00:00:00.000Z", "storageClass": "STANDARD",
            "updated": "2026-01-01T00:00:00.000Z", "contentType": "application/octet-stream",
        }  # fmt: skip

    def bucket(self, bucket: str):
        if bucket in self.emulator.hidden:
            raise _Refused(403, "The caller does not have storage.buckets.get access.")
        self._json({"kind": "storage#bucket", "id": bucket, "name": bucket, "location": "US"})

    def list(self, bucket: str):
        prefix, delimiter = self.query.get("prefix", ""), self.query.get("delimiter", "")
        begin, end = self.query.get("startOffset", ""), self.query.get("endOffset", "")
        names, prefixes = [], {}
        with self.emulator.lock:
            for name in sorted(self.emulator.objects[bucket]):
                if not name.startswith(prefix) or name < begin or (end and name >= end):
                    continue
                head, found, _ = name.removeprefix(prefix).partition(delimiter or "\0")
                if found and delimiter:
                    prefixes[prefix + head + delimiter] = None
                else:
                    names.append(name)
            start = int(self.query.get("pageToken", 0))
            stop = start + int(self.query.get("maxResults", 1000))
            answer = {"kind": "storage#objects", "prefixes": [] if start else [*prefixes]}
            answer["items"] = [self._resource(bucket, name) for name in names[start:stop]]
        if stop < len(names):
            answer["nextPageToken"] = str(stop)
        self._json(answer)

    def get(self, bucket: str, name: str):
        generation, content = self._found(bucket, name)
        if self.query.get("alt") != "media":
            return self._json(self._resource(bucket, name))
        headers = {"X_Goog_Generation": generation, "X_Goog_Stored_Content_Length": len(content)}
        status, size = 200, len(content)
        if asked := re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", "")):
            first = int(asked[1]) if asked[1] else max(0, size - int(asked[2]))
            last = min(int(asked[2]), size - 1) if asked[1] and asked[2] else size - 1
            if first >= size:
                raise _Refused(416, "The requested range cannot be satisfied.")
            status, content = 206, content[first : last + 1]
            headers["Content_Range"] = f"bytes {first}-{last}/{size}"
        self.emulator.served[f"{bucket}/{name}"] += len(content)
        self._send(status, content, **headers)

    def delete(self, bucket: str, name: str):
        with self.emulator.lock:
            self._found(bucket, name)
            del self.emulator.objects[bucket][name]
        self._send(204)

    def copy(self, bucket: str, name: str, target: str, new_name: str):
        _, content = self._found(bucket, name)
        self.emulator.write(f"gs://{target}/{new_name}", content)
        size = str(len(content))
        done = {"kind": "storage#rewriteResponse", "totalBytesRewritten": size, "objectSize": size}
        self._json({**done, "done": True, "resource": self._resource(target, new_name)})

    def move(self, bucket: str, name: str, new_name: str):
        with self.emulator.lock:
            _, content = self._found(bucket, name)
            self.emulator.write(f"gs://{bucket}/{new_name}", content)
            del self.emulator.objects[bucket][name]
            self._json(self._resource(bucket, new_name))

    def insert(self, bucket: str):
        kind = self.query.get("uploadType")
        if "upload_id" in self.query:
            self.resume(bucket)
        elif kind == "media":
            self._store(bucket, self.query["name"], self.body)
        elif kind == "multipart":
            boundary = re.search(r"boundary=['\"]?([^'\";]+)", self.headers["Content-Type"])[1]
            about, content = self.body.split(f"--{boundary}".encode())[1:3]
            about = json.loads(about.split(b"\r\n\r\n" if b"\r\n\r\n" in about else b"\n\n", 1)[1])
            separator = b"\r\n\r\n" if b"\r\n\r\n" in content else b"\n\n"
            content = content.split(separator, 1)[1]
            line = b"\r\n" if content.endswith(b"\r\n") else b"\n"
            self._store(bucket, about["name"], content.removesuffix(line))
        elif kind == "resumable":
            name = self.query.get("name") or json.loads(self.body)["name"]
            number = str(len(self.emulator.uploads))
            self.emulator.uploads[number] = [bucket, name, b""]
            where = f"{self.emulator.url}/upload/storage/v1/b/{bucket}/o?upload_id={number}"
            self._send(200, b"{}", Location=where, X_GUploader_UploadID=number)
        else:
            raise _Refused(501, f"the emulator does not know uploadType={kind}")

    def resume(self, bucket: str):
        upload = self.emulator.uploads[self.query["upload_id"]]
        upload[2] += self.body
        total = self.headers.get("Content-Range", "").rpartition("/")[2]
        if total in ("", "*") or int(total) > len(upload[2]):
            self._send(308, Range=f"bytes=0-{len(upload[2]) - 1}")
        else:
            self._store(upload[0], upload[1], upload[2])


_B = r"/(?:download/)?(?:storage/v1)?/?b/(?P<bucket>[^/]+)"
_ROUTES = (
    (rf"GET {_B}", _Handler.bucket),
    (rf"GET {_B}/o/?", _Handler.list),
    (rf"POST {_B}/o/(?P<name>.+)/(?:rewriteTo|copyTo)/b/(?P<target>[^/]+)/o/(?P<new_name>.+)", _Handler.copy),
    (rf"POST {_B}/o/(?P<name>.+)/moveTo/o/(?P<new_name>.+)", _Handler.move),
    (rf"GET {_B}/o/(?P<name>.+)", _Handler.get),
    (rf"DELETE {_B}/o/(?P<name>.+)", _Handler.delete),
    (r"POST /(?:resumable/)?upload/storage/v1/b/(?P<bucket>[^/]+)/o", _Handler.insert),
    (r"PUT /(?:resumable/)?upload/storage/v1/b/(?P<bucket>[^/]+)/o", _Handler.resume),
)  # fmt: skip
