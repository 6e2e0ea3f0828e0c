"""The heartbeat's arithmetic against the protocol's HEARTBEAT GUIDANCE: its own examples, tables, and a simulation."""

from __future__ import annotations

import ast
import itertools
import math
from fractions import Fraction
from typing import NamedTuple

import pytest
from hypothesis import example, given, strategies as st

from cycles_lite import errors
from cycles_lite.background import lease as module
from cycles_lite.background.lease import (
    Failure,
    Lease,
    Next,
    Step,
    Stop,
    attempt_timeout_ms,
    classify,
    created,
    extended,
    failed,
)

#: Three days of a monotonic clock, so that no test leans on a start at 0.
NOW = 259_200_000

LOST = errors.TransportTimeout("no answer")
NO_FIELD = None


#: Codes after which no extension of the reservation can succeed.
PERMANENT_CODES = [
    "MAX_EXTENSIONS_EXCEEDED",
    "NOT_FOUND",
    "RESERVATION_EXPIRED",
    "RESERVATION_FINALIZED",
    "TENANT_CLOSED",
]


def api(status, code=None, retry_after=None):
    """The error that the client raises for such an answer to an extension."""
    kind = errors.error_class(status, code, reserves=False, settles=False)
    return kind("no", status=status, code=code, retry_after=retry_after)


def stop(reason):
    return Step(Next.STOP, 0, reason)


def live(lead=60_000, timeout=10_000, rtt=0, ttl=60_000):
    """A lease that had a lead of `lead` when its answer was received, at NOW."""
    return created(ttl, timeout, lead + rtt, NOW - rtt, NOW)[0]


def fail_after(lease, elapsed, error=LOST):
    return failed(lease, error, NOW + elapsed)


# ---- the numbers of the specification and of the design ----


@pytest.mark.parametrize(
    ("timeout", "rtt", "remaining", "delay"),
    [
        (10_000, 1500, 61_500, 37_000),  # "next_delay ≈ 37000 ms", a lead_floor of 60000
        (10_000, 1500, 60_000, 35_500),  # the same as a remaining_ttl_ms: the rtt comes off
        (30_000, 0, 60_000, 0),  # "makes retry_reserve at least 61000 ms"
        (30_000, 0, 61_000, 0),  # "positive only when lead_floor > retry_reserve"
        (30_000, 0, 61_001, 1),
        (7_000, 20, 60_000, 44_980),  # our defaults
        (10, 10, 60_000, 56_990),  # budget and margin of 1 s at least
        (10_000, 6000, 60_000, 18_000),  # 2 x rtt is the longer attempt budget
        (10, 500, 60_000, 56_500),  # where 2 x rtt begins to count
        (10, 501, 60_000, 56_493),
        (7_000, 0, 0, 0),
        (7_000, 5000, 3_000, 0),  # an rtt longer than what remains
    ],
)
def test_the_first_delay(timeout, rtt, remaining, delay):
    assert created(60_000, timeout, remaining, NOW, NOW + rtt)[1] == Step(Next.BEAT, delay)


@pytest.mark.parametrize(
    ("connect", "read", "ttl", "bound"),
    [
        (2000.0, 5000.0, 60_000, 7000),
        (2000.0, 5000.0, 28_000, 7000),
        (2000.0, 5000.0, 27_999, 7000),  # 6999.75 rounds up
        (2000.0, 5000.0, 27_996, 6999),
        (2000.0, 5000.0, 10_000, 2500),
        (2000.0, 5000.0, 4_001, 1001),
        (2000.0, 5000.0, 4_000, 1000),
        (2000.0, 5000.0, 1_000, 1000),
        (100.0, 200.5, 60_000, 301),
        (math.inf, 5000.0, 60_000, 15_000),
    ],
)
def test_the_bound_on_one_attempt(connect, read, ttl, bound):
    assert attempt_timeout_ms(connect, read, ttl) == bound


@given(
    connect=st.floats(1, 86_400_000),
    read=st.floats(1, 86_400_000),
    ttl=st.integers(4001, 86_400_000),
    rtt=st.integers(0, 400),
)
@example(connect=2000.0, read=5000.0, ttl=4001, rtt=400)
def test_every_ttl_over_4_s_leaves_a_positive_delay(connect, read, ttl, rtt):
    """Design, section 6: what the bound on one attempt is for, where the server grants what was asked."""
    _, step = created(ttl, attempt_timeout_ms(connect, read, ttl), ttl, NOW, NOW + rtt)
    assert step.next is Next.BEAT
    assert step.delay_ms > 0


