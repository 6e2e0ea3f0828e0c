"""Names of the official SDK: each is a name here, or says which one takes its place."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys

import pytest

import cycles_lite
from cycles_lite import CyclesClient, CyclesConfig

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

#: A name of the official SDK, and a word of what takes its place.
MOVED = {
    "AsyncCyclesClient": "runcycles",
    "AsyncStreamReservation": "runcycles",
    "CommitStatus": "CommitResponse.status",
    "CyclesContext": "ReservationGuard",
    "CyclesProtocolError": "ApiError",
    "CyclesResponse": "CommitResponse",
    "CyclesTransportError": "TransportError",
    "DryRunResult": "ReservationCreateResponse",
    "EventStatus": "EventCreateResponse.status",
    "ExtendStatus": "ReservationExtendResponse.status",
    "ReleaseStatus": "ReleaseResponse.status",
    "StreamReservation": "CyclesClient.reserve",
    "StreamUsage": "ReservationGuard.spend",
    "get_cycles_context": "current_guard",
    "set_default_config": "set_default_client",
    "stream_reservation": "CyclesClient.reserve",
}


@pytest.mark.parametrize("name", MOVED)
def test_a_name_that_is_another_here_says_which_one_in_both_forms(name):
    message = re.escape(f"cycles_lite has no {name}: use ")
    with pytest.raises(ImportError, match=message) as imported:
        exec(f"from cycles_lite import {name}")
    with pytest.raises(AttributeError, match=message) as asked:
        getattr(cycles_lite, name)
    for caught in (imported, asked):
        assert MOVED[name] in str(caught.value)
    assert imported.value.name == name
    assert not hasattr(cycles_lite, name)
    assert getattr(cycles_lite, name, None) is None
    assert name not in dir(cycles_lite)


@pytest.mark.parametrize(
    "form",
    [
        "from cycles_lite import CyclesClient, get_cycles_context",
        "from cycles_lite import get_cycles_context as context",
        "importlib.import_module('cycles_lite').get_cycles_context",
        "__import__('cycles_lite', fromlist=['get_cycles_context'])",
        "import cycles_lite as c; c.get_cycles_context",
    ],
)
def test_every_form_of_asking_shows_the_replacement(form):
    with pytest.raises((ImportError, AttributeError), match="use current_guard"):
        exec(form, {"importlib": importlib})


def test_a_traceback_ends_with_the_replacement():
    done = subprocess.run(
        [sys.executable, "-c", "from cycles_lite import get_cycles_context"],
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "ImportError: cycles_lite has no get_cycles_context: use current_guard"


def test_other_names_are_as_absent_as_ever():
    with pytest.raises(AttributeError, match=r"^module 'cycles_lite' has no attribute 'nothing'$"):
        _ = cycles_lite.nothing
    with pytest.raises(ImportError, match=r"^cannot import name 'nothing' from 'cycles_lite'"):
        exec("from cycles_lite import nothing")


def test_the_clients_method_for_streams_names_the_replacement():
    with CyclesClient(CyclesConfig(mode="off")) as client:
        with pytest.raises(
            AttributeError, match=r"'CyclesClient' object has no attribute 'stream_reservation': use `res"
        ):
            _ = client.stream_reservation
        with pytest.raises(AttributeError, match=r"^'CyclesClient' object has no attribute 'nothing'$"):
            _ = client.nothing


def replaced(text):
    """The tables of the docs: a name of the official SDK, and what takes its place where it stands first."""
    return dict(reversed(re.findall(r"^``(\w+)[^`]*``  +(\S.*)$", text, re.MULTILINE)))


def test_the_docs_have_the_whole_table():
    with open(os.path.join(ROOT, "docs", "runcycles.rst"), encoding="utf-8") as file:
        table = replaced(file.read())
    assert {name: MOVED[name] in table.get(name, "") for name in MOVED} == dict.fromkeys(MOVED, True)
    from cycles_lite.config import _ELSEWHERE as settings
    from cycles_lite.errors import _ELSEWHERE as attributes

    assert {*settings, *attributes} <= set(table)


# ---- The official SDK itself, where it is installed ----


def test_every_name_of_the_official_sdk_is_one_here_or_says_which_is():
    runcycles = pytest.importorskip("runcycles", reason="runcycles needs Python 3.10 or newer")
    missing = set(runcycles.__all__) - set(cycles_lite.__all__)
    assert missing == set(MOVED) - {"stream_reservation"}


def test_every_setting_of_the_official_sdk_is_one_here_or_says_which_is():
    runcycles = pytest.importorskip("runcycles", reason="runcycles needs Python 3.10 or newer")
    from cycles_lite.config import _ELSEWHERE

    ours = {entry.name for entry in CyclesConfig.layout()}
    assert set(runcycles.CyclesConfig.__dataclass_fields__) - ours == set(_ELSEWHERE)


def test_every_attribute_of_the_official_error_is_one_here_or_says_which_is():
    runcycles = pytest.importorskip("runcycles", reason="runcycles needs Python 3.10 or newer")
    theirs = {name for name in dir(runcycles.CyclesProtocolError("m")) if not name.startswith("_")}
    theirs |= {name for name in dir(runcycles.CyclesTransportError("m")) if not name.startswith("_")}
    error = cycles_lite.ApiError("m")
    for name in theirs:
        if not hasattr(error, name):
            with pytest.raises(AttributeError, match=": use "):
                getattr(error, name)
