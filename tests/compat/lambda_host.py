"""A Lambda environment for tests: the Runtime API of AWS on loopback, and the real `awslambdaric` that polls it."""

from __future__ import annotations

import itertools
import json
import os
import queue
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

#: Seconds to wait at the most for what should come soon.
PATIENCE = 60


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        if not isinstance(sys.exc_info()[1], ConnectionError):  # environments are killed here
            super().handle_error(request, client_address)


class RuntimeApi:
    """Hands out invocations and takes their answers (AWS: Lambda runtime API, version 2018-06-01)."""

    def __init__(self):
        self.numbers = itertools.count(1)
        self.invocations = queue.Queue()
        #: Which invocation each is of, "response" or "error", and what the handler returned or raised.
        self.answers = queue.Queue()
        self.is_ending = threading.Event()
        self._server = _Server(("127.0.0.1", 0), _handler_of(self))
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})

    @property
    def address(self):
        return f"127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *exception):
        self.is_ending.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def _handler_of(api):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            invocation = self._next()
            if invocation is None:
                self.close_connection = True
                return
            number, event, seconds = invocation
            body = json.dumps(event).encode()
            self.send_response(200)
            self.send_header("Lambda-Runtime-Aws-Request-Id", f"request-{number}")
            self.send_header("Lambda-Runtime-Deadline-Ms", str(int((time.time() + seconds) * 1000)))
            self.send_header("Lambda-Runtime-Invoked-Function-Arn", "arn:aws:lambda:eu-west-1:1:function:f")
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def _next(self):
            """The next invocation, for as long as the environment that polls is alive."""
            while not api.is_ending.is_set() and not self._is_gone():
                try:
                    invocation = api.invocations.get(timeout=0.01)
                except queue.Empty:
                    continue
                if not self._is_gone():
                    return invocation
                api.invocations.put(invocation)  # it was killed while we waited
            return None

        def _is_gone(self):
            readable, _, _ = select.select([self.connection], [], [], 0)
            return bool(readable) and self.connection.recv(1, socket.MSG_PEEK) == b""

        def do_POST(self):
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(202)
            self.send_header("Content-Length", "0")
            self.end_headers()
            request, kind = self.path.split("/")[-2:]
            api.answers.put((request, kind, json.loads(body.decode() or "null")))

        def log_message(self, *args):
            pass

    return Handler


class Environment:
    """One Lambda execution environment: a process that serves invocations until it is killed."""

    def __init__(self, api, folder, handler, **variables):
        self._api, self._number = api, 0
        self._variables = {
            **os.environ,
            "AWS_LAMBDA_RUNTIME_API": api.address,
            "AWS_LAMBDA_FUNCTION_NAME": "f",
            "AWS_LAMBDA_FUNCTION_VERSION": "1",
            "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "128",
            "PYTHONPATH": str(folder),
            **variables,
        }
        self._handler = handler
        self.process = None

    def __enter__(self):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "awslambdaric", self._handler],
            env=self._variables,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        return self

    def __exit__(self, *exception):
        self.kill()

    def kill(self):
        self.process.kill()
        self.process.wait()

    def begin(self, event, seconds=30.0):
        """Invoke without waiting for the answer."""
        self._number = next(self._api.numbers)
        self._api.invocations.put((self._number, event, seconds))

    def answer(self):
        """What the handler returned or raised when it was last invoked: ("response", value) or ("error", details). An
        environment that was killed may have left an invocation to this one, or an answer on its way."""
        while True:
            request, kind, value = self._api.answers.get(timeout=PATIENCE)
            if request == f"request-{self._number}":
                return kind, value

    def invoke(self, event, seconds=30.0):
        self.begin(event, seconds)
        return self.answer()

    def freeze(self):
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self):
        self.process.send_signal(signal.SIGCONT)