# ---- what an error means ----


@pytest.mark.parametrize(
    ("error", "meaning"),
    [
        (errors.TransportError("refused"), Failure.TRANSIENT),
        (errors.TransportTimeout("timed out"), Failure.TRANSIENT),
        (errors.ResponseError("malformed 2xx", status=200), Failure.TRANSIENT),
        (errors.ResponseError("another 2xx", status=202), Failure.TRANSIENT),
        (errors.ResponseError("a redirect, which is not followed", status=302), Failure.TRANSIENT),
        (api(500, "INTERNAL_ERROR"), Failure.TRANSIENT),
        (api(503), Failure.TRANSIENT),
        (api(503, "NOT_FOUND"), Failure.TRANSIENT),
        (api(429, "LIMIT_EXCEEDED"), Failure.THROTTLED),
        (api(429), Failure.THROTTLED),
        (api(429, "SOMETHING_NEW"), Failure.THROTTLED),
        (api(410, "RESERVATION_EXPIRED"), Failure.PERMANENT),
        (api(410), Failure.PERMANENT),
        (api(409, "RESERVATION_FINALIZED"), Failure.PERMANENT),
        (api(409, "MAX_EXTENSIONS_EXCEEDED"), Failure.PERMANENT),
        (api(429, "MAX_EXTENSIONS_EXCEEDED"), Failure.PERMANENT),
        (api(409, "TENANT_CLOSED"), Failure.PERMANENT),
        (api(404, "NOT_FOUND"), Failure.PERMANENT),
        (api(404), Failure.REFUSED),
        (api(400, "INVALID_REQUEST"), Failure.REFUSED),
        (api(400, "LIMIT_EXCEEDED"), Failure.REFUSED),
        (api(400, "INTERNAL_ERROR"), Failure.REFUSED),
        (api(401, "UNAUTHORIZED"), Failure.REFUSED),
        (api(403, "FORBIDDEN"), Failure.REFUSED),
        (api(409, "IDEMPOTENCY_MISMATCH"), Failure.REFUSED),
        (api(409, "SOMETHING_NEW"), Failure.REFUSED),
        (errors.ValidationError("nothing was sent"), Failure.REFUSED),
        (errors.ConfigError("nothing was sent"), Failure.REFUSED),
    ],
    ids=lambda value: f"{type(value).__name__} {value}" if isinstance(value, errors.CyclesError) else value.value,
)
def test_what_an_error_means(error, meaning):
    assert classify(error) is meaning


# ---- failures where the last success had remaining_ttl_ms ----


@pytest.mark.parametrize(
    ("elapsed", "step"),
    [
        (0, Step(Next.RETRY, 15_000)),  # lead/4
        (37_000, Step(Next.RETRY, 5_750)),
        (44_000, Step(Next.RETRY, 4_000)),  # the lead/4 that is also the window
        (45_000, Step(Next.RETRY, 3_750)),
        (48_999, Step(Next.RETRY, 1)),  # retry_window
        (49_000, Step(Next.RETRY, 0)),  # "retry_window = 0 means retry immediately"
        (49_001, stop(Stop.NO_SAFE_RETRY)),  # "a negative value means stop"
        (60_000, stop(Stop.NO_SAFE_RETRY)),
        (10**9, stop(Stop.NO_SAFE_RETRY)),
    ],
)
def test_a_lost_attempt_is_sent_again_within_the_window(elapsed, step):
    """A lead of 60 s, 10 s an attempt, 1 s of margin: the window is 49 s and shrinks."""
    assert fail_after(live(), elapsed)[1] == step


def test_the_longest_wait_for_a_retry_is_30_s():
    assert fail_after(live(lead=3_600_000), 0)[1] == Step(Next.RETRY, 30_000)
    assert fail_after(live(lead=120_003), 0)[1] == Step(Next.RETRY, 30_000)
    assert fail_after(live(lead=119_999), 0)[1] == Step(Next.RETRY, 29_999)


