"""When a call is sent again: the table, line by line, and what holds for every configuration."""

from __future__ import annotations

import inspect
import signal
from concurrent.futures import ThreadPoolExecutor

import peers
import pytest
from hypothesis import given, strategies as st
from interrupts import AtLine, needs_tracing

from cycles_lite import (
    ApiError,
    AuthenticationError,
    BudgetExceededError,
    ConfigError,
    CyclesConfig,
    ForbiddenError,
    NotFoundError,
    RateLimitedError,
    ReservationExpiredError,
    ResponseError,
    ServerError,
    Subject,
    TransportError,
    TransportTimeout,
    ValidationError,
    errors,
)
from cycles_lite.transport.retry import backoff, retry_delay

READ, WRITE = True, False


def config(**changes):
    settings = {"retry_initial_delay": 1.0, "retry_multiplier": 2.0, "retry_max_delay": 30.0, "retry_max_attempts": 5}
    return CyclesConfig(base_url="http://127.0.0.1", api_key="key", **{**settings, **changes})


def stale(error):
    error.stale = True
    return error


AMBIGUOUS = [TransportError(), TransportTimeout(), ResponseError(status=200), ServerError(status=500)]

FINAL = [
    ApiError(status=400),
    ApiError(status=418, code="SOMETHING_NEW"),
    AuthenticationError(status=401),
    ForbiddenError(status=403),
    NotFoundError(status=404),
    BudgetExceededError(status=409),
    BudgetExceededError(status=409, retry_after=1.0),
    ReservationExpiredError(status=410),
    ValidationError("no"),
    ConfigError("no"),
]


@pytest.mark.parametrize("error", AMBIGUOUS, ids=repr)
def test_an_unknown_outcome_is_repeated_at_once_and_once(error):
    assert [retry_delay(config(), WRITE, attempt, error) for attempt in (1, 2, 3)] == [0.0, None, None]


@pytest.mark.parametrize("error", AMBIGUOUS, ids=repr)
def test_a_read_is_repeated_after_growing_delays(error):
    delays = [retry_delay(config(), READ, attempt, error) for attempt in range(1, 7)]
    assert delays == [1.0, 2.0, 4.0, 8.0, None, None]


@pytest.mark.parametrize("is_read", [READ, WRITE])
@pytest.mark.parametrize("error", FINAL, ids=repr)
def test_what_the_authority_has_decided_is_not_asked_again(error, is_read):
    assert retry_delay(config(), is_read, 1, error) is None


def test_a_throttled_write_is_the_callers_to_repeat():
    assert retry_delay(config(), WRITE, 1, RateLimitedError(status=429, retry_after=0.0)) is None


@pytest.mark.parametrize(
    ("asked", "waited"), [(None, 1.0), (0.0, 1.0), (0.5, 1.0), (1.5, 1.5), (30.0, 30.0), (30.1, None), (3600.0, None)]
)
@pytest.mark.parametrize("kind", [RateLimitedError, ServerError])
def test_a_read_waits_as_long_as_it_is_asked_to_or_gives_up(kind, asked, waited):
    assert retry_delay(config(), READ, 1, kind(status=429, retry_after=asked)) == waited


@pytest.mark.parametrize("is_read", [READ, WRITE])
@pytest.mark.parametrize("enabled", [True, False])
def test_a_stale_connection_is_replaced_at_once_and_once_even_with_retries_off(enabled, is_read):
    settings = config(retry_enabled=enabled)
    assert retry_delay(settings, is_read, 1, stale(TransportError())) == 0.0
    assert retry_delay(settings, WRITE, 2, stale(TransportError())) is None


@pytest.mark.parametrize("is_read", [READ, WRITE])
@pytest.mark.parametrize("error", [*AMBIGUOUS, RateLimitedError(status=429)], ids=repr)
def test_nothing_else_is_repeated_with_retries_off(error, is_read):
    assert retry_delay(config(retry_enabled=False), is_read, 1, error) is None


def test_one_attempt_is_one_attempt():
    assert retry_delay(config(retry_max_attempts=1), READ, 1, TransportError()) is None


def test_delays_grow_up_to_the_maximum_whatever_they_start_from():
    assert [backoff(config(retry_max_delay=3.0), attempt) for attempt in (1, 2, 3, 4)] == [1.0, 2.0, 3.0, 3.0]
    assert backoff(config(retry_initial_delay=100.0), 1) == 30.0
    assert [backoff(config(retry_initial_delay=0.0), attempt) for attempt in (1, 50)] == [0.0, 0.0]
    assert [backoff(config(retry_multiplier=1.0), attempt) for attempt in (1, 50)] == [1.0, 1.0]
    assert backoff(config(retry_multiplier=100.0), 10_000) == 30.0  # and does not overflow


