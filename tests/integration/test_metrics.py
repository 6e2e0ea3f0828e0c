"""`GET /metrics` over real HTTP, read by prometheus-client's own parsers."""

from __future__ import annotations

import platform
import sys
import threading

import pytest
from serving import ADMIN_KEY, Http, asking, committing, event, keyed, process, raw, serving

import cycles_lite
from cycles_lite import Amount, ConfigError
from cycles_lite.local import Authority, metrics, rows, rules
from cycles_lite.local.application import Application

parser = pytest.importorskip("prometheus_client.parser", reason="prometheus-client is not installed")
openmetrics = pytest.importorskip("prometheus_client.openmetrics.parser")

START = 1_700_000_000_000
OPENMETRICS = "application/openmetrics-text; version=1.0.0,text/plain;version=0.0.4;q=0.5"


class Told:
    """What a scrape told: the metrics' families, and the values of samples by name and labels."""

    def __init__(self, families):
        self.families = {family.name: family for family in families}
        samples = [sample for family in self.families.values() for sample in family.samples]
        self.values = {(one.name, *sorted(one.labels.items())): one.value for one in samples}
        assert len(self.values) == len(samples), "a series was told twice"

    def __call__(self, name, **labels):
        return self.values.get((f"cycles_lite_{name}", *sorted(labels.items())))

    def of_budget(self, scope, unit="TOKENS"):
        """All that is told of a budget, by the names of the gauges, and its status."""
        found = {}
        for (name, *labels), value in self.values.items():
            given = dict(labels)
            if name.startswith("cycles_lite_budget_") and given["scope"] == scope and given["unit"] == unit:
                short = name[len("cycles_lite_budget_") :]
                found[short] = given["status"] if short == "status" and value == 1 else value
        return found


def scrape(http, **headers):
    reply = http("GET", "/metrics", X_Admin_API_Key=ADMIN_KEY, **headers)
    assert reply.status == 200, reply
    assert reply.headers["content-type"].startswith("text/plain; version=")
    return Told(parser.text_string_to_metric_families(reply.body.decode("utf-8")))


@pytest.fixture
def clock():
    return [START]


@pytest.fixture
def served(tmp_path, clock):
    with serving(tmp_path, clock=lambda: clock[0]) as served:
        yield served


@pytest.fixture
def http(served):
    with Http(served.url, served.key) as http:
        yield http


# ---- What is told ----


def test_each_budget_with_all_its_amounts(served, http):
    served.authority.set_budget("tenant:acme/agent:bot", Amount.tokens(1000), overdraft_limit=50)
    bot = {"tenant": "acme", "agent": "bot"}
    spent = http("POST", "/v1/reservations", asking(900, subject=bot)).data["reservation_id"]
    assert http("POST", f"/v1/reservations/{spent}/commit", committing(900)).status == 200
    http("POST", "/v1/reservations", asking(60, subject=bot))
    served.authority.set_budget("tenant:rival", Amount.usd_microcents(7))
    served.authority.freeze("tenant:rival", "USD_MICROCENTS")
    told = scrape(http)
    assert told.of_budget("tenant:acme/agent:bot") == {
        "allocated": 1000,
        "spent": 900,
        "reserved": 60,
        "debt": 0,
        "overdraft_limit": 50,
        "remaining": 40,
        "over_limit": 0,
        "status": "ACTIVE",
    }
    assert told.of_budget("tenant:rival", "USD_MICROCENTS")["status"] == "FROZEN"
    assert told("budgets") == 4
    assert told("budgets_untold") == 0


def test_a_budget_over_its_limit(served, http):
    bot = {"tenant": "acme", "agent": "bot"}
    made = http("POST", "/v1/reservations", asking(900, subject=bot)).data["reservation_id"]
    assert http("POST", f"/v1/reservations/{made}/commit", committing(1200)).data["charged"]["amount"] == 1000
    told = scrape(http).of_budget("tenant:acme/agent:bot")
    assert (told["over_limit"], told["remaining"], told["spent"]) == (1, 0, 1000)