@pytest.mark.parametrize(
    ("retry_after", "elapsed", "step"),
    [
        (1.0, 0, Step(Next.RETRY, 1000)),
        (49.0, 0, Step(Next.RETRY, 49_000)),
        (49.001, 0, stop(Stop.THROTTLED)),
        (9.0, 40_000, Step(Next.RETRY, 9000)),
        (10.0, 40_000, stop(Stop.THROTTLED)),
        (0.0, 0, Step(Next.RETRY, 0)),
        (0.0, 49_000, Step(Next.RETRY, 0)),
        (0.0, 49_001, stop(Stop.NO_SAFE_RETRY)),
        (1.2345, 0, Step(Next.RETRY, 1235)),  # never before Retry-After
        (None, 0, stop(Stop.THROTTLED)),
        (None, 49_000, stop(Stop.THROTTLED)),
        (-1.0, 0, stop(Stop.THROTTLED)),
        (math.nan, 0, stop(Stop.THROTTLED)),
        (math.inf, 0, stop(Stop.THROTTLED)),
        (1e308, 0, stop(Stop.THROTTLED)),  # overflows in milliseconds
    ],
)
def test_a_429_is_retried_exactly_after_its_retry_after_or_not_at_all(retry_after, elapsed, step):
    assert fail_after(live(), elapsed, api(429, "LIMIT_EXCEEDED", retry_after))[1] == step


def test_a_retry_after_beside_a_5xx_is_not_a_throttle():
    assert fail_after(live(), 0, api(503, None, 1.0))[1] == Step(Next.RETRY, 15_000)
    assert fail_after(live(), 0, api(503, None, 3600.0))[1] == Step(Next.RETRY, 15_000)


@pytest.mark.parametrize("code", PERMANENT_CODES)
@pytest.mark.parametrize("remaining", [60_000, NO_FIELD])
def test_a_permanent_code_stops_on_both_paths(code, remaining):
    lease, _ = created(60_000, 7000, remaining, NOW, NOW)
    assert failed(lease, api(409, code), NOW) == (lease, stop(Stop.PERMANENT))


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 418, 422])
@pytest.mark.parametrize("remaining", [60_000, NO_FIELD])
def test_another_4xx_stops_on_both_paths(status, remaining):
    lease, _ = created(60_000, 7000, remaining, NOW, NOW)
    assert failed(lease, api(status, "SOMETHING_NEW"), NOW) == (lease, stop(Stop.REFUSED))


