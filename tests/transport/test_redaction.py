"""The key is blotted out however it is written, and nothing else is."""

from __future__ import annotations

import json
from urllib.parse import quote

import pytest
from hypothesis import given, strategies as st
from peers import KEY, ends_within

from cycles_lite.protocol import wire
from cycles_lite.protocol.wire import Answer, Call
from cycles_lite.transport.redaction import redacted, redacted_text, tells_key

VISIBLE = st.characters(min_codepoint=0x21, max_codepoint=0x7E)


def call_with(key):
    headers = {} if key is None else {wire.API_KEY_HEADER: key}
    return Call(wire.CREATE_RESERVATION, None, {}, None, headers, None, 1.0, 1.0)


def spellings(key):
    return [
        key,
        json.dumps(key)[1:-1],
        json.dumps(key)[1:-1].replace("/", "\\/"),
        "".join(f"\\u{ord(c):04x}" if c in "<>&='\"" else c for c in json.dumps(key)[1:-1]),
        repr(key)[1:-1],
        repr(key.encode())[2:-1],
        repr(json.dumps(key))[2:-2],
        quote(key, safe=""),
        quote(key, safe="").lower() if key == key.lower() else key,
    ]


@given(st.text(VISIBLE, min_size=8, max_size=40))
def test_every_spelling_of_a_key_is_found(key):
    call = call_with(key)
    for spelt in spellings(key):
        assert spelt not in redacted_text(call, f"at the start {spelt} and at the end {spelt}").replace("***", "")
        answer = redacted(call, Answer(403, {"x-request-id": spelt, "date": "today"}, b"[" + spelt.encode() + b"]"))
        assert answer.headers["date"] == "today"
        assert spelt not in answer.headers["x-request-id"]
        assert spelt.encode() not in answer.body


@given(st.text(VISIBLE, min_size=8, max_size=40), st.text("abc \u00fc{}:,[]0", max_size=200))
def test_a_text_without_the_key_stays_as_it_is(key, text):
    if key not in text:
        assert redacted_text(call_with(key), text) == text


@pytest.mark.parametrize("key", [None, "", "short", "1234567"])
def test_there_is_nothing_to_hide_without_a_key_or_with_a_short_one(key):
    answer = Answer(200, {"x-request-id": "short 1234567"}, b"short 1234567")
    assert redacted(call_with(key), answer) == answer


def test_an_error_is_searched_with_all_that_it_came_of():
    def chained(*texts):
        error = None
        for text in texts:
            made = ValueError(text)
            made.__context__, error = error, made
        return error

    call = call_with(KEY)
    assert tells_key(call, chained(KEY, "b", "c"))
    assert tells_key(call, chained("a", "b", f"c {KEY!r}"))
    assert not tells_key(call, chained("a", "b", "c"))
    both = ValueError("of a cause, and raised in a context")
    both.__cause__, both.__context__ = chained("a"), chained(KEY)
    assert tells_key(call, both)


@pytest.mark.parametrize("key", ["/starts-with-one", "\\" * 8, "a\\b/c\"d'e=f+g%h"])
@pytest.mark.parametrize("filler", [b"\\", b"%", b"\\u00", b"%2", b"/"])
def test_a_hostile_answer_does_not_hold_the_search_up(key, filler):
    body = filler * (1_000_000 // len(filler))
    with ends_within(30):
        redacted(call_with(key), Answer(200, {}, body))
