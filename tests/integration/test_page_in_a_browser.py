"""The page at `/`, in a real browser: what a person sees, does and is told."""

from __future__ import annotations

import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from browser import PLAIN_HOST, chromium, looking
from serving import Http, asking, command_line, committing, event, kept_port, keyed, serving

from cycles_lite import Amount
from cycles_lite.local import Authority
from cycles_lite.local.page import Page

INT64_MAX = 2**63 - 1
MINUS = "\N{MINUS SIGN}"
DAY = 24 * 3600 * 1000
MARKUP = "<img src=x onerror=\"document.title='hacked'\"><script>document.title='hacked'</script>"


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.fixture
def page(driver):
    """Somebody in a new tab."""
    with looking(driver) as page:
        yield page


@pytest.fixture
def served(tmp_path):
    with serving(tmp_path) as served:
        yield served


def send(served, path, body, status=200, key=None):
    with Http(served.url, key or served.key) as http:
        reply = http("POST", path, body)
        assert reply.status == status, reply
        return reply.data


def reserve(served, amount=100, status=200, **fields):
    return send(served, "/v1/reservations", asking(amount, **fields), status).get("reservation_id")


# ---- What it shows ----


def test_budgets_are_a_tree_in_the_units_that_people_use(served, page):
    served.authority.set_budget("tenant:acme", Amount.usd("20"))
    served.authority.set_budget("tenant:acme/workspace:prod/agent:deep", Amount.risk_points(INT64_MAX - 1))
    served.authority.set_budget("tenant:acme/workspace:prod/agent:small", Amount.usd("0.00001234"))
    served.authority.set_budget("tenant:rival/agent:secret", Amount.tokens(4711))
    page.open(served.url, served.key)
    page.sees(
        "Budgets of acme", "1,000,000 tokens left of 1,000,000 tokens", "$20.00 left of $20.00", "$0.00001234 left"
    )
    page.sees("9,223,372,036,854,775,806 risk points left of 9,223,372,036,854,775,806 risk points")
    for text in ("rival", "4,711"):
        assert text not in page.text()
    (root,) = page.all("#budgets > .scope")
    assert [one.text.split("\n")[0] for one in page.all("#budgets > .scope > .tree > .scope")] == [
        "agent:bot",
        "workspace:prod/agent:deep",
        "workspace:prod/agent:small",
    ]
    assert len(root.find_elements("css selector", ":scope > .budgets > .budget")) == 2


def test_it_looks_again_by_itself_and_shows_what_has_moved(served, page):
    page.open(served.url, served.key)
    page.sees("Nothing is reserved at the moment", "Nothing has changed", "1,000 tokens left of 1,000 tokens")
    subject = {"tenant": "acme", "agent": "bot"}
    kept = reserve(served, 250, subject=subject, ttl_ms=600_000)
    settled = reserve(served, 300, subject=subject)
    send(served, f"/v1/reservations/{settled}/commit", committing(120))
    returned = reserve(served, 77, subject=subject)
    send(served, f"/v1/reservations/{returned}/release", keyed())
    page.sees("630 tokens left of 1,000 tokens", within="#budgets")  # nobody has asked it to
    page.sees("spent 120 tokens", "reserved 250 tokens", within="#budgets")
    page.sees(
        "reserved 250 tokens", "spent 120 tokens", "released 77 tokens", "llm.completion gpt-4o", within="#changes"
    )
    page.sees(f"agent:bot spent +120 tokens, reserved +250 tokens, left {MINUS}370 tokens", within="#moves")
    (row,) = page.all("#reservations tr")
    told = " ".join(row.text.split())
    assert re.search(rf"{kept} tenant:acme/agent:bot 250 tokens (\d min )?\d+ s in (\d min \d+ s|10 min 0 s)\Z", told)
    widths = [
        page.js(f"return document.querySelectorAll('.bar .{part}')[1].style.width") for part in ("spent", "reserved")
    ]
    assert widths == ["12%", "25%"]
    send(served, f"/v1/reservations/{kept}/release", keyed())
    page.look_again()
    page.sees("Nothing is reserved at the moment")
    page.js("shown.at -= 60001")
    page.look_again()
    assert page.text("#moves") == "", "what moved while nobody looked was perhaps not in the last minute"


