"""How often one call goes from file to file: `python -m benchmarks.moves`.

A reader follows a call through the files of the package. Each function of the package that is called stands in one
file; where the next one that is called stands in another, that is a move. Returns are not counted: a function that
calls two of its neighbours in turn has not sent its reader away. Functions of other libraries are left out.
"""

from __future__ import annotations

import os
import sys
import tempfile
from typing import Any, Callable, NamedTuple

import cycles_lite
from cycles_lite import Action, Amount, CyclesClient
from cycles_lite.local import Authority

from . import work
from .canned import canned

PACKAGE = os.path.dirname(os.path.abspath(cycles_lite.__file__)) + os.sep


class Moves(NamedTuple):
    """What one call went through."""

    calls: int
    moves: int
    #: Moves into a file that was left before.
    returns: int
    #: The files in the order of their first call.
    files: list[str]

    def __str__(self) -> str:
        return f"{self.calls} calls, {self.moves} moves between {len(self.files)} files, {self.returns} of them back"


def moves_of(call: Callable[[], Any]) -> Moves:
    """Trace a call in this thread."""
    path: list[str] = []

    def note(frame: Any, event: str, _: Any) -> None:
        name = frame.f_code.co_filename
        if event == "call" and name.startswith(PACKAGE):
            path.append(name[len(PACKAGE) :])

    outer = sys.getprofile()
    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(outer)
    entered = [file for file, before in zip(path, ["", *path]) if file != before]
    files = list(dict.fromkeys(entered))
    return Moves(len(path), len(entered) - 1, len(entered) - len(files), files)


def commit_over_http() -> Moves:
    """`guard.commit` with the journal on, on a connection that is open."""
    with tempfile.TemporaryDirectory() as home, canned() as url:
        with CyclesClient(work.config(url, journal_dir=home)) as client:
            work.guarded(client)()
            with client.reserve(Amount.tokens(1000), Action("llm.completion", "gpt-4o")) as guard:
                return moves_of(lambda: guard.commit(Amount.tokens(742)))


def reserve_in_process() -> Moves:
    """`client.create_reservation` on a `sqlite:` URL."""
    with tempfile.TemporaryDirectory() as home:
        url = "sqlite:///" + os.path.join(home, "budgets.db").lstrip("/")
        with Authority(url) as authority:
            authority.set_budget("tenant:acme", Amount.tokens(10**9))
        with CyclesClient(work.config(url)) as client:
            work.plain(client)()
            request = work.request()
            return moves_of(lambda: client.create_reservation(request))


def post_to_the_authority() -> Moves:
    """`POST /v1/reservations` as a WSGI server hands it on."""
    import io
    import json

    from cycles_lite.local.application import Application

    with tempfile.TemporaryDirectory() as home:
        with Authority("sqlite:///" + os.path.join(home, "budgets.db").lstrip("/")) as authority:
            authority.set_budget("tenant:acme", Amount.tokens(10**9))
            key = authority.create_key("acme").key_secret
            application = Application(authority)

            def new_body() -> bytes:
                body = {**work.request().to_json(), "subject": {"tenant": "acme", "agent": "bot"}}
                return json.dumps(body).encode()

            def post(text: bytes) -> None:
                environ = {
                    "REQUEST_METHOD": "POST",
                    "PATH_INFO": "/v1/reservations",
                    "QUERY_STRING": "",
                    "CONTENT_TYPE": "application/json",
                    "CONTENT_LENGTH": str(len(text)),
                    "HTTP_X_CYCLES_API_KEY": key,
                    "wsgi.input": io.BytesIO(text),
                }
                statuses: list[str] = []
                b"".join(application(environ, lambda status, headers: statuses.append(status)))
                if not statuses[0].startswith("200"):
                    raise AssertionError(statuses)

            post(new_body())
            text = new_body()
            return moves_of(lambda: post(text))


#: What is followed, and the most moves that it should take.
FOLLOWED: dict[str, tuple[Callable[[], Moves], int]] = {
    "guard.commit over HTTP": (commit_over_http, 34),
    "a POST to the authority": (post_to_the_authority, 45),
    "a reserve in process": (reserve_in_process, 45),
}


def main() -> None:
    for name, (follow, most) in FOLLOWED.items():
        print(f"{name}: {follow()} (at most {most})")


if __name__ == "__main__":
    main()