def test_each_failure_counts_from_the_same_success():
    """What one wait and one failed retry took is gone from the next decision: the windows are 49, 33 and 16 s."""
    lease, first = fail_after(live(), 0)
    lease, second = fail_after(lease, first.delay_ms + 1000)
    lease, third = fail_after(lease, 33_000)
    assert [first.delay_ms, second.delay_ms, third.delay_ms] == [15_000, 44_000 // 4, 27_000 // 4]
    assert fail_after(lease, 49_001)[1] == stop(Stop.NO_SAFE_RETRY)


def test_the_one_retry_at_a_window_of_0_is_the_last():
    """ "if that retry also fails ... it MUST stop even if coarse clock resolution still reports zero"."""
    lease, step = fail_after(live(), 49_000)
    assert step == Step(Next.RETRY, 0)
    for error in (LOST, api(429, None, 0.0)):
        assert fail_after(lease, 49_000, error)[1] == stop(Stop.NO_PROGRESS)


def test_the_last_retry_is_there_again_after_a_success():
    lease, _ = fail_after(live(), 49_000)
    lease, _ = extended(lease, 60_000, NOW + 49_000, NOW + 49_000)
    assert fail_after(lease, 49_000 + 49_000)[1] == Step(Next.RETRY, 0)


@pytest.mark.parametrize(("first", "second"), [(10_000, 10_000), (10_000, 9_999), (10_000, 5000), (0, 0)])
@pytest.mark.parametrize("error", [LOST, api(500), api(429, None, 0.0)])
def test_a_clock_that_does_not_advance_between_two_failures_stops(first, second, error):
    lease, _ = fail_after(live(), first, error)
    assert fail_after(lease, second, error)[1] == stop(Stop.NO_PROGRESS)


def test_a_failed_attempt_that_takes_its_whole_budget_leaves_one_immediate_retry_and_not_a_hair_more():
    """Why `created` advises to enforce less than the bound it is told."""
    lease, beat = created(60_000, 7000, 60_000, NOW, NOW)
    assert fail_after(lease, beat.delay_ms + 7000)[1] == Step(Next.RETRY, 0)
    assert fail_after(lease, beat.delay_ms + 7000 + 0.01)[1] == stop(Stop.NO_SAFE_RETRY)


@pytest.mark.parametrize("now", [None, NOW - 1, math.nan, math.inf, -math.inf])
def test_a_failure_at_an_unknown_time_stops(now):
    """ "Unknown timing MUST NOT be treated as zero elapsed time"."""
    assert failed(live(), LOST, now)[1] == stop(Stop.NO_SAFE_RETRY)
    assert failed(live(), api(429, None, 0.0), now)[1] == stop(Stop.NO_SAFE_RETRY)


# ---- successes ----


def test_a_second_success_without_delay_stops():
    lease, first = created(60_000, 30_000, 60_000, NOW, NOW + 5)
    assert first == Step(Next.BEAT, 0)
    assert extended(lease, 60_000, NOW + 5, NOW + 10)[1] == stop(Stop.TOO_SHORT)


def test_an_immediate_beat_may_establish_a_longer_lead():
    """ "permits an additive-delta server's first immediate extension to establish a larger positive lead"."""
    lease, _ = created(60_000, 30_000, 60_000, NOW, NOW)
    lease, step = extended(lease, 120_000, NOW, NOW)
    assert step == Step(Next.BEAT, 59_000)
    assert extended(lease, 61_000, NOW + 59_000, NOW + 59_000)[1] == Step(Next.BEAT, 0)


def test_failures_between_two_successes_without_delay_change_nothing():
    lease, _ = created(60_000, 25_000, 50_000, NOW, NOW)
    lease, step = fail_after(lease, 1000)
    assert step.next is Next.RETRY
    assert extended(lease, 50_000, NOW + 2000, NOW + 2000)[1] == stop(Stop.TOO_SHORT)


def test_the_schedule_comes_from_the_last_answer_alone():
    """A replay, or a server that clamps: what an earlier answer promised is forgotten."""
    lease, _ = created(60_000, 7000, 60_000, NOW, NOW)
    lease, step = extended(lease, 20_000, NOW + 45_000, NOW + 45_000)
    assert step == Step(Next.BEAT, 5000)
    assert failed(lease, LOST, NOW + 45_000 + 12_000)[1] == Step(Next.RETRY, 0)
    assert failed(lease, LOST, NOW + 45_000 + 12_001)[1] == stop(Stop.NO_SAFE_RETRY)


def test_a_lead_is_never_negative():
    lease, step = created(60_000, 7000, 3000, NOW, NOW + 5000)
    assert (lease.lead_floor_ms, step) == (0, Step(Next.BEAT, 0))


def test_the_longest_round_trip_counts_for_ever():
    lease, _ = created(60_000, 1000, 60_000, NOW, NOW + 3000)
    lease, step = extended(lease, 60_000, NOW + 40_000, NOW + 40_100)
    assert step == Step(Next.BEAT, 60_000 - 100 - 2 * 6000 - 6000)
    _, step = extended(lease, 60_000, NOW + 80_000, NOW + 85_000)
    assert step == Step(Next.BEAT, 60_000 - 5000 - 2 * 10_000 - 10_000)


UNRELIABLE = [(None, NOW), (NOW, None), (None, None), (NOW, NOW - 1), (math.nan, NOW), (NOW, math.inf)]


@pytest.mark.parametrize(("sent", "received"), UNRELIABLE)
def test_without_timing_there_is_one_immediate_beat_and_then_the_end(sent, received):
    """ "MUST set lead_floor and next_delay to 0", "at most one immediate fresh extension", "then ... stop"."""
    lease, step = created(60_000, 7000, 60_000, sent, received)
    assert lease.lead_floor_ms == 0
    assert step == Step(Next.BEAT, 0)
    assert extended(lease, 60_000, sent, received)[1] == stop(Stop.TOO_SHORT)
    assert failed(lease, LOST, NOW)[1] == stop(Stop.NO_SAFE_RETRY)


@pytest.mark.parametrize("timeout", [None, math.inf, math.nan, -1])
def test_an_unknown_or_unbounded_timeout_is_an_infinite_budget(timeout):
    lease, step = created(60_000, timeout, 86_400_000, NOW, NOW)
    assert step == Step(Next.BEAT, 0)
    assert failed(lease, LOST, NOW)[1] == stop(Stop.NO_SAFE_RETRY)
    assert extended(lease, 2**63 - 1, NOW, NOW)[1] == stop(Stop.TOO_SHORT)


# ---- where the last success had no remaining_ttl_ms ----


@pytest.mark.parametrize(
    ("ttl", "cadence"),
    [(60_000, 30_000), (86_400_000, 30_000), (59_999, 29_999), (24_000, 12_000), (1000, 500), (0, 500), (-5, 500)],
)
def test_the_plain_cadence(ttl, cadence):
    lease, step = created(ttl, 7000, NO_FIELD, NOW, NOW)
    assert step == Step(Next.BEAT, cadence)
    assert extended(lease, NO_FIELD, NOW + cadence, NOW + cadence)[1] == Step(Next.BEAT, cadence)


@pytest.mark.parametrize(
    ("elapsed", "delay"),
    [(30_000, 30_000), (30_005, 29_995), (37_000, 23_000), (59_999, 1), (60_000, 30_000), (307_000, 23_000)],
)
def test_on_the_cadence_a_retry_waits_for_the_next_beat(elapsed, delay):
    lease, _ = created(60_000, 7000, NO_FIELD, NOW, NOW)
    assert fail_after(lease, elapsed) == (lease, Step(Next.RETRY, delay))


@pytest.mark.parametrize(
    ("retry_after", "delay"), [(None, 23_000), (1.0, 23_000), (23.5, 23_500), (3600.0, 3_600_000), (-1.0, 23_000)]
)
def test_on_the_cadence_a_429_waits_for_retry_after_at_least(retry_after, delay):
    lease, _ = created(60_000, 7000, NO_FIELD, NOW, NOW)
    assert fail_after(lease, 37_000, api(429, None, retry_after))[1] == Step(Next.RETRY, delay)


def test_on_the_cadence_too_a_retry_after_beside_a_5xx_is_not_a_throttle():
    lease, _ = created(60_000, 7000, NO_FIELD, NOW, NOW)
    assert fail_after(lease, 37_000, api(503, None, 3600.0))[1] == Step(Next.RETRY, 23_000)


def test_the_cadence_goes_on_through_any_number_of_failures():
    lease, step = created(60_000, 7000, NO_FIELD, NOW, NOW)
    now = NOW
    for _ in range(1000):
        now += step.delay_ms + 7000
        lease, step = failed(lease, LOST, now)
        assert step == Step(Next.RETRY, 23_000)


@pytest.mark.parametrize(("sent", "received"), UNRELIABLE)
def test_the_cadence_needs_neither_clock_nor_bound(sent, received):
    lease, step = created(60_000, None, NO_FIELD, sent, received)
    assert step == Step(Next.BEAT, 30_000)
    assert failed(lease, LOST, None)[1] == Step(Next.RETRY, 30_000)


def test_each_answer_decides_its_path_by_itself():
    lease, step = created(60_000, 30_000, 60_000, NOW, NOW)
    assert step == Step(Next.BEAT, 0)
    lease, step = extended(lease, NO_FIELD, NOW, NOW)
    assert step == Step(Next.BEAT, 30_000)
    assert fail_after(lease, 59_000)[1] == Step(Next.RETRY, 1000)
    lease, step = extended(lease, 60_000, NOW, NOW)  # the first in a row again
    assert step == Step(Next.BEAT, 0)
    assert fail_after(lease, 59_000)[1] == stop(Stop.NO_SAFE_RETRY)


# ---- rounding, and whatever comes in ----

clocks = st.floats(1e6, 1e10)
spans = st.floats(0, 1e6)  # not more than what the clock shows: only so is the difference of two floats exact
timeouts = st.one_of(st.integers(0, 100_000), st.floats(0, 1e5))


@given(timeout=timeouts, remaining=st.integers(0, 10**8), start=clocks, rtts=st.lists(spans, min_size=1, max_size=4))
def test_budgets_and_margins_round_up_and_delays_down(timeout, remaining, start, rtts):
    """The delay never passes the exact one, and is below it by no more than its rounded spans explain."""
    lease, exact_rtt, longest = Lease(60_000, math.ceil(timeout)), Fraction(0), Fraction(0)
    for rtt in rtts:
        exact_rtt = Fraction(start + rtt) - Fraction(start)
        longest = max(longest, exact_rtt)
        lease, step = extended(lease._replace(was_zero=False), remaining, start, start + rtt)
    reserve = 2 * max(Fraction(timeout), 1000, 2 * longest) + max(1000, 2 * longest)
    exact = max(0, max(0, remaining - exact_rtt) - reserve)
    assert exact - 7 < step.delay_ms <= exact
    assert created(60_000, timeout, remaining, start, start + rtts[0])[0].request_timeout_ms >= timeout


@given(lead=st.integers(0, 200_000), timeout=timeouts, elapsed=spans, rtt=st.integers(0, 5000))
def test_a_retry_delay_is_the_exact_one_rounded_down(lead, timeout, elapsed, rtt):
    lease = created(60_000, timeout, lead + rtt, NOW - rtt, NOW)[0]
    exact_elapsed = Fraction(NOW + elapsed) - NOW
    estimate = max(0, lead - exact_elapsed)
    window = estimate - max(Fraction(timeout), 1000, 2 * rtt) - max(1000, 2 * rtt)
    step = fail_after(lease, elapsed)[1]
    if step.next is Next.STOP:
        assert step == stop(Stop.NO_SAFE_RETRY)
        assert window < 2
    else:
        exact = min(Fraction(30_000), estimate / 4, window)
        assert max(0, exact - 3) <= step.delay_ms <= exact


any_number = st.one_of(
    st.none(), st.integers(-(2**63), 2**63 - 1), st.floats(), st.sampled_from([0, NOW, NOW + 1, math.inf])
)
any_error = st.one_of(
    st.sampled_from([LOST, errors.ResponseError("odd", status=200), errors.ValidationError("no")]),
    st.builds(
        api,
        st.sampled_from([400, 401, 404, 409, 410, 429, 429, 429, 500, 503]),
        st.sampled_from([None, "SOMETHING_NEW", *PERMANENT_CODES]),
        st.one_of(st.none(), st.floats()),
    ),
)
any_answer = st.tuples(st.one_of(st.none(), st.integers(-1, 2**63 - 1)), any_number, any_number)


@given(
    ttl=st.integers(-1, 2**63 - 1),
    timeout=any_number,
    first=any_answer,
    later=st.lists(st.one_of(any_answer, st.tuples(any_error, any_number)), max_size=6),
)
def test_whatever_comes_in_a_whole_step_comes_out(ttl, timeout, first, later):
    """BEAT after a success alone, RETRY after a failure alone; a whole delay of 0 or more; a reason with STOP alone."""
    lease, step = created(ttl, timeout, *first)
    steps = [(True, step)]
    for event in later:
        before = lease._replace()
        took = extended if len(event) == 3 else failed
        lease, step = took(lease, *event)
        assert took(before, *event) == (lease, step)  # the same again for the same
        assert lease.lead_floor_ms is None or lease.lead_floor_ms >= 0
        steps.append((took is extended, step))
    for succeeded, step in steps:
        assert step.next in (Next.STOP, Next.BEAT if succeeded else Next.RETRY)
        assert type(step.delay_ms) is int
        assert step.delay_ms >= 0
        assert isinstance(step.reason, Stop) is (step.next is Next.STOP)


def test_a_lease_does_not_change():
    lease = live()
    with pytest.raises(AttributeError):
        lease.ttl_ms = 1
    before = tuple(lease)
    extended(lease, 1, NOW, NOW + 50_000)
    fail_after(lease, 3)
    assert tuple(lease) == before


def test_the_module_knows_no_clock_no_chance_no_thread_and_no_socket():
    with open(module.__file__) as file:
        tree = ast.parse(file.read())
    imported = {
        getattr(node, "module", None) or node.names[0].name
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom))
    }
    assert imported == {"__future__", "math", "enum", "typing", "errors"}