def test_a_denial_is_seen_and_why_the_next_one_comes(served, page):
    subject = {"tenant": "acme", "agent": "bot"}
    send(served, "/v1/events", event(900, subject=subject), 201)
    page.open(served.url, served.key)
    page.sees("100 tokens left of 1,000 tokens running low")
    assert "denied" not in page.text()
    reserve(served, 101, 409, subject=subject)
    page.look_again()
    page.sees("denied 101 tokens asked, 100 tokens left (BUDGET_EXCEEDED) tenant:acme/agent:bot", within="#changes")
    send(served, "/v1/events", event(150, subject=subject, overage_policy="ALLOW_IF_AVAILABLE"), 201)
    page.look_again()
    page.sees("0 tokens left of 1,000 tokens over limit", "It takes no new reservation until it is funded.")
    served.authority.freeze("tenant:acme")
    page.look_again()
    page.sees("left of 1,000,000 tokens frozen", "It takes no new reservation until it is unfrozen.")


def test_debt_is_shown_as_such_and_what_remains_is_negative(served, page):
    scope, subject = "tenant:acme/app:mail", {"tenant": "acme", "app": "mail"}
    served.authority.set_budget(scope, Amount.usd("1"), overdraft_limit=Amount.usd("5"))
    spend = {"unit": "USD_MICROCENTS", "amount": 350_000_000}
    body = event(subject=subject, overage_policy="ALLOW_WITH_OVERDRAFT")
    send(served, "/v1/events", {**body, "actual": spend}, 201)
    page.open(served.url, served.key)
    page.sees(f"{MINUS}$2.50 left of $1.00 nothing left", "spent $1.00 debt $2.50", "New reservations are denied.")
    assert page.js("return document.querySelector('#budgets .limit:not([hidden])').style.left") == "28.571%"


def test_a_budget_starts_over(tmp_path, page):
    """The period that has ended becomes a column of the chart."""
    clock = Clock()
    with serving(tmp_path, clock=clock) as served:
        scope, subject = "tenant:acme/agent:daily", {"tenant": "acme", "agent": "daily"}
        served.authority.set_budget(scope, Amount.tokens(500), period="day")
        send(served, "/v1/events", event(320, subject=subject), 201)
        page.open(served.url, served.key)
        page.sees("180 tokens left of 500 tokens", "spent 320 tokens starts over in 12 h 0 min", within="#budgets")
        page.sees("agent:daily Starts over each day. Next on ", ", in 12 h 0 min", within="#periods")
        assert len(page.all("#periods svg g")) == 1
        clock.now += DAY
        page.look_again()
        page.sees("500 tokens left of 500 tokens", "spent 0 tokens starts over in 12 h 0 min", within="#budgets")
        page.sees(f"agent:daily spent {MINUS}320 tokens, left +320 tokens", within="#moves")
        page.one("#periods summary").click()
        closed, running = [row.text for row in page.all("#periods tbody tr")]
        assert closed.endswith(" 320 tokens 500 tokens")
        assert running.startswith("since ")
        assert running.endswith(" 0 tokens 500 tokens")
        columns = page.js(
            "return [...document.querySelectorAll('#periods svg g .spent')].map((one) => one.height.baseVal.value)"
        )
        assert columns == [64, 0]


class Clock:
    """Noon in UTC, until the test moves it."""

    def __init__(self):
        self.now = 1_767_268_800_000  # 2026-01-01T12:00Z

    def __call__(self):
        return self.now


def test_more_than_fits_on_one_page_of_the_list(served, page):
    """Balances are all there; of the reservations, those that expire first."""
    for number in range(430):
        served.authority.set_budget(f"tenant:acme/agent:a{number:03}", Amount.tokens(number))
    for number in range(203):
        reserve(served, 1, ttl_ms=600_000 - number)
    page.open(served.url, served.key)
    page.sees("Live reservations 200 and more", "those that expire first are shown", "There was more")
    assert len(page.all("#budgets .scope")) == 432
    assert len(page.all("#reservations tr")) == 200