def test_when_a_budget_of_periods_rolls_over(served, http, clock):
    """A scrape rolls it, too, though nobody else comes along."""
    served.authority.set_budget("tenant:rival", Amount.tokens(1000), period="12h", starts="2023-11-14T00:00Z")
    http("POST", "/v1/events", event(10, tenant="rival"), X_Cycles_API_Key=served.rival_key)
    told = scrape(http).of_budget("tenant:rival")
    assert (told["spent"], told["period_end_timestamp_seconds"]) == (10, 1_700_006_400)
    clock[0] = 1_700_006_400_000
    told = scrape(http).of_budget("tenant:rival")
    assert (told["spent"], told["period_end_timestamp_seconds"]) == (0, 1_700_049_600)


def test_requests_by_operation_and_code_and_how_long_they_took(http):
    for _ in range(3):
        http("POST", "/v1/reservations", asking(10))
    http("POST", "/v1/reservations", asking(10**9))
    http("POST", "/v1/decide", b"{")
    told = scrape(http)
    assert told("http_requests_total", operation="create_reservation", status="200", code="") == 3
    assert told("http_requests_total", operation="create_reservation", status="409", code="BUDGET_EXCEEDED") == 1
    assert told("http_requests_total", operation="decide", status="400", code="INVALID_REQUEST") == 1
    name = "http_request_duration_seconds"
    assert told(name + "_count", operation="create_reservation") == 4
    assert told(name + "_bucket", operation="create_reservation", le="+Inf") == 4
    assert 0 < told(name + "_sum", operation="create_reservation") < 60
    assert scrape(http)("http_requests_total", operation="metrics", status="200", code="") == 1


def test_reservations_that_live_and_those_past_their_expiry(served, http, clock):
    for grace in (0, 60_000):
        http("POST", "/v1/reservations", asking(10, ttl_ms=1000, grace_period_ms=grace))
    http("POST", "/v1/reservations", asking(10, ttl_ms=120_000))
    released = http("POST", "/v1/reservations", asking(10)).data["reservation_id"]
    http("POST", f"/v1/reservations/{released}/release", keyed())

    def counts():
        told = scrape(http)
        return told("reservations_live"), told("reservations_past_expiry"), told.of_budget("tenant:acme")["reserved"]

    assert counts() == (3, 0, 30)
    clock[0] += 1000
    assert counts() == (3, 0, 30)
    clock[0] += 1
    assert counts() == (2, 1, 20), "the one without grace was freed, the other is within its own"
    clock[0] += 60_000
    assert counts() == (1, 0, 10)


def test_what_runs(http):
    told = scrape(http)
    assert told("build_info", version=cycles_lite.__version__, python=platform.python_version()) == 1


def test_budgets_that_are_deleted_between_scrapes_are_told_no_more(served, http):
    assert scrape(http).of_budget("tenant:rival")
    served.authority.delete_budget("tenant:rival")
    told = scrape(http)
    assert told.of_budget("tenant:rival") == {}
    assert told("budgets") == 2


def test_the_count_of_series_is_bounded_and_the_nearest_to_the_root_are_told(served, http, monkeypatch):
    """By default by a thousand budgets; by a few here."""
    monkeypatch.setattr(metrics, "MOST_BUDGETS", 5)
    with served.authority._ledger.writing() as (db, _):
        for number in range(50):
            rows.save_budget(db, rules.Budget(f"tenant:acme/agent:a{number:02}", "TOKENS", 1))
            rows.save_budget(db, rules.Budget(f"tenant:tenant-{number % 3}", "TOKENS", 1))
    told = scrape(http)
    scopes = [sample.labels["scope"] for sample in told.families["cycles_lite_budget_spent"].samples]
    assert scopes == ["tenant:acme", "tenant:rival", "tenant:tenant-0", "tenant:tenant-1", "tenant:tenant-2"]
    assert (told("budgets"), told("budgets_untold")) == (56, 51)