# ---- a heartbeat against a server, on a clock of the test's own ----


class Attempt(NamedTuple):
    """How one attempt will go; the milliseconds are quarters, which floats hold exactly."""

    #: How late the worker wakes for it, and how long it travels there and back.
    late: float
    there: float
    back: float
    outcome: str = "answered"
    retry_after: float = math.nan


class Server:
    """Grants `grant` per extension at most, and a lead of `longest` at most; replays by key with a fresh remainder."""

    def __init__(self, grant, longest):
        self.grant, self.longest = grant, longest
        self.expires_at = 0.0
        self.answered = {}

    def create(self, at):
        self.expires_at = at + min(self.grant, self.longest)
        return math.floor(self.expires_at - at)

    def extend(self, at, key):
        if key not in self.answered:
            if at > self.expires_at:
                raise api(410, "RESERVATION_EXPIRED")
            self.expires_at = max(self.expires_at, min(self.expires_at + self.grant, at + self.longest))
            self.answered[key] = self.expires_at
        return max(0, math.floor(self.answered[key] - at))


class Turn(NamedTuple):
    """One attempt, what was made of it, and when the true lease ended then, as the server knows it."""

    sent: float
    now: float
    key: int
    error: errors.CyclesError | None
    lease: Lease
    step: Step
    expires_at: float