# ---- The key ----


def test_a_wrong_key_is_called_so_and_the_right_one_is_taken(served, page):
    page.open(served.url, "wrong")
    page.sees("The server does not take this key")
    assert page.focused == "key"
    assert page.one("#key").get_attribute("aria-invalid") == "true"
    assert not page.one("#ledger").is_displayed()
    page.give("with ä")
    page.sees("visible ASCII characters")
    page.give("")
    page.sees("Enter a key.")
    page.give(served.key)
    page.sees("Budgets of acme", "1,000,000 tokens")
    assert not page.one("#ask").is_displayed()


def test_who_would_send_the_key_in_the_clear_is_told_so(served, page):
    for url, is_told in ((served.url, False), (served.url.replace("127.0.0.1", PLAIN_HOST), True)):
        page.open(url)
        page.wait(lambda: page.one("#key").is_displayed())
        assert page.one("#plain").is_displayed() is is_told


def test_a_key_that_is_revoked_takes_what_it_showed_with_it(served, page):
    page.open(served.url, served.key)
    page.sees("1,000,000 tokens")
    for key in served.authority.keys():  # noqa: SIM118  # no dictionary
        served.authority.revoke_key(key.key_id)
    page.js("document.dispatchEvent(new Event('visibilitychange'))")
    page.sees("unknown, revoked or over")
    for text in ("acme", "1,000,000"):
        assert text not in page.driver.page_source
    assert page.js("return {...sessionStorage}") == {}


def test_the_key_is_in_the_tab_alone(tmp_path, page):
    """Not in the address, nor in what outlives the tab, nor in what the server writes; and forgotten when told so."""
    secret = "cyc_live_not_to_be_seen"
    command = ["serve", "--db", str(tmp_path / "budgets.db"), "--port", "0", "--tenant", "acme", "--api-key", secret]
    with command_line([*command, "--budget", "tenant:acme=TOKENS:100000"], tmp_path) as server:
        page.open(server.url, secret)
        page.sees("100,000 tokens")
        assert secret not in page.stored()
        assert page.js("return {...sessionStorage}") == {"cycles-api-key": secret}
        assert page.js("return document.querySelector('#key').value") == ""
        page.driver.refresh()
        page.sees("100,000 tokens")
        page.one("#forget").click()
        page.sees("API key of a tenant")
        assert page.focused == "key"
        assert page.js("return {...sessionStorage}") == {}
        page.driver.refresh()
        page.sees("API key of a tenant")
        log = "".join(map(str, server.end()))
    assert "GET /v1/balances 200" in log
    assert secret not in log


def test_a_browser_that_keeps_nothing_for_pages(served, page):
    refusing = (
        "Object.defineProperty(window, 'sessionStorage', {get() { throw new DOMException('', 'SecurityError'); }})"
    )
    page.driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": refusing})
    page.open(served.url, served.key)
    page.sees("1,000,000 tokens")


def test_a_second_key_is_asked_with_instead_of_the_first(served, page):
    """Also while what was asked with the first is not answered yet."""
    page.open(served.url)
    page.wait(lambda: page.one("#key").is_displayed())
    page.js(
        """
        for (const given of arguments) {
          document.getElementById("key").value = given;
          document.getElementById("ask").requestSubmit();
        }
        """,
        served.key,
        served.rival_key,
    )
    page.sees("Budgets of rival")


# ---- Texts from the ledger ----


def test_markup_is_text(served, page):
    kind = "<img src=x onerror=\"document.title='hacked'\">"
    action = {"kind": kind, "name": MARKUP, "tags": [kind]}
    reserve(served, action=action, idempotency_key=MARKUP, metadata={MARKUP: MARKUP})
    page.open(served.url, served.key)
    page.sees(f"{kind} {MARKUP} rsv_", within="#reservations")
    page.sees(f"reserved 100 tokens {kind} {MARKUP}", within="#changes")
    assert page.all("main img, main script") == []
    assert page.js("return document.title") == "Budgets"


