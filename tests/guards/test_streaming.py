"""A guard that is handed to an iterator: settled when the iterator ends, however it does."""

from __future__ import annotations

import gc
import threading
import warnings

import pytest
from ledgers import spent, tokens

from cycles_lite import Action, GuardFinalizedError, current_guard

ACTION = Action("llm.completion", "gpt-4o")
PATIENCE = 60.0


def words(guard, *, fails=False):
    """A metered stream: each word costs one token."""
    for word in ("the", "work", "goes", "on"):
        assert current_guard() is guard
        guard.spend(1)
        yield word
    if fails:
        raise RuntimeError("the model hung up")


def streamed(client, **options):
    """As a view does that streams: the block is left before the first word is made."""
    with client.reserve(tokens(100), ACTION) as guard:
        return guard, guard.stream(words(guard, **options))


def test_a_stream_is_settled_when_it_is_exhausted(client, ledger):
    guard, stream = streamed(client)
    assert guard.is_active
    assert current_guard() is None
    assert list(stream) == ["the", "work", "goes", "on"]
    assert not guard.is_active
    assert spent(ledger) == (4, 0)
    stream.close()  # as a server does in the end
    assert spent(ledger) == (4, 0)


def test_a_stream_that_is_closed_early_costs_what_was_metered(client, ledger):
    _, stream = streamed(client)
    assert [next(stream), next(stream)] == ["the", "work"]
    stream.close()
    assert spent(ledger) == (2, 0)
    with pytest.raises(StopIteration):
        next(stream)


def test_a_stream_that_fails_costs_what_was_metered(client, ledger):
    _, stream = streamed(client, fails=True)
    with pytest.raises(RuntimeError, match="hung up"):
        list(stream)
    assert spent(ledger) == (4, 0)


def test_a_stream_that_never_began_is_released(client, ledger, caplog):
    _, stream = streamed(client)
    stream.close()
    assert spent(ledger) == (0, 0)
    assert "without a commit" in caplog.text


def test_a_stream_that_nobody_closes_is_settled_when_it_is_collected(client, ledger):
    guard, stream = streamed(client)
    next(stream)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        del guard, stream
        gc.collect()
    assert client.flush(PATIENCE) == 0
    assert spent(ledger) == (1, 0)


def test_the_work_may_commit_by_itself(client, ledger):
    def work(guard):
        yield 1
        guard.commit(tokens(9))

    with client.reserve(tokens(100), ACTION) as guard:
        stream = guard.stream(work(guard))
    assert list(stream) == [1]
    assert spent(ledger) == (9, 0)


def test_a_view_that_fails_after_it_made_the_stream_ends_the_guard(client, ledger):
    def view():
        with client.reserve(tokens(100), ACTION) as guard:
            made.extend([guard, guard.stream(words(guard))])
            raise RuntimeError("no template")

    made = []
    with pytest.raises(RuntimeError, match="no template"):
        view()
    guard, stream = made
    assert not guard.is_active
    assert spent(ledger) == (0, 0)
    with pytest.raises(GuardFinalizedError):
        list(stream)


def test_any_iterable_may_be_streamed(client, ledger):
    with client.reserve(tokens(100), ACTION) as guard:
        guard.spend(3)
        stream = guard.stream([b"a", b"b"])
    assert list(stream) == [b"a", b"b"]
    assert spent(ledger) == (3, 0)


def test_a_step_of_another_thread_does_not_end_the_one_under_way(client, ledger):
    within, go_on = threading.Event(), threading.Event()

    def work(guard):
        within.set()
        assert go_on.wait(PATIENCE)
        guard.spend(5)
        yield "done"

    with client.reserve(tokens(100), ACTION) as guard:
        stream = guard.stream(work(guard))
    got = []
    thread = threading.Thread(target=lambda: got.extend(stream))
    thread.start()
    assert within.wait(PATIENCE)
    for meddle in (lambda: next(stream), stream.close):
        with pytest.raises(ValueError, match="already executing"):
            meddle()
    assert guard.is_active
    go_on.set()
    thread.join()
    assert got == ["done"]
    assert spent(ledger) == (5, 0)


def test_a_finished_guard_streams_nothing(client):
    with client.reserve(tokens(100), ACTION) as guard:
        guard.commit(tokens(1))
        with pytest.raises(GuardFinalizedError, match="streamed"):
            guard.stream([])


def test_a_flask_view_that_streams_is_charged(client, ledger):
    flask = pytest.importorskip("flask")
    app = flask.Flask(__name__)

    @app.route("/")
    def view():
        with client.reserve(tokens(100), ACTION) as guard:
            return flask.Response(guard.stream(words(guard)))

    response = app.test_client().get("/")
    assert response.get_data() == b"theworkgoeson"
    response.close()
    assert spent(ledger) == (4, 0)