class Unanswered(Exception):
    """When an attempt's failure was known, and its error."""


class Heartbeat:
    """Runs attempts as `lease` tells, until it stops or they end. `turns` is all that happened, the creation first."""

    def __init__(self, server, ttl, timeout, attempts):
        self.server, self.timeout, self.turns = server, timeout, []
        sent, received = NOW, NOW + attempts[0].there + attempts[0].back
        remaining = server.create(sent + attempts[0].there)
        self.note(sent, received, 0, None, created(ttl, timeout, remaining, sent, received))
        for attempt in attempts[1:]:
            last = self.turns[-1]
            if last.step.next is Next.STOP:
                break
            sent = last.now + last.step.delay_ms + attempt.late
            key = last.key + 1 if last.step.next is Next.BEAT else last.key
            try:
                now, remaining = self.send(attempt, sent, key)
            except Unanswered as e:
                now, error = e.args
                self.note(sent, now, key, error, failed(last.lease, error, now))
            else:
                self.note(sent, now, key, None, extended(last.lease, remaining, sent, now))

    def note(self, sent, now, key, error, outcome):
        self.turns.append(Turn(sent, now, key, error, *outcome, self.server.expires_at))

    def send(self, attempt, sent, key):
        back_at, gives_up_at = sent + attempt.there + attempt.back, sent + self.timeout
        if attempt.outcome == "not connected":
            raise Unanswered(sent, errors.TransportError("connection refused"))
        if attempt.outcome == "lost":
            raise Unanswered(gives_up_at, LOST)
        if attempt.outcome in REFUSALS and back_at <= gives_up_at:
            raise Unanswered(back_at, api(REFUSALS[attempt.outcome], None, attempt.retry_after))
        try:
            remaining = self.server.extend(sent + attempt.there, key)
        except errors.CyclesError as e:
            raise Unanswered(back_at, e) from None
        if attempt.outcome == "answer lost" or back_at > gives_up_at:
            raise Unanswered(gives_up_at, LOST)
        if attempt.outcome == "malformed":
            raise Unanswered(back_at, errors.ResponseError("not the protocol's", status=200))
        return back_at, remaining


