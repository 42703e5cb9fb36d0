"""A local HTTP server of a folder that answers ranges of bytes, as object storage does."""

import contextlib
import functools
import http.server
import io
import pathlib
import re
import threading
import time


class Ranges(http.server.SimpleHTTPRequestHandler):
    """Adds ranges to the standard server, which has none, and a delay before each answer."""

    protocol_version = "HTTP/1.1"

    def send_head(self):
        time.sleep(self.server.delay)
        path = pathlib.Path(self.translate_path(self.path))
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if asked is None or not path.is_file():
            return super().send_head()
        size, (first, last) = path.stat().st_size, asked.groups()
        start = int(first) if first else max(0, size - int(last))
        stop = min(int(last) + 1, size) if first and last else size
        with open(path, "rb") as file:
            file.seek(start)
            part = file.read(stop - start)
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {start}-{start + len(part) - 1}/{size}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.server.asked.append((self.path, len(part)))
        return io.BytesIO(part)

    def log_message(self, *arguments):
        pass


@contextlib.contextmanager
def serving(folder: pathlib.Path, delay: float = 0.0):
    """The address of the folder, and the list to which (path, bytes) of every range is added; delay in seconds."""
    handler = functools.partial(Ranges, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.asked, server.delay, server.daemon_threads = [], delay, True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", server.asked
    finally:
        server.shutdown()
        server.server_close()