def test_what_clients_choose_makes_no_series(served, http):
    """Paths, methods, headers and bodies have quotes, newlines and backslashes; all of them are one series."""
    for number in range(20):
        http("GET", f"/no%22where%0A%5C{number}", X_Cycles_Trace_Id='"\\')
        http(f"BREW{number}", "/v1/decide")
    for number in range(3):
        raw(served.url, b'GET /"\\%d HTTP/1.1\r\nno colon\r\n\r\n' % number)
    assert http("GET", '/v1/balances?tenant=acme&cursor="%0A').status == 400
    told = scrape(http)
    series = [sample.labels for sample in told.families["cycles_lite_http_requests"].samples]
    operations = sorted({labels["operation"] for labels in series})
    assert operations == ["get_balances", "unknown"]
    assert told("http_requests_total", operation="unknown", status="404", code="NOT_FOUND") == 20
    assert told("http_requests_total", operation="unknown", status="405", code="INVALID_REQUEST") == 20
    assert told("http_requests_total", operation="unknown", status="400", code="INVALID_REQUEST") == 3


def test_labels_with_odd_characters_come_through(served, http):
    """No scope or code can have them; a file that another program has changed could."""
    odd = 'tenant:"a"\\n\n\\'
    with served.authority._ledger.writing() as (db, _):
        rows.save_budget(db, rules.Budget(odd, 'U"\n', 7))
    try:
        assert scrape(http).of_budget(odd, 'U"\n')["allocated"] == 7
    finally:
        with served.authority._ledger.writing() as (db, _):
            db.execute("DELETE FROM budgets WHERE allocated = 7")


def test_scrapers_that_ask_for_openmetrics_get_it(http):
    reply = http("GET", "/metrics", X_Admin_API_Key=ADMIN_KEY, Accept=OPENMETRICS)
    assert reply.headers["content-type"].startswith("application/openmetrics-text")
    told = Told(openmetrics.text_string_to_metric_families(reply.body.decode("utf-8")))
    assert told.of_budget("tenant:acme")["allocated"] == 1_000_000
    names = set(told.families)
    assert {name for name in names if not name.startswith("cycles_lite_")} == set()


@pytest.mark.parametrize(
    "accepted", ["text/plain;version=abc", "application/openmetrics-text;version=", "*/*", '"', ";"]
)
def test_an_odd_accept_header_is_answered_all_the_same(http, accepted):
    reply = http("GET", "/metrics", X_Admin_API_Key=ADMIN_KEY, Accept=accepted)
    assert (reply.status, b"cycles_lite_budgets 3.0\n" in reply.body) == (200, True)


def test_two_servers_in_a_process_count_for_themselves(served, tmp_path):
    (tmp_path / "other").mkdir()
    with serving(tmp_path / "other") as other:
        with Http(served.url, served.key) as one, Http(other.url, other.key) as two:
            one("POST", "/v1/reservations", asking(10))
            counted = {"operation": "create_reservation", "status": "200", "code": ""}
            assert scrape(one)("http_requests_total", **counted) == 1
            assert scrape(two)("http_requests_total", **counted) is None