REFUSALS = {"5xx": 503, "429": 429}
TRANSIENT = ["not connected", "lost", "answer lost", "malformed", "5xx"]
TTLS = st.one_of(st.integers(8000, 120_000), st.integers(1000, 8000))
CLAMPS = st.one_of(st.just(10**9), st.just(10**9), TTLS)


def quarters(longest):
    return st.integers(0, longest * 4).map(lambda number: number / 4)


@st.composite
def heartbeats(draw, outcomes=(*["answered"] * 4, "429", *TRANSIENT)):
    """Of any TTL against either clamp, on a network of any speed, that of no time at all included."""
    ttl, span, late = draw(TTLS), draw(st.sampled_from([0, 1, 100, 1000])), draw(st.sampled_from([0, 0, 300, 3000]))
    timeout = draw(st.one_of(st.just(attempt_timeout_ms(2000, 5000, ttl)), st.integers(100, 20_000)))
    retry_after = st.sampled_from([0.0, 0.0, 1.0, 2.0, 10.0, math.nan])
    attempt = st.tuples(quarters(late), quarters(span), quarters(span), st.sampled_from(outcomes), retry_after)
    attempts = draw(st.lists(attempt, min_size=2, max_size=12))
    return Heartbeat(Server(min(ttl, draw(CLAMPS)), draw(CLAMPS)), ttl, timeout, [Attempt(*each) for each in attempts])


def budget_and_margin(lease):
    return max(lease.request_timeout_ms, 1000, 2 * lease.max_rtt_ms), max(1000, 2 * lease.max_rtt_ms)


@given(heartbeats())
def test_no_lead_is_overstated_and_nothing_scheduled_past_the_safe_point(heartbeat):
    """After a beat's delay two whole attempts and the margin fit into the true lease; after a retry's, one and it."""
    for turn in heartbeat.turns:
        assert 0 <= turn.lease.lead_floor_ms <= max(0, turn.expires_at - turn.lease.established_ms)
        budget, margin = budget_and_margin(turn.lease)
        begins = turn.now + turn.step.delay_ms
        if turn.step.next is Next.BEAT and turn.step.delay_ms:
            assert turn.step.delay_ms <= turn.lease.lead_floor_ms - 2 * budget - margin
            assert begins + 2 * budget + margin <= turn.expires_at
        if turn.step.next is Next.RETRY:
            elapsed = turn.now - turn.lease.established_ms
            assert turn.step.delay_ms <= turn.lease.lead_floor_ms - elapsed - budget - margin
            assert begins + budget + margin <= turn.expires_at


