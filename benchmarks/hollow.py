"""The web server of `cycles-lite serve` with nothing behind it: canned answers."""

from __future__ import annotations

import json
import logging
import threading
from typing import Any

import waitress

from .canned import Book, end_with_parent

_book = Book(ttl_ms=60_000)


def _application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    environ["wsgi.input"].read()
    body = json.dumps(_book.answer(environ["PATH_INFO"]), separators=(",", ":")).encode("ascii")
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]


if __name__ == "__main__":
    server = waitress.create_server(_application, host="127.0.0.1", port=0, threads=8)
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)  # as `cycles-lite serve` does
    print(f"listening on http://127.0.0.1:{server.effective_port}", flush=True)
    threading.Thread(target=end_with_parent, daemon=True).start()
    server.run()
