"""The middleware around Flask and Django, under gunicorn and waitress, over real sockets."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import subprocess
import sys
import textwrap
import threading

import pytest
from ledgers import spent

from cycles_lite import Amount
from cycles_lite.local import Authority

#: Seconds to wait at the most for what should come soon.
PATIENCE = 60

GUARDED = """
    from cycles_lite import Action, Amount, CyclesClient, CyclesError, Subject, current_guard
    from cycles_lite.wsgi import CyclesMiddleware, http_error

    client = CyclesClient.from_env()

    def guarded(app):
        return CyclesMiddleware(
            app,
            client,
            estimate=lambda environ: Amount.tokens(10**6 if environ["PATH_INFO"] in ("/greedy", "/unpaid") else 100),
            action=Action("http.get", "page"),
            exclude=["/health"],
            on_error=answered,
        )

    def answered(error, environ):
        if environ["PATH_INFO"] == "/unpaid":
            return "402 Payment Required", [("Content-Length", "4")], b"pay!"
"""

FLASK = """
    from flask import Flask, Response

    inner = Flask(__name__)

    @inner.route("/")
    def page():
        current_guard().spend(7)
        return "page"

    @inner.route("/stream")
    def stream():
        def parts():
            for _ in range(5):
                current_guard().spend(2)
                yield "part"
        return Response(parts())

    @inner.route("/fails")
    def fails():
        inner.config["PROPAGATE_EXCEPTIONS"] = True
        raise KeyError("broken")

    @inner.route("/greedy")
    @inner.route("/health")
    def reached():
        return "reached"

    @inner.route("/handled")
    def handled():
        return client.reserve(Amount.tokens(10**6), Action("inner", "call")).decision

    @inner.errorhandler(CyclesError)
    def answer(error):
        status, headers, body = http_error(error)
        return Response(body, status, headers)

    app = guarded(inner)
"""

DJANGO = """
    import django
    from django.conf import settings
    from django.core.handlers.wsgi import WSGIHandler
    from django.http import HttpResponse, StreamingHttpResponse
    from django.urls import path

    def page(request):
        request.environ["cycles.guard"].spend(7)
        return HttpResponse("page")

    def stream(request):
        def parts():
            for _ in range(5):
                current_guard().spend(2)
                yield "part"
        return StreamingHttpResponse(parts())

    def fails(request):
        raise KeyError("broken")

    def reached(request):
        return HttpResponse("reached")

    def handled(request):
        return client.reserve(Amount.tokens(10**6), Action("inner", "call")).decision

    class Answers:
        def __init__(self, get_response):
            self.get_response = get_response

        def __call__(self, request):
            return self.get_response(request)

        def process_exception(self, request, error):
            if not isinstance(error, CyclesError):
                return None
            status, headers, body = http_error(error)
            response = HttpResponse(body, status=int(status.split()[0]))
            for name, value in headers:
                response[name] = value
            return response

    settings.configure(
        ROOT_URLCONF=__name__,
        ALLOWED_HOSTS=["*"],
        SECRET_KEY="x",
        MIDDLEWARE=[__name__ + ".Answers"],
        DEBUG_PROPAGATE_EXCEPTIONS=True,
    )
    django.setup()
    views = {"": page, "stream": stream, "fails": fails, "greedy": reached, "health": reached, "handled": handled}
    urlpatterns = [path(name, view) for name, view in views.items()]
    app = guarded(WSGIHandler())
"""

WAITRESS = """
import socket, sys, waitress
from site_app import app
waitress.serve(app, sockets=[socket.socket(fileno=int(sys.argv[1]))])
"""

#: Each serves the app on a socket that it inherits, whose number comes last.
HOSTS = {
    "gunicorn sync": ["-m", "gunicorn", "--workers", "2", "--worker-class", "sync"],
    "gunicorn gthread": ["-m", "gunicorn", "--workers", "1", "--worker-class", "gthread", "--threads", "4"],
    "waitress": ["-c", WAITRESS],
}


@pytest.fixture
def authority(tmp_path):
    with Authority(f"sqlite:///{tmp_path}/budgets.db") as authority:
        authority.set_budget("tenant:acme", Amount.tokens(100_000))
        yield authority
        assert authority.check() == []


@contextlib.contextmanager
def served(host, framework, authority, folder):
    """The app in a process of its own; gives its port."""
    source = textwrap.dedent(GUARDED) + textwrap.dedent({"flask": FLASK, "django": DJANGO}[framework])
    (folder / "site_app.py").write_text(source, encoding="utf-8")
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen(64)
    port, fd = listening.getsockname()[1], str(listening.fileno())
    command = [sys.executable, *HOSTS[host]]
    command += ["--bind", "fd://" + fd, "site_app:app"] if host.startswith("gunicorn") else [fd]
    environment = {**os.environ, "CYCLES_BASE_URL": authority.url, "CYCLES_TENANT": "acme", "PYTHONPATH": str(folder)}
    process = subprocess.Popen(
        command,
        cwd=str(folder),
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=[listening.fileno()],
    )
    listening.close()
    try:
        _wait_for(port, process)
        yield port
    finally:
        process.terminate()
        process.wait(PATIENCE)


def _wait_for(port, process):
    pause = threading.Event()
    for _ in range(PATIENCE * 20):
        assert process.poll() is None, "the host has ended"
        with contextlib.suppress(OSError):
            if get(port, "/health")[0] == 200:
                return
        pause.wait(0.05)
    pytest.fail("the host does not answer")


def get(port, path):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, dict(response.getheaders()), response.read().decode()
    finally:
        connection.close()


def settled(authority, expected):
    """Waits for a settlement that follows the last byte of an answer."""
    pause = threading.Event()
    for _ in range(PATIENCE * 50):
        if spent(authority) == expected:
            break
        pause.wait(0.02)
    assert spent(authority) == expected


@pytest.mark.parametrize("framework", ["flask", "django"])
@pytest.mark.parametrize("host", sorted(HOSTS))
def test_a_site_is_guarded(host, framework, authority, tmp_path):
    for module in [host.split()[0], framework]:
        pytest.importorskip(module)
    with served(host, framework, authority, tmp_path) as port:
        assert get(port, "/health")[2] == "reached"
        assert spent(authority) == (0, 0)
        assert get(port, "/")[2] == "page"
        settled(authority, (7, 0))
        assert get(port, "/stream")[2] == "part" * 5
        settled(authority, (17, 0))
        with contextlib.suppress(OSError, http.client.HTTPException):  # hosts differ in what they make of it
            assert get(port, "/fails")[0] == 500
        settled(authority, (17, 0))
        status, headers, body = get(port, "/greedy")
        assert (status, headers["Retry-After"]) == (429, "60")
        assert json.loads(body)["error"] == "BUDGET_EXCEEDED"
        status, _, body = get(port, "/unpaid")
        assert (status, body) == (402, "pay!")
        status, headers, body = get(port, "/handled")
        assert (status, json.loads(body)["error"]) == (429, "BUDGET_EXCEEDED")
        settled(authority, (117, 0))  # the handler that answered did its own work, for the estimate
        threads = [threading.Thread(target=get, args=(port, "/")) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        settled(authority, (117 + 8 * 7, 0))
