"""A stand-in for what spans are sent to: an HTTP server that keeps what it was told."""

import contextlib
import http.server
import threading
from typing import NamedTuple


class Told(NamedTuple):
    """A request that came in."""

    path: str
    content_type: str
    body: bytes


@contextlib.contextmanager
def collecting(status: int = 200):
    """Serve on a free port of the loopback; give its URL and the list of what it is told."""
    told: list[Told] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            told.append(Told(self.path, self.headers["content-type"], body))
            self.send_response(status)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_):
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", told
        finally:
            server.shutdown()
            thread.join()