@given(heartbeats(outcomes=["answered"]))
def test_with_every_answer_arriving_no_lease_lapses_before_the_next_one(heartbeat):
    for before, turn in zip(heartbeat.turns, heartbeat.turns[1:]):
        budget, _ = budget_and_margin(before.lease)
        woke_in_time = turn.sent - before.now - before.step.delay_ms <= budget
        if before.error is None and before.step.delay_ms and woke_in_time:
            assert turn.now <= turn.sent + budget <= before.expires_at
            assert getattr(turn.error, "status", 0) != 410


def expected_stop(turn, before, delay_before):
    """Why the specification stops here, if it does. `delay_before` is the one after the last success but this."""
    budget, margin = budget_and_margin(turn.lease)
    status, elapsed = getattr(turn.error, "status", 0), math.ceil(turn.now - turn.lease.established_ms)
    window = turn.lease.lead_floor_ms - elapsed - budget - margin
    if turn.error is None:
        is_short = turn.lease.lead_floor_ms <= 2 * budget + margin
        return Stop.TOO_SHORT if is_short and delay_before == 0 else None
    if status == 410:
        return Stop.PERMANENT
    if window < 0:
        return Stop.NO_SAFE_RETRY
    if before.error is not None and elapsed <= math.ceil(before.now - turn.lease.established_ms):
        return Stop.NO_PROGRESS
    asked = turn.error.retry_after
    return Stop.THROTTLED if status == 429 and not 1000 * asked <= window else None


@given(heartbeats())
def test_it_stops_exactly_where_the_specification_says_so(heartbeat):
    before, delay_before = None, None
    for turn in heartbeat.turns:
        assert turn.step.reason is expected_stop(turn, before, delay_before)
        before, delay_before = turn, turn.step.delay_ms if turn.error is None else delay_before


@given(heartbeats())
def test_no_loop_stands_still(heartbeat):
    """No second success in a row without a delay goes on, and no instant sees more than four extensions."""
    successes = [turn.step for turn in heartbeat.turns if turn.error is None]
    for before, step in zip(successes, successes[1:]):
        assert before.delay_ms or step.delay_ms or step.next is Next.STOP
    for _, group in itertools.groupby(turn.sent for turn in heartbeat.turns[1:]):
        assert len(list(group)) <= 4


@given(heartbeats())
def test_a_retry_has_the_key_of_what_failed_and_a_beat_a_fresh_one(heartbeat):
    for before, turn in zip(heartbeat.turns, heartbeat.turns[1:]):
        assert before.step.next is (Next.BEAT if before.error is None else Next.RETRY)
        assert (turn.key == before.key) is (before.error is not None)


PROMPT = st.builds(Attempt, st.just(0.0), quarters(200), quarters(200))


@given(ttl=st.integers(4001, 120_000), grows=st.booleans(), attempts=st.lists(PROMPT, min_size=2, max_size=20))
def test_a_lease_over_4_s_beats_on_where_round_trips_are_short(ttl, grows, attempts):
    """Either clamp: a server that adds the whole TTL to each expiry, or one that never lets more than a TTL remain."""
    timeout = attempt_timeout_ms(2000, 5000, ttl)
    heartbeat = Heartbeat(Server(ttl, 10**9 if grows else ttl), ttl, timeout, attempts)
    assert len(heartbeat.turns) == len(attempts)
    for turn in heartbeat.turns:
        assert turn.step.next is Next.BEAT
        assert turn.step.delay_ms > 0
        assert turn.expires_at - turn.now <= ttl + 2 * timeout + 2000  # and the expiry drifts no further away


@given(
    ttl=st.integers(8000, 120_000),
    outcome=st.sampled_from(TRANSIENT),
    attempts=st.lists(PROMPT, min_size=4, max_size=8),
    at=st.integers(1, 2),
)
def test_one_failed_attempt_costs_no_lease(ttl, outcome, attempts, at):
    """What the reserve is for: the retry comes in time, and its key makes a lost answer's extension count once."""
    attempts[at] = attempts[at]._replace(outcome=outcome)
    heartbeat = Heartbeat(Server(ttl, ttl), ttl, attempt_timeout_ms(2000, 5000, ttl), attempts)
    assert [number for number, turn in enumerate(heartbeat.turns) if turn.error is not None] == [at]
    assert len(heartbeat.turns) == len(attempts)
    assert len(heartbeat.server.answered) == len(attempts) - 2