def hostile(amount):
    """An answer to each of the page's questions, with markup wherever there is a text."""
    told = {"unit": MARKUP, "amount": amount}
    row = {"reservation_id": MARKUP, "action": {"kind": MARKUP, "name": MARKUP}, "reserved": told, "scope_path": MARKUP}
    row.update(status=MARKUP, created_at_ms=1000, expires_at_ms=10**30, committed=told, finalized_at_ms=1000)
    budget = {"scope": MARKUP, "scope_path": f"tenant:acme/{MARKUP}", "remaining": told, "allocated": told}
    period = {"scope": budget["scope_path"], "unit": MARKUP, "start_ms": 10**30, "end_ms": -(10**30)}
    amounts = {"allocated": amount, "spent": amount, "debt": amount}
    denied = {"age_ms": 1, "request_id": MARKUP, "code": MARKUP, "scope": MARKUP, "unit": MARKUP}
    return {
        "/v1/reservations": {"reservations": [row], "has_more": False},
        "/v1/balances": {"balances": [budget], "has_more": False},
        "/v1/budgets/periods": {
            "now_ms": 2000,
            "periods": [{**period, **amounts}],
            "running": [{**period, "period": MARKUP, "rollover_policy": MARKUP}],
            "states": [{"scope": budget["scope_path"], "unit": MARKUP, "status": MARKUP}],
            "denials": [{**denied, "requested": amount, "remaining": amount}],
            "has_more": True,
        },
    }


class Peer:
    """A server of the page that answers whatever a test says, and notes what it is asked."""

    def __init__(self):
        self.url, self.answers, self.status, self.asked = "", {}, 200, []
        self.page = Page().document({})

    def answer(self, path):
        self.asked.append(path)
        if path == "/":
            return 200, self.page.headers, self.page.body
        found = self.answers.get(path.partition("?")[0], b"<h1>")
        body = found if isinstance(found, bytes) else json.dumps(found).encode()
        return self.status, {"content-type": "text/html", "x-cycles-tenant": MARKUP}, body