def test_scrapes_while_others_write_see_sums_that_add_up(served, http):
    """A scrape is one snapshot: in each, what was spent is a whole number of commits, of all scopes alike."""
    faults = []
    bot = {"tenant": "acme", "agent": "bot"}

    def write():
        with Http(served.url, served.key) as mine:
            for _ in range(40):
                made = mine("POST", "/v1/reservations", asking(3, subject=bot)).data["reservation_id"]
                mine("POST", f"/v1/reservations/{made}/commit", committing(3))

    def look():
        with Http(served.url) as mine:
            while any(writer.is_alive() for writer in writers):
                told = scrape(mine)
                root, leaf = told.of_budget("tenant:acme"), told.of_budget("tenant:acme/agent:bot")
                if (root["spent"], root["reserved"]) != (leaf["spent"], leaf["reserved"]) or root["spent"] % 3:
                    faults.append((root, leaf))

    writers = [threading.Thread(target=write) for _ in range(3)]
    threads = [*writers, *(threading.Thread(target=look) for _ in range(3))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    assert scrape(http).of_budget("tenant:acme")["spent"] == 360


def test_a_file_that_cannot_be_used_is_a_500_and_the_server_goes_on(tmp_path):
    with serving(tmp_path) as served, Http(served.url) as http:
        (tmp_path / "budgets.db").rename(tmp_path / "moved.db")
        reply = http("GET", "/metrics", X_Admin_API_Key=ADMIN_KEY)
        assert (reply.status, reply.error) == (500, "INTERNAL_ERROR")
        (tmp_path / "moved.db").rename(tmp_path / "budgets.db")
        assert scrape(http)("http_requests_total", operation="metrics", status="500", code="INTERNAL_ERROR") == 1


# ---- Who may read it ----


@pytest.mark.parametrize("admin_key", [None, ADMIN_KEY])
@pytest.mark.parametrize("is_public", [False, True])
def test_who_may_read_it(tmp_path, admin_key, is_public):
    with serving(tmp_path, admin_key, public_metrics=is_public) as served, Http(served.url) as http:
        for is_right, headers in [
            (True, {"X-Admin-API-Key": ADMIN_KEY}),
            (True, {"Authorization": f"Bearer {ADMIN_KEY}"}),
            (True, {"Authorization": f"bearer  {ADMIN_KEY} "}),
            (False, {"X-Admin-API-Key": "wrong", "Authorization": f"Bearer {ADMIN_KEY}"}),
            (False, {"Authorization": f"Basic {ADMIN_KEY}"}),
            (False, {"Authorization": ADMIN_KEY}),
            (False, {"Authorization": "Bearer"}),
            (False, {"Authorization": "Bearer \u00e4"}),
            (False, {"X-Admin-API-Key": ""}),
            (False, {"X-Cycles-API-Key": ADMIN_KEY}),
            (False, {"X-Cycles-API-Key": served.key}),
            (False, {"X-Admin-API-Key": served.key}),
            (False, {}),
        ]:
            reply = http("GET", "/metrics", **headers)
            expected = 200 if is_public else 404 if admin_key is None else 200 if is_right else 401
            assert reply.status == expected, headers
            if expected != 200:
                assert reply.error == {401: "UNAUTHORIZED", 404: "NOT_FOUND"}[expected]
                assert b"cycles_lite_" not in reply.body


def test_only_get_is_possible(http):
    reply = http("POST", "/metrics", b"", X_Admin_API_Key=ADMIN_KEY)
    assert (reply.status, reply.headers["allow"]) == (405, "GET")


def test_serve_opens_it_with_an_option(tmp_path):
    """Also where a variable is set by which prometheus-client's own counters would be in files."""
    variables = {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path / "none")}
    with process(tmp_path, "--public-metrics", **variables) as server, Http(server.url) as http:
        http("GET", "/nowhere")
        reply = http("GET", "/metrics")
        told = Told(parser.text_string_to_metric_families(reply.body.decode("utf-8")))
        assert told("http_requests_total", operation="unknown", status="404", code="NOT_FOUND") == 1
        assert server.end()[:2] == (0, "")


@pytest.fixture
def without_prometheus(monkeypatch):
    """As if prometheus-client was not installed."""
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    monkeypatch.delitem(sys.modules, "cycles_lite.local.metrics")
    monkeypatch.delattr("cycles_lite.local.metrics")


def test_without_prometheus_client_the_admin_is_told_and_all_else_works(tmp_path, without_prometheus):
    with serving(tmp_path) as served, Http(served.url, served.key) as http:
        assert http("POST", "/v1/reservations", asking(10)).status == 200
        assert http("GET", "/metrics").status == 401
        reply = http("GET", "/metrics", X_Admin_API_Key=ADMIN_KEY)
        assert (reply.status, reply.error) == (404, "NOT_FOUND")
        assert "cycles_lite[server]" in reply.data["message"]


def test_without_prometheus_client_public_metrics_are_refused(tmp_path, without_prometheus):
    with Authority(f"sqlite:///{tmp_path}/budgets.db") as authority:
        with pytest.raises(ConfigError, match="prometheus-client"):
            Application(authority, public_metrics=True)
