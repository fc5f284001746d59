"""A local web server that behaves as well or as badly as it is told."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class WebServer:
    """Serve `content` (path -> bytes) and remember what was asked: (path, Range header)."""

    def __init__(self) -> None:
        self.content: dict[str, bytes] = {}
        self.asked: list[tuple[str, str | None]] = []
        self.drops: list[int] = []  # the next answers break off after so many bytes
        self.supports_range = True
        self.range_error = 0  # how far from the byte asked for an answer starts
        self.states_length = True
        self.linked_etag: str | None = None  # redirect as the hub does, with this checksum
        handler = type("Handler", (_Handler,), {"state": self})
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,))
        self.base = f"http://127.0.0.1:{self._http.server_port}"

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()


class _Handler(BaseHTTPRequestHandler):
    state: WebServer

    def do_GET(self) -> None:
        state, wanted = self.state, self.headers["Range"]
        state.asked.append((self.path, wanted))
        if state.linked_etag and not self.path.startswith("/store"):
            return self._answer(302, {"Location": f"/store{self.path}", "X-Linked-ETag": state.linked_etag})
        content = state.content.get(self.path.removeprefix("/store"))
        if content is None:
            return self._answer(404, {})
        if not wanted or not state.supports_range:
            return self._answer(200, {}, content)
        start, total = int(wanted[len("bytes=") : -1]), len(content)
        if start >= total:
            return self._answer(416, {"Content-Range": f"bytes */{total}"})
        start += state.range_error
        return self._answer(206, {"Content-Range": f"bytes {start}-{total - 1}/{total}"}, content[start:])

    def _answer(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        self.send_response(status)
        if self.state.states_length or not body:
            headers = {**headers, "Content-Length": str(len(body))}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        drops = self.state.drops
        self.wfile.write(body[: drops.pop(0)] if drops and body else body)

    def log_message(self, format: str, *args: object) -> None:
        pass
