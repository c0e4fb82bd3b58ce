"""An object store over HTTP, as strict as one can be: the part of the GCS JSON API that knows whole
objects only.

It puts (in one request, or in a resumable session that becomes visible with its last byte), gets
with ranges, lists with prefix, delimiter and pages, deletes, and honours generation preconditions.
Whatever else is asked of it (compose and so append, rewrite and copy and so rename, patch, holds
and retention and so lock) is refused with 501 and recorded in `violations`. `fail` makes it
misbehave.
"""

from __future__ import annotations

import dataclasses
import json
import re
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

PAGE = 7
"""Entries of a page of a listing: few, so that pages are turned."""


@dataclasses.dataclass(frozen=True)
class Object:
    """Content, and the number that every put makes new."""

    content: bytes
    generation: int


class Refused(Exception):
    """An answer that is no success: status and text."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class FakeStore:
    """A store with one bucket; a context manager that serves it.

    objects: what is in it, by name.
    puts: names in the order in which they became visible; violations: what was refused as foreign
    to an object store; fail: of a method (GET, PUT, DELETE, LIST) and an object's name, the HTTP
    status to refuse it with, or 0.
    """

    def __init__(self, bucket: str = "bucket") -> None:
        self.bucket = bucket
        self.objects: dict[str, Object] = {}
        self.puts: list[str] = []
        self.violations: list[str] = []
        self.fail: Callable[[str, str], int] = lambda method, name: 0
        self.lock = threading.RLock()
        self.sessions: dict[str, tuple[str, dict[str, list[str]], bytearray]] = {}
        self._generation = 1000
        handler = type("Handler", (_Handler,), {"store": self})
        self._server = _Server(("127.0.0.1", 0), handler)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def environment(self) -> dict[str, str]:
        """Variables that lead every client of a process here, with no search for credentials."""
        return {
            "STORAGE_EMULATOR_HOST": self.address,  # gcsfs and google-cloud-storage
            "TENSORSTORE_GCS_HTTP_URL": self.address,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "token",  # tensorstore
            "FSSPEC_GCS_TOKEN": "anon",
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # asks for the bucket's kind by gRPC
        }

    def __enter__(self) -> FakeStore:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def names(self, prefix: str = "") -> list[str]:
        with self.lock:
            return sorted(name for name in self.objects if name.startswith(prefix))

    def put(self, name: str, content: bytes, query: dict[str, list[str]] | None = None) -> Object:
        """Makes the whole content visible at once, unless a precondition does not hold."""
        with self.lock:
            self.require(name, query or {})
            self._generation += 1
            made = self.objects[name] = Object(content, self._generation)
            self.puts.append(name)
            return made

    def require(self, name: str, query: dict[str, list[str]]) -> None:
        there = self.objects[name].generation if name in self.objects else 0
        if "ifGenerationMatch" in query and int(query["ifGenerationMatch"][0]) != there:
            raise Refused(412, f"{name}: generation is {there}")
        if "ifGenerationNotMatch" in query and int(query["ifGenerationNotMatch"][0]) == there:
            raise Refused(304, f"{name}: generation is {there}")

    def get(self, name: str, query: dict[str, list[str]]) -> Object:
        with self.lock:
            self.require(name, query)
            if name not in self.objects:
                raise Refused(404, f"{name}: no such object")
            return self.objects[name]

    def delete(self, name: str, query: dict[str, list[str]]) -> None:
        with self.lock:
            self.get(name, query)
            del self.objects[name]

    def describe(self, name: str) -> dict[str, str]:
        there = self.objects[name]
        return {
            "kind": "storage#object",
            "bucket": self.bucket,
            "name": name,
            "generation": str(there.generation),
            "metageneration": "1",
            "size": str(len(there.content)),
            "timeCreated": "2026-01-01T00:00:00.000Z",
            "updated": "2026-01-01T00:00:00.000Z",
        }

    def listing(self, query: dict[str, list[str]]) -> dict[str, Any]:
        """A page of names and of what the delimiter cuts off, in one order, as GCS gives it."""
        given = {key: values[0] for key, values in query.items()}
        prefix, delimiter = given.get("prefix", ""), given.get("delimiter", "")
        with self.lock:
            entries: dict[str, bool] = {}
            for name in self.names(prefix):
                rest = name[len(prefix) :]
                cut = rest.find(delimiter) if delimiter else -1
                entry = name if cut < 0 else prefix + rest[: cut + len(delimiter)]
                if given.get("startOffset", "") <= entry < given.get("endOffset", "\U0010ffff"):
                    entries[entry] = cut < 0
            kept = [entry for entry in entries if entry > unquote(given.get("pageToken", ""))]
            page = kept[: min(PAGE, int(given.get("maxResults", PAGE)))]
            answer: dict[str, Any] = {
                "kind": "storage#objects",
                "items": [self.describe(entry) for entry in page if entries[entry]],
                "prefixes": [entry for entry in page if not entries[entry]],
            }
        if len(kept) > len(page):
            answer["nextPageToken"] = page[-1]
        return answer


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        # gcsfs asks in two ways at once, and hangs up on the slower.
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    """The routes. Everything not listed here is a violation."""

    store: FakeStore
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # an answer in one packet: without it each takes 40 ms more
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _serve(self) -> None:
        self._body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path, query = urlsplit(self.path).path, parse_qs(urlsplit(self.path).query)
        objects = rf"/storage/v1/b/{self.store.bucket}/o"
        try:
            if self.headers.get("Transfer-Encoding"):
                raise Refused(411, "a put says its length")
            if self.command == "GET" and path == f"/storage/v1/b/{self.store.bucket}":
                self._json({"kind": "storage#bucket", "name": self.store.bucket})
            elif self.command == "GET" and path == objects:
                self._maybe_fail("LIST", query.get("prefix", [""])[0])
                self._json(self.store.listing(query))
            elif self.command in ("POST", "PUT") and path == f"/upload{objects}":
                self._upload(query)
            elif match := re.fullmatch(rf"(?:/download)?{objects}/([^/]+)", path):
                self._object(unquote(match[1]), query)
            else:
                self.store.violations.append(f"{self.command} {self.path}")
                raise Refused(501, f"this store cannot {self.command} {path}")
        except Refused as refused:
            error = {"error": {"code": refused.status, "message": str(refused)}}
            body = b"" if refused.status == 304 else json.dumps(error).encode()
            self._answer(refused.status, body)

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = _serve

    def _object(self, name: str, query: dict[str, list[str]]) -> None:
        if self.command == "DELETE":
            self._maybe_fail("DELETE", name)
            self.store.delete(name, query)
            self._answer(204, b"")
        elif self.command == "GET":
            self._maybe_fail("GET", name)
            there = self.store.get(name, query)
            if query.get("alt") == ["media"]:
                self._content(there)
            else:
                self._json(self.store.describe(name))
        else:
            self.store.violations.append(f"{self.command} {self.path}")
            raise Refused(501, f"this store cannot {self.command} an object")

    def _content(self, there: Object) -> None:
        headers = {"x-goog-generation": str(there.generation)}
        match = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if not match:
            self._answer(200, there.content, headers)
            return
        size = len(there.content)
        first = int(match[1]) if match[1] else max(0, size - int(match[2]))
        last = min(int(match[2]), size - 1) if match[1] and match[2] else size - 1
        if first >= size:
            raise Refused(416, f"range {match[0]} of {size} bytes")
        headers["Content-Range"] = f"bytes {first}-{last}/{size}"
        self._answer(206, there.content[first : last + 1], headers)

    def _upload(self, query: dict[str, list[str]]) -> None:
        kind = query.get("uploadType", [""])[0]
        if kind == "media":
            self._put(query["name"][0], self._body, query)
        elif kind == "multipart":
            boundary = (
                self.headers.get_param("boundary")
                or re.search("boundary=['\"]?([^'\"]+)", self.headers["Content-Type"])[1]
            )
            _, described, content, _ = self._body.split(b"--" + str(boundary).encode())
            name = json.loads(re.split(rb"\r?\n\r?\n", described, maxsplit=1)[1])["name"]
            content = re.split(rb"\r?\n\r?\n", content, maxsplit=1)[1]
            self._put(name, re.sub(rb"\r?\n\Z", b"", content), query)
        elif kind == "resumable" and "upload_id" not in query:
            session = str(len(self.store.sessions))
            name = (query.get("name") or [json.loads(self._body)["name"]])[0]
            self.store.sessions[session] = (name, query, bytearray())
            where = f"{self.store.address}{self.path}&upload_id={session}"
            self._answer(200, b"{}", {"Location": where})
        elif kind == "resumable":
            name, opened, received = self.store.sessions[query["upload_id"][0]]
            self._maybe_fail("PUT", name)
            received += self._body
            if self.headers["Content-Range"].endswith("/*"):
                self._answer(308, b"", {"Range": f"bytes=0-{len(received) - 1}"})
            else:
                self._put(name, bytes(received), opened)
        else:
            raise Refused(400, f"uploadType {kind!r}")

    def _put(self, name: str, content: bytes, query: dict[str, list[str]]) -> None:
        self._maybe_fail("PUT", name)
        self.store.put(name, content, query)
        self._json(self.store.describe(name))

    def _maybe_fail(self, method: str, name: str) -> None:
        status = self.store.fail(method, name)
        if status:
            raise Refused(status, f"{method} {name}: told to fail")

    def _json(self, record: dict[str, Any]) -> None:
        self._answer(200, json.dumps(record).encode())

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(body)