@pytest.fixture
def peer():
    peer = Peer()

    class Handler(BaseHTTPRequestHandler):
        timeout = 1  # browsers open connections for later

        def do_GET(self):
            status, headers, body = peer.answer(self.path)
            self.send_response(status)
            for name, value in {**headers, "content-length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *given):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        peer.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield peer
        server.shutdown()
        thread.join()


def test_markup_is_text_whoever_answers(peer, page):
    peer.answers = hostile(INT64_MAX)
    page.open(peer.url, "key")
    page.sees(MARKUP, f"9,223,372,036,854,775,807 {MARKUP} left of", "due")
    for place in ("#budgets", "#changes", "#reservations", "#periods", "#tenant"):
        assert MARKUP in page.text(place), place
    assert page.all("main img, main script") == []
    assert page.js("return document.title") == "Budgets"
    asked = page.js("""
        const [real, given] = [window.fetch, []];
        window.fetch = (...one) => { given.push(one); return real(...one); };
        for (let time = 0; time < 5; time += 1) refresh();
        window.fetch = real;
        return given.length;
    """)
    assert asked <= 1, "it asks one thing after the other, and does not begin while it is asking"


def test_however_many_budgets_there_are_a_look_asks_few_times(peer, page):
    answers = hostile(1)
    answers["/v1/balances"].update(has_more=True, next_cursor="next")
    peer.answers = answers
    page.open(peer.url, "key")
    page.sees("There are more budgets than are shown.")
    of_balances = [path for path in peer.asked if path.startswith("/v1/balances")]
    looks = sum("cursor=" not in path for path in of_balances)
    assert 5 * (looks - 1) < len(of_balances) <= 5 * looks


def test_an_answer_that_is_not_the_protocols_is_called_so(peer, page):
    for answers, said in [
        ({}, "What answers here is not a Cycles server."),
        (hostile(1.5), "The server's answer is not the protocol's."),
        (hostile(None), "The server's answer is not the protocol's."),
        ({**hostile(1), "/v1/balances": {}}, "The server's answer is not the protocol's."),
    ]:
        peer.answers = answers
        page.open(peer.url, "key")
        page.sees(said)
        page.js("forget()")
        page.complaints()  # what it made of the answer is in the console
    peer.answers, peer.status = hostile(1), 500
    page.open(peer.url, "key")
    page.sees("The server cannot tell at present (500).")
    peer.status = 403
    page.one("#again").click()
    page.sees("This key may not look at budgets (403).")


def test_the_policy_runs_nothing_else(served, page):
    """Whatever a mistake would have let into the document."""
    page.open(served.url)
    tried = """
        try { document.body.innerHTML = arguments[0]; return "taken"; } catch (error) { return error.name; }
    """
    assert page.js(tried, MARKUP) == "TypeError"
    assert page.js(tried.replace("body.innerHTML", "createElement('script').text"), "0") == "TypeError"
    page.js("""
        const image = document.createElement("img");
        image.src = "/actuator/health";
        document.body.append(image);
        const frame = document.createElement("iframe");
        frame.src = "/actuator/health";
        document.body.append(frame);
        fetch("http://127.0.0.2:9/").catch(() => document.body.classList.add("refused"));
    """)
    page.wait(lambda: page.all(".refused"))
    told = page.wait(lambda: page.js("return document.title") == "Budgets" and " ".join(map(str, page.complaints())))
    for directive in ("img-src", "default-src", "connect-src", "TrustedHTML", "TrustedScript"):
        assert directive in told, directive


# ---- A server that goes, and comes back ----


@contextmanager
def running_at(authority, port):
    server = pytest.importorskip("cycles_lite.local.server", reason="the extra [server] is not installed")
    with server.Server(authority, port=port) as made, made.in_background():
        yield made.url


def test_a_server_that_stops_and_comes_back(tmp_path, page):
    """What was seen last stays, and is called old; the page finds the server again by itself."""
    with kept_port() as port, Authority(f"sqlite:///{tmp_path}/budgets.db") as authority:
        authority.set_budget("tenant:acme", Amount.tokens(5000))
        key = authority.create_key("acme").key_secret
        with running_at(authority, port) as url:
            page.open(url, key)
            page.sees("5,000 tokens left")
            assert not page.one("#again").is_displayed()
        page.sees("The server does not answer. What you see is old, from ", within="#told")
        page.sees("5,000 tokens left", "Try now", "old, ")
        assert "live, " not in page.text()
        assert page.js("return document.body.className") == "is-old"
        assert page.one("#told").get_attribute("role") == "status"
        authority.set_budget("tenant:acme", Amount.tokens(6000))
        with running_at(authority, port):
            page.sees("6,000 tokens left")
            page.sees("The server answers again.", within="#told")
            assert not page.one("#again").is_displayed()
            assert page.js("return document.body.className") == ""


def test_in_a_tab_that_is_hidden_nothing_is_asked(tmp_path, page):
    asked = []
    with serving(tmp_path, listeners=[asked.append]) as served:
        page.open(served.url, served.key)
        page.sees("1,000,000 tokens")
        page.js("""
            Object.defineProperty(document, "hidden", {get: () => window.isHidden, configurable: true});
            window.isHidden = true;
            window.due = new Promise((done) => setTimeout(done, 3500));
        """)
        page.wait(lambda: page.js("return looking === null"))
        before = len(asked)
        page.driver.execute_async_script("window.due.then(arguments[0])")  # longer than it waits from look to look
        assert len(asked) == before
        page.js("window.isHidden = false")
        page.look_again()
        page.wait(lambda: len(asked) > before)


# ---- For everybody ----


def test_it_is_used_with_the_keyboard_alone(served, page):
    from selenium.webdriver.common.keys import Keys

    served.authority.set_budget("tenant:acme/workspace:prod", Amount.tokens(5))
    served.authority.set_budget("tenant:acme/workspace:prod/agent:deep", Amount.tokens(6))
    page.open(served.url)
    page.wait(lambda: page.focused == "key")
    page.press(served.key, Keys.TAB)
    assert page.focused == "Show budgets"
    page.press(Keys.ENTER)
    page.sees("agent:deep")
    seen = [page.focused]
    for _ in range(2):
        page.press(Keys.TAB)
        seen.append(page.focused)
    assert seen == ["What is left", "tenant:acme", "workspace:prod"]
    outline = "return getComputedStyle(document.activeElement).outlineStyle"
    assert page.js(outline) == "solid"
    page.press(Keys.SPACE)
    assert page.js("return document.activeElement.getAttribute('aria-expanded')") == "false"
    assert "agent:deep" not in page.text()
    served.authority.set_budget("tenant:acme/app:new", Amount.tokens(7))
    page.look_again()
    page.sees("app:new")
    assert page.focused == "workspace:prod", "the focus stays where it was"
    assert "agent:deep" not in page.text("#budgets"), "what was folded stays folded"
    page.press(Keys.ENTER)
    page.sees("agent:deep")
    for _ in range(2):
        page.press(Keys.SHIFT, Keys.TAB)
    page.press(Keys.NULL, Keys.ENTER)
    page.wait(lambda: page.focused == "key")


def test_on_a_narrow_screen_nothing_is_cut_off(served, page):
    name = "a" * 60 + "." + "b" * 60
    served.authority.set_budget(f"tenant:acme/workspace:{name}/agent:{name}", Amount.usd("92233720368.54775807"))
    reserve(served, action={"kind": "k" * 64, "name": "n" * 200})
    page.emulate(360)
    page.open(served.url)
    fits = "return document.documentElement.scrollWidth <= 360 && [...document.querySelectorAll('body *')].every("
    fits += "(one) => one.closest('thead') || one.getBoundingClientRect().right <= 360)"
    page.wait(lambda: page.one("#key").is_displayed())
    assert page.js(fits)
    page.give(served.key)
    page.sees("$92,233,720,368.54775807", "n" * 200)
    assert page.js(fits)


#: The contrast of each text with what is behind it, as WCAG 2 counts it.
CONTRASTS = """
    const channel = (value) => (value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
    const light = ([r, g, b]) => 0.2126 * channel(r / 255) + 0.7152 * channel(g / 255) + 0.0722 * channel(b / 255);
    const numbers = (color) => color.match(/[0-9.]+/g).map(Number);
    const behind = (one) => {
      for (let at = one; at; at = at.parentElement) {
        const color = numbers(getComputedStyle(at).backgroundColor);
        if (color.length === 3 || color[3] > 0) return color;
      }
      return null;
    };
    return [...document.querySelectorAll("body *")]
      .filter((one) => one.checkVisibility() && one.innerText && behind(one))
      .map((one) => {
        const [a, b] = [light(numbers(getComputedStyle(one).color)), light(behind(one))];
        return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), one.innerText];
      });
"""


def test_light_and_dark_can_both_be_read(served, page):
    subject = {"tenant": "acme", "agent": "bot"}
    send(served, "/v1/events", event(900, subject=subject), 201)
    papers = {}
    for scheme in ("light", "dark"):
        served.authority.unfreeze("tenant:acme")
        reserve(served, 101, 409, subject=subject)  # it is remembered for a minute
        served.authority.freeze("tenant:acme")
        page.emulate(prefers_color_scheme=scheme)
        page.open(served.url, served.key if not papers else None)
        page.sees("frozen", "running low", "BUDGET_EXCEEDED")
        papers[scheme] = page.js("return getComputedStyle(document.body).backgroundColor")
        contrasts = page.js(CONTRASTS)
        assert len(contrasts) > 20
        assert [found for found in contrasts if found[0] < 4.5] == []
    assert papers["light"] != papers["dark"]


def test_nothing_moves_for_those_who_do_not_want_that(served, page):
    page.open(served.url, served.key)
    page.sees("1,000,000 tokens")
    durations = {}
    for motion in ("reduce", "no-preference"):
        page.emulate(prefers_reduced_motion=motion)
        durations[motion] = page.js("return getComputedStyle(document.querySelector('.bar i')).transitionDuration")
    assert durations == {"reduce": "0s", "no-preference": "0.4s"}