def every_error():
    kinds = [kind for kind in vars(errors).values() if inspect.isclass(kind) and issubclass(kind, errors.CyclesError)]
    waits = st.none() | st.floats(min_value=0.0, max_value=1e9)
    return st.builds(lambda kind, wait: kind("", retry_after=wait), st.sampled_from(kinds), waits)


@given(
    error=every_error(),
    is_read=st.booleans(),
    attempt=st.integers(1, 60),
    is_stale=st.booleans(),
    enabled=st.booleans(),
    most=st.integers(1, 50),
    initial=st.floats(0.0, 3_600.0),
    multiplier=st.floats(1.0, 100.0),
    longest=st.floats(0.0, 3_600.0),
)
def test_what_holds_for_every_configuration(
    error, is_read, attempt, is_stale, enabled, most, initial, multiplier, longest
):
    """A delay is never negative and never above the maximum; the last attempt is the last; writes never wait; what is
    repeated may succeed; and no sooner than the server asked."""
    settings = config(
        retry_enabled=enabled,
        retry_max_attempts=most,
        retry_initial_delay=initial,
        retry_multiplier=multiplier,
        retry_max_delay=longest,
    )
    if is_stale and isinstance(error, TransportError):
        error.stale = True
    delay = retry_delay(settings, is_read, attempt, error)
    if delay is None:
        return
    assert 0.0 <= delay <= longest
    assert error.is_retryable
    if attempt == 1 and getattr(error, "stale", False):
        assert delay == 0.0
        return
    assert enabled
    if is_read:
        assert attempt < most
        assert delay >= (error.retry_after or 0.0)
    else:
        assert (attempt, delay) == (1, 0.0)


# ---- Waiting ----


def reading(peer):
    """A read that will wait for an hour before it is sent again."""
    return peers.client_of(peer, retry_initial_delay=3600, retry_max_delay=3600)


def test_close_ends_the_wait_of_another_thread():
    with peers.Peer(peers.refusal("INTERNAL_ERROR", 500)) as peer, reading(peer) as client:
        with ThreadPoolExecutor(1) as pool, peers.ends_within(60):
            waiting = pool.submit(client.get_reservation, "rsv_1")
            assert peer.wait_for(1)
            client.close()
            with pytest.raises(ServerError):
                waiting.result()


def is_not_looked_at(frame):
    """The wait is looked at, not the request, and not what is here."""
    return frame.f_code.co_filename == __file__ or frame.f_code.co_name == "_attempt"


@needs_tracing
@pytest.mark.skipif(not hasattr(signal, "alarm"), reason="needs signals")
@pytest.mark.parametrize("waits", [True, False], ids=["waits", "closes"])
def test_a_handler_may_close_the_client_wherever_its_thread(waits):
    """At each line of it and of what is below it, in the standard library too. A lock that is held there would never
    be given back, because its holder is beneath the handler."""

    def closes_at(nth):
        """Whether the work comes to that line, where its client is closed, as by a signal handler."""
        transport = peers.FakeTransport(peers.replied(status=503))
        client = peers.client_of("http://127.0.0.1:1", transport=transport, retry_max_attempts=2)
        try:
            with AtLine(nth, files="", skips=is_not_looked_at, act=client._session.close) as at:
                client.get_reservation("rsv_1") if waits else client._session.close()
        except ServerError:
            pass
        return at.where is not None

    def hangs(*_):
        raise AssertionError("it hangs")

    before = signal.signal(signal.SIGALRM, hangs)
    try:
        signal.alarm(60)
        nth = 1
        while closes_at(nth):
            nth += 1
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    assert nth > 3


def test_a_call_that_is_sent_again_sends_the_same_bytes():
    """Whatever the program does meanwhile with what it has put into the request: the key is the same as well."""
    request = peers.create_request(metadata={"tries": [1]}, subject=Subject(tenant="acme", dimensions={"try": "1"}))

    def fail(line, sent):
        request.metadata["tries"].append(2)
        request.subject.dimensions["try"] = "2"
        line.send(peers.answer({}, status=503))

    with peers.Peer(fail, peers.answer(peers.allowed())) as peer, peers.client_of(peer) as client:
        client.create_reservation(request)
    first, second = peer.requests
    assert first.body == second.body
    assert b'"tries":[1]' in first.body
