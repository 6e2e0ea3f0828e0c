"""The configuration: from code and from the environment, every setting with what it takes and what it refuses."""

from __future__ import annotations

import copy
import dataclasses
import decimal
import enum
import os
import pathlib
import pickle
import sys
import typing
from urllib.parse import quote

import pytest
from hypothesis import given, strategies as st

from cycles_lite.client import CyclesClient
from cycles_lite.config import CyclesConfig
from cycles_lite.errors import ConfigError
from cycles_lite.local import Authority
from cycles_lite.protocol.models import EventCreateRequest
from cycles_lite.protocol.values import SUBJECT_LEVELS, Action, Amount

HTTP = {"base_url": "http://localhost:7878", "api_key": "cyc_live_key"}
SETTINGS = [field.name for field in dataclasses.fields(CyclesConfig)]
LEVELS = list(SUBJECT_LEVELS)
FLAGS = ["retry_enabled", "journal_enabled", "journal_fsync", "heartbeat"]
SECONDS = ["connect_timeout", "read_timeout"]
DELAYS = ["retry_initial_delay", "retry_max_delay"]
WAITS = [*DELAYS, "flush_timeout"]
COUNTS = {"retry_max_attempts": 999999999, "max_connections": 10000}
PATHS = ["journal_dir", "ca_certs"]


class Mode(str, enum.Enum):
    OFF = "off"


class Url(str, enum.Enum):
    LOCAL = "http://localhost:1"


def config(**changes):
    return CyclesConfig(**{**HTTP, **changes})


# ---- As a whole ----


def test_the_settings_and_their_defaults_are_those_of_the_design():
    made = config()
    assert dataclasses.asdict(made) == {
        **HTTP,
        **dict.fromkeys(LEVELS),
        "connect_timeout": 2.0,
        "read_timeout": 5.0,
        "retry_enabled": True,
        "retry_max_attempts": 5,
        "retry_initial_delay": 0.5,
        "retry_multiplier": 2.0,
        "retry_max_delay": 30.0,
        "flush_timeout": 2.0,
        "journal_enabled": True,
        "journal_dir": None,
        "journal_fsync": False,
        "heartbeat": True,
        "mode": "enforce",
        "on_unavailable": "raise",
        "max_connections": 16,
        "warn_below": 0.2,
        "ca_certs": None,
        "proxy": None,
    }
    assert {type(getattr(made, name)) for name in SECONDS + WAITS} == {float}


def test_a_configuration_is_frozen_equal_hashable_and_copies():
    made = config(tenant="acme", proxy="http://user:secret@proxy:3128", journal_dir="/tmp/j")
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.tenant = "other"
    for again in (copy.copy(made), copy.deepcopy(made), pickle.loads(pickle.dumps(made)), made.replace()):
        assert again == made
        assert hash(again) == hash(made)
        assert dataclasses.asdict(again) == dataclasses.asdict(made)
    assert config(tenant="acme") != made


@pytest.mark.skipif(sys.version_info < (3, 10), reason="older Pythons cannot read the annotations")
def test_its_annotations_can_be_read():
    """As command lines and settings libraries do that are made of a dataclass."""
    hints = typing.get_type_hints(CyclesConfig)
    assert (hints["mode"], hints["read_timeout"]) == (str, float)
    assert set(SETTINGS) <= set(hints)


def test_subject_defaults_are_the_levels_that_are_set_in_their_order():
    assert config().subject_defaults() == {}
    made = config(toolset="search", tenant="acme")
    assert list(made.subject_defaults().items()) == [("tenant", "acme"), ("toolset", "search")]


# ---- Each setting: what it takes (as text in a variable, or as a value), and what it refuses ----

#: setting, text, value
GOOD = [
    ("base_url", " http://localhost:7878/ ", "http://localhost:7878"),
    ("api_key", " key ", "key"),
    ("api_key", "\tcyc_live_!~#$%\n", "cyc_live_!~#$%"),
    *[(name, " acme ", "acme") for name in LEVELS],
    ("tenant", "x" * 128, "x" * 128),
    *[(name, text, value) for name in SECONDS for text, value in (("2", 2.0), (" 0.001 ", 0.001), ("600", 600.0))],
    *[(name, text, value) for name in WAITS for text, value in (("0", 0.0), ("1e1", 10.0), ("600", 600.0))],
    *[(name, "3600", 3600.0) for name in DELAYS],
    ("retry_multiplier", "1", 1.0),
    ("retry_multiplier", "100", 100.0),
    *[(name, text, int(text)) for name, most in COUNTS.items() for text in ("1", " 42 ", str(most))],
    *[(name, text, True) for name in FLAGS for text in ("1", "true", " TRUE ", "Yes", "on")],
    *[(name, text, False) for name in FLAGS for text in ("0", "false", " False ", "NO", "off")],
    *[(name, " /some/path ", "/some/path") for name in PATHS],
    ("mode", " Shadow ", "shadow"),
    ("mode", "enforce", "enforce"),
    ("mode", "off", "off"),
    ("on_unavailable", "ALLOW", "allow"),
    ("on_unavailable", "raise", "raise"),
    *[("warn_below", text, value) for text, value in ((" 20% ", 0.2), ("0.2", 0.2), ("100%", 1.0), ("12.5 %", 0.125))],
    *[("warn_below", text, None) for text in ("off", " OFF ")],
    ("proxy", " http://proxy:3128 ", "http://proxy:3128"),
    ("proxy", "HTTPS://user:p%40ss@proxy.example:1/", "HTTPS://user:p%40ss@proxy.example:1/"),
    ("proxy", "user:p@ss@proxy", "user:p@ss@proxy"),
    ("proxy", "proxy:3128", "proxy:3128"),
    ("proxy", "http://[::1]:3128", "http://[::1]:3128"),
]

NOT_SECONDS = ["abc", "1,5", "2s", "-1", "nan", "inf", "-inf", "3600.1", "1e300", "0x1", "--", "9" * 400]
NOT_A_COUNT = ["0", "-1", "1.5", "1e3", "abc", "1_000", "+1", "1000000000", "9" * 400, "\u0661"]
#: setting, texts that are refused, what the message says is expected
BAD = [
    ("api_key", ["a b", "a\x00b", "a\nb", "kéy", "\u00a0key\u200b", "a\x7f"], "visible ASCII characters"),
    *[(name, ["x" * 129, "a\x00b", "a\nb", "\x7f"], "a text of 1..128 characters") for name in LEVELS],
    *[(name, ["0", "0.0001", *NOT_SECONDS], "a number of seconds from 0.001 to 600") for name in SECONDS],
    ("flush_timeout", NOT_SECONDS, "a number of seconds from 0 to 600"),
    *[(name, NOT_SECONDS, "a number of seconds from 0 to 3600") for name in DELAYS],
    ("retry_multiplier", ["0", "0.99", "100.1", "abc", "nan", "inf"], "a number from 1 to 100"),
    *[(name, [*NOT_A_COUNT, str(most + 1)], f"a whole number from 1 to {most}") for name, most in COUNTS.items()],
    *[(name, ["2", "maybe", "truee", "t", "y", "-1", "1.0", "none"], "true or false") for name in FLAGS],
    ("mode", ["none", "enforced", "on", "of f", "true"], "one of enforce, shadow, off"),
    ("on_unavailable", ["deny", "allowed", "true"], "one of raise, allow"),
    (
        "warn_below",
        ["0", "0%", "20", "101%", "-1%", "1.1", "nan", "nan%", "inf", "%", "20%%", "% 20", "abc", "none", "9" * 400],
        "a part of a whole, such as 0.2 or 20%, above 0 and up to 1, or off",
    ),
    (
        "proxy",
        [
            "socks5://proxy:1080",
            "ftp://proxy",
            "http://",
            "http://user@",
            "http://proxy:0",
            "http://proxy:65536",
            "http://proxy:port",
            "http://proxy/path",
            "http://proxy?x=1",
            "http://pro xy",
            "http://[::1",
            "http://[:::]",
            "http://próxy",
            "://proxy",
        ],
        "an http or https URL",
    ),
]


def test_the_tables_here_know_every_setting():
    assert {setting for setting, _, _ in GOOD} == set(SETTINGS)
    assert {setting for setting, _, _ in BAD} | {"base_url", *PATHS} == set(SETTINGS)


@pytest.mark.parametrize("setting", SETTINGS)
def test_each_setting_is_read_from_its_variable_and_from_code(setting, monkeypatch):
    for name, text, value in GOOD:
        if name == setting:
            monkeypatch.setenv("CYCLES_BASE_URL", HTTP["base_url"])
            monkeypatch.setenv("CYCLES_API_KEY", HTTP["api_key"])
            monkeypatch.setenv("CYCLES_" + setting.upper(), text)
            for made in (CyclesConfig.from_env(), config(**{setting: text}), config(**{setting: value})):
                assert getattr(made, setting) == value
                assert type(getattr(made, setting)) is type(value)


@pytest.mark.parametrize(
    ("setting", "texts", "expected"), BAD, ids=lambda value: value if isinstance(value, str) else ""
)
def test_what_does_not_parse_is_named_with_its_variable_its_value_and_what_is_expected(setting, texts, expected):
    variable = "CYCLES_" + setting.upper()
    for text in texts:
        with pytest.raises(ConfigError) as from_code:
            config(**{setting: text})
        assert str(from_code.value).startswith(setting + ": ")
        if "\0" in text:  # no variable can hold that
            continue
        with pytest.MonkeyPatch.context() as environment:
            for name, value in {**HTTP, setting: text}.items():
                environment.setenv("CYCLES_" + name.upper(), value)
            with pytest.raises(ConfigError) as from_env:
                CyclesConfig.from_env()
        message = str(from_env.value)
        assert message.startswith(variable + ": ")
        assert f" is not {expected}" in message
        assert len(message) < 250
        if setting in ("api_key", "proxy"):
            assert "its value" in message
            assert repr(text) not in message
        else:
            assert repr(text)[:20] in message
        assert str(from_code.value) == message.replace(variable, setting)


@pytest.mark.parametrize(
    ("setting", "values"),
    [
        ("base_url", [None, 7, b"http://localhost", True, ["http://localhost"]]),
        ("api_key", [7, b"key", True, ["key"], "", " "]),
        *[(name, [7, b"acme", "", " ", True, ["acme"]]) for name in LEVELS],
        *[(name, [None, True, b"1", [1], {}, 1j, 10**400, float("nan"), float("inf")]) for name in SECONDS + WAITS],
        ("retry_multiplier", [None, True, b"2", 10**400]),
        *[(name, [None, True, 1.0, b"1", 10**9, 10**400, 0, -1, decimal.Decimal(1)]) for name in COUNTS],
        *[(name, [None, 1, 0, 1.0, b"true", [], ""]) for name in FLAGS],
        *[(name, [7, b"/path", "", " ", True]) for name in PATHS],
        ("mode", [None, 7, True, False, "", b"off", ["off"]]),
        ("on_unavailable", [None, 7, True, ""]),
        ("warn_below", [True, False, 0, 0.0, 20, b"20%", "", " ", [0.2], 1j, float("nan"), 10**400]),
        ("proxy", [7, b"http://proxy", "", " ", True]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_values_of_other_types_are_refused_in_code(setting, values):
    for value in values:
        with pytest.raises(ConfigError, match=rf"^{setting}(: | is not set)") as caught:
            config(**{setting: value})
        assert len(str(caught.value)) < 250


def test_numbers_of_other_kinds_are_fine_in_code():
    assert config(read_timeout=1).read_timeout == 1.0
    assert config(read_timeout=decimal.Decimal("1.5")).read_timeout == 1.5
    assert config(journal_dir=pathlib.Path("/some/path")).journal_dir == str(pathlib.Path("/some/path"))


def test_members_of_an_enumeration_of_strings_are_their_values():
    made = config(base_url=Url.LOCAL, mode=Mode.OFF, tenant=Mode.OFF)
    assert (made.base_url, made.mode, made.tenant) == ("http://localhost:1", "off", "off")
    assert {type(value) for value in (made.base_url, made.mode, made.tenant)} == {str}


@given(st.floats(0.001, 600.0))
def test_any_legal_number_of_seconds_is_taken_exactly(seconds):
    assert config(connect_timeout=seconds).connect_timeout == seconds
    assert config(connect_timeout=repr(seconds)).connect_timeout == seconds


@pytest.mark.parametrize("name", SECONDS + WAITS)
@pytest.mark.parametrize("value", ["5000", 5000, 30_000.0, 10**6, float("inf")])
def test_milliseconds_are_no_seconds(name, value):
    with pytest.raises(ConfigError, match=rf"^{name}: .+ is not a number of seconds .+: seconds, not milliseconds$"):
        config(**{name: value})


class Index:
    """Integer-like, as numpy's integers are."""

    def __index__(self):
        return 7


@pytest.mark.parametrize("name", COUNTS)
def test_whatever_has_an_index_counts(name):
    made = getattr(config(**{name: Index()}), name)
    assert (made, type(made)) == (7, int)


class Proxy:
    """As flask's `request` outside of one: every look at it raises, `isinstance` included."""

    @property
    def __class__(self):
        raise RuntimeError("working outside of request context")

    __str__ = __repr__ = __float__ = __index__ = __eq__ = __hash__ = __class__.fget


@pytest.mark.parametrize("name", SETTINGS)
def test_a_value_that_raises_when_it_is_looked_at_is_refused(name):
    with pytest.raises(ConfigError, match=rf"^{name}: "):
        config(**{name: Proxy()})


# ---- Paths ----


@pytest.mark.parametrize("name", PATHS)
def test_a_relative_path_stays_where_it_was_meant(name, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CYCLES_" + name.upper(), "some/../some/path")
    made = [config(**{name: "some/path"}), config(**{name: pathlib.Path("some/path")}), CyclesConfig.from_env(**HTTP)]
    monkeypatch.chdir("elsewhere")
    for one in (*made, *[one.replace(tenant="acme") for one in made]):
        assert getattr(one, name) == str(tmp_path / "some" / "path")


@pytest.mark.parametrize("name", PATHS)
def test_a_home_is_found_when_the_configuration_is_made(name, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    made = config(**{name: "~/path"})
    monkeypatch.setenv("HOME", "/elsewhere")
    assert getattr(made.replace(), name) == str(tmp_path / "path")
    with pytest.raises(ConfigError, match=rf"^{name}: '~nobody-of-that-name/x' is not usable: that home folder is not"):
        config(**{name: "~nobody-of-that-name/x"})
    monkeypatch.chdir(tmp_path)
    assert getattr(config(**{name: "./~x"}), name) == str(tmp_path / "~x")


@pytest.mark.skipif(os.name == "nt", reason="Windows keeps a current folder")
@pytest.mark.parametrize("name", PATHS)
def test_a_deleted_current_folder_is_told(name, tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert getattr(config(**{name: "/some/path"}), name) == "/some/path"
    monkeypatch.setenv("CYCLES_" + name.upper(), "path")
    with pytest.raises(ConfigError, match=r"^base_url: 'sqlite:b.db' is not usable: the current folder is deleted"):
        CyclesConfig(base_url="sqlite:b.db")
    for make, what in ((lambda: config(**{name: "path"}), name), (lambda: CyclesConfig.from_env(**HTTP), "CYCLES_")):
        with pytest.raises(ConfigError, match=rf"^{what}.*: 'path' is not usable: the current folder is deleted"):
            make()


def test_a_relative_budget_file_stays_where_it_was_meant(tmp_path, monkeypatch):
    """Also where folder and file have names that a URL has to quote; and no two folders' files are the same."""
    folders = [tmp_path / "a b%41ü", tmp_path / "other"]
    made = []
    for folder in folders:
        folder.mkdir()
        monkeypatch.chdir(folder)
        with Authority("sqlite:bud%20gets.db") as authority:
            authority.set_budget("tenant:acme", Amount.tokens(10))
        monkeypatch.setenv("CYCLES_BASE_URL", "sqlite:bud%20gets.db")
        made.append(CyclesConfig.from_env(tenant="acme"))
    monkeypatch.chdir("/")
    assert made[0].base_url != made[1].base_url
    for one, folder in zip(made, folders):
        with CyclesClient(pickle.loads(pickle.dumps(one))) as client:
            client.create_event(EventCreateRequest(Action("kind", "name"), Amount.tokens(3)))
        with Authority(f"sqlite:///{quote(str(folder))}/bud gets.db") as authority:
            assert [budget.spent for budget in authority.budgets()] == [3]


def test_a_relative_budget_file_below_the_root_has_no_slash_too_many(monkeypatch):
    monkeypatch.chdir("/")
    assert CyclesConfig(base_url="sqlite:budgets.db").base_url == "sqlite:///budgets.db"


# ---- URLs ----


@pytest.mark.parametrize(
    ("given_url", "url"),
    [
        ("http://localhost", "http://localhost"),
        ("http://localhost/", "http://localhost"),
        ("http://localhost///", "http://localhost"),
        (" \thttp://localhost:7878\n", "http://localhost:7878"),
        ("HTTP://LocalHost:7878", "http://LocalHost:7878"),
        ("HttpS://example.com", "https://example.com"),
        ("http://h:1", "http://h:1"),
        ("http://h:65535", "http://h:65535"),
        ("http://h:080", "http://h:080"),
        ("http://127.0.0.1:7878", "http://127.0.0.1:7878"),
        ("http://[::1]", "http://[::1]"),
        ("http://[::1]:7878/", "http://[::1]:7878"),
        ("http://[2001:db8::1]:7878/cycles/", "http://[2001:db8::1]:7878/cycles"),
        ("http://[::ffff:127.0.0.1]", "http://[::ffff:127.0.0.1]"),
        ("https://example.com/a/b", "https://example.com/a/b"),
        ("https://example.com/a//b/", "https://example.com/a//b"),
        ("https://example.com/%20/é:@", "https://example.com/%20/é:@"),
        ("https://xn--bcher-kva.example", "https://xn--bcher-kva.example"),
        ("sqlite:///abs/budgets.db", "sqlite:///abs/budgets.db"),
        ("sqlite:/abs/budgets.db", "sqlite:/abs/budgets.db"),
        ("sqlite:budgets.db", "sqlite:///current%20folder/budgets.db"),
        ("sqlite:./a b/é@x.db", "sqlite:///current%20folder/./a b/é@x.db"),
        ("SQLite:Budgets.db?synchronous=full", "sqlite:///current%20folder/Budgets.db?synchronous=full"),
        ("sqlite://", "sqlite://"),
        ("sqlite://?synchronous=full", "sqlite://?synchronous=full"),
        ("sqlite:///abs/budgets.db?synchronous=full", "sqlite:///abs/budgets.db?synchronous=full"),
        (" sqlite:rel/ ", "sqlite:///current%20folder/rel/"),
    ],
)
def test_urls_that_are_taken(given_url, url, monkeypatch):
    monkeypatch.setattr(os, "getcwd", lambda: "/current folder")
    made = CyclesConfig(base_url=given_url, api_key="key")
    assert made.base_url == url
    assert made.is_local is url.startswith("sqlite:")
    assert made.replace().base_url == url


NO_SCHEME = "a URL with a scheme: http://..., https://... or sqlite:..."
UNKNOWN_SCHEME = "a URL of a known scheme: http, https or sqlite"
NO_HOST = "a URL with a host, and without query, fragment or blanks"
NO_ADDRESS = "a URL with a host in ASCII, and where it names a port, one of 1..65535"
NO_FILE = "a file's URL: sqlite:///absolute/path, sqlite:relative/path or sqlite:// (memory)"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("", NO_SCHEME),
        (" ", NO_SCHEME),
        ("localhost", NO_SCHEME),
        ("localhost:7878", NO_SCHEME),
        ("example.com:7878/path", NO_SCHEME),
        ("127.0.0.1:7878", NO_SCHEME),
        ("//localhost", NO_SCHEME),
        ("/var/lib/budgets.db", NO_SCHEME),
        ("budgets.db", NO_SCHEME),
        ("://localhost", UNKNOWN_SCHEME),
        ("ftp://localhost", UNKNOWN_SCHEME),
        ("redis://localhost:6379", UNKNOWN_SCHEME),
        ("httpss://localhost", UNKNOWN_SCHEME),
        ("http:", NO_HOST),
        ("http:localhost", NO_HOST),
        ("http:/localhost", NO_HOST),
        ("http://", NO_HOST),
        ("http:///", NO_HOST),
        ("http:///path", NO_HOST),
        ("http://?x=1", NO_HOST),
        ("http://localhost?x=1", NO_HOST),
        ("http://localhost/path?x=1", NO_HOST),
        ("http://localhost/?", NO_HOST),
        ("http://localhost#top", NO_HOST),
        ("http://localhost/#", NO_HOST),
        ("http://local host", NO_HOST),
        ("http://localhost/a b", NO_HOST),
        ("http://localhost/a\tb", NO_HOST),
        ("http://local\nhost", NO_HOST),
        ("http://local\x00host", NO_HOST),
        ("http://localhost/\x7f", NO_HOST),
        ("http://localhost/a\u00a0b", NO_HOST),
        ("http://localhost/\udcff", NO_HOST),
        ("http://local\\host", NO_HOST),
        ("http://localhost\\path", NO_HOST),
        ("http://:7878", NO_ADDRESS),
        ("http://localhost:", NO_ADDRESS),
        ("http://localhost:0", NO_ADDRESS),
        ("http://localhost:65536", NO_ADDRESS),
        ("http://localhost:100000", NO_ADDRESS),
        ("http://localhost:-1", NO_ADDRESS),
        ("http://localhost:port", NO_ADDRESS),
        ("http://localhost:7878:1", NO_ADDRESS),
        ("http://localhost:\u0661", NO_ADDRESS),
        ("http://::1", NO_ADDRESS),
        ("http://::1:7878", NO_ADDRESS),
        ("http://[::1", NO_ADDRESS),
        ("http://::1]", NO_ADDRESS),
        ("http://[]", NO_ADDRESS),
        ("http://[:::]", NO_ADDRESS),
        ("http://[1.2.3.4]", NO_ADDRESS),
        ("http://[localhost]", NO_ADDRESS),
        ("http://[::1]x", NO_ADDRESS),
        ("http://bücher.example", NO_ADDRESS),
        ("sqlite:", NO_FILE),
        ("sqlite:?synchronous=full", NO_FILE),
        ("sqlite://relative/budgets.db", NO_FILE),
        ("sqlite://localhost", NO_FILE),
    ],
    ids=ascii,
)
def test_urls_that_are_refused(url, expected):
    with pytest.raises(ConfigError) as caught:
        config(base_url=url)
    assert str(caught.value) == f"base_url: {url!r} is not {expected}"
    str(caught.value).encode("utf-8")


def test_a_url_with_credentials_is_told_where_they_go():
    for url in ("http://user:hunter2@localhost", "https://hunter2@[::1]:7878/path"):
        with pytest.raises(ConfigError, match=r"without a user name or password in it; the key goes to api_key$"):
            config(base_url=url)


@pytest.mark.parametrize(
    "url",
    [
        "http://user:hunter2@localhost",
        "http://hunter2@localhost:7878/path",
        "https://user:hunter2@[::1]",
        "http://user:hunter2/@localhost",
        "http://user:hunter2?@localhost",
        "http://user:hunter2#@localhost",
        "http://user:hunter2 @localhost",
        "http://user:hunter2@",
        "http://@hunter2@localhost",
        "ftp://user:hunter2@localhost",
        "user:hunter2@localhost",
    ],
)
def test_credentials_in_a_url_are_refused_and_not_shown(url, monkeypatch):
    with pytest.raises(ConfigError, match=r"^base_url: its value is not a URL") as caught:
        config(base_url=url)
    assert "hunter2" not in repr(caught.value)
    for mistake in ({}, {"api_key": None}, {"api_key": "a b"}):
        with pytest.raises(ConfigError) as caught:
            CyclesConfig.from_env(base_url=url, **mistake)
        assert "hunter2" not in repr(caught.value)
    monkeypatch.setenv("CYCLES_BASE_URL", url)
    with pytest.raises(ConfigError, match=r"^CYCLES_BASE_URL: its value is not a URL") as caught:
        CyclesConfig.from_env()
    assert "hunter2" not in repr(caught.value)


# ---- Secrets ----


@pytest.mark.parametrize("setting", ["base_url", "mode", "read_timeout", "journal_enabled"])
def test_a_key_that_was_taken_for_another_setting_is_not_shown(setting, monkeypatch):
    monkeypatch.setenv("CYCLES_" + setting.upper(), "cyc_live_hunter2 ")
    with pytest.raises(ConfigError, match=rf"^CYCLES_{setting.upper()}: its value is not ") as caught:
        CyclesConfig.from_env(**{name: value for name, value in HTTP.items() if name != setting})
    assert "hunter2" not in repr(caught.value)


def chain(error):
    """The error, and what a traceback would show before it."""
    while error is not None:
        yield repr(error) + str(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def test_a_repr_shows_neither_the_key_nor_the_proxys_password():
    made = config(api_key="cyc_live_hunter2", proxy="http://user:hunter3@proxy:3128", tenant="acme")
    for text in (repr(made), str(made), f"{made}"):
        assert "hunter2" not in text
        assert "hunter3" not in text
        assert "tenant='acme'" in text
        assert "base_url='http://localhost:7878'" in text


@pytest.mark.parametrize(
    "changes",
    [
        {"api_key": "hunter2\x00"},
        {"api_key": "hunter2 hunter2"},
        {"api_key": "hunter2\u00e9"},
        {"api_key": b"hunter2"},
        {"api_key": ["hunter2"]},
        {"proxy": "socks5://user:hunter2@proxy"},
        {"proxy": "http://user:hunter2@"},
        {"proxy": b"http://user:hunter2@proxy"},
        {"proxy": "hunter2 hunter2"},
    ],
    ids=ascii,
)
def test_no_error_shows_the_key_or_the_proxys_password(changes):
    """Nor does the traceback's chain, nor a pickle of the error."""
    (setting,) = changes
    with pytest.raises(ConfigError, match=rf"^{setting}: its value is not ") as caught:
        config(**changes)
    assert not any("hunter2" in text for text in chain(caught.value))
    assert b"hunter2" not in pickle.dumps(caught.value)
    with pytest.raises(ConfigError) as caught:
        config().replace(**changes)
    assert not any("hunter2" in text for text in chain(caught.value))


def test_other_mistakes_show_no_key_either():
    for changes in (
        {"mode": "x"},
        {"base_url": None},
        {"base_url": "x"},
        {"read_timeout": "x"},
        {"max_connections": 0},
    ):
        with pytest.raises(ConfigError) as caught:
            config(api_key="hunter2", **changes)
        assert not any("hunter2" in text for text in chain(caught.value))


# ---- What must be set ----


def test_a_url_must_be_set():
    with pytest.raises(ConfigError) as caught:
        CyclesConfig()
    assert str(caught.value) == "base_url is not set: the URL of a server, or of a budget file (sqlite:...)"
    with pytest.raises(ConfigError) as caught:
        CyclesConfig.from_env()
    assert str(caught.value) == "CYCLES_BASE_URL is not set: the URL of a server, or of a budget file (sqlite:...)"


def test_a_server_needs_a_key(monkeypatch):
    with pytest.raises(ConfigError) as caught:
        CyclesConfig(base_url="http://localhost/")
    assert str(caught.value) == "api_key is not set: http://localhost needs one"
    monkeypatch.setenv("BILLING_BASE_URL", "https://localhost/prefix/")
    with pytest.raises(ConfigError) as caught:
        CyclesConfig.from_env("BILLING_")
    assert str(caught.value) == "BILLING_API_KEY is not set: https://localhost/prefix needs one"


def test_a_file_needs_no_key():
    assert CyclesConfig(base_url="sqlite:budgets.db").api_key is None
    assert CyclesConfig.from_env(base_url=" SQLITE:budgets.db").api_key is None
    assert CyclesConfig(base_url="sqlite:budgets.db", api_key="key").api_key == "key"


@pytest.mark.parametrize("mode", ["off", " OFF\n"])
def test_nothing_must_be_set_where_nothing_is_asked(mode, monkeypatch):
    assert CyclesConfig(mode=mode).base_url is None
    assert CyclesConfig(mode=mode, base_url="http://localhost").api_key is None
    assert CyclesConfig.from_env(mode=mode).mode == "off"
    monkeypatch.setenv("CYCLES_MODE", mode)
    assert CyclesConfig.from_env().mode == "off"
    with pytest.raises(ConfigError, match=r"^CYCLES_BASE_URL is not set"):
        CyclesConfig.from_env(mode="enforce")
    assert not CyclesConfig(mode="off").is_local


def test_off_is_no_excuse_for_a_value_that_does_not_parse():
    with pytest.raises(ConfigError, match=r"^base_url: "):
        CyclesConfig(mode="off", base_url="localhost")
    with pytest.raises(ConfigError, match=r"^read_timeout: "):
        CyclesConfig(mode="off", read_timeout="x")


@pytest.mark.parametrize("mode", ["enforce", "shadow"])
def test_the_other_modes_need_both(mode):
    with pytest.raises(ConfigError, match=r"^base_url is not set"):
        CyclesConfig(mode=mode)
    with pytest.raises(ConfigError, match=r"^api_key is not set"):
        CyclesConfig(mode=mode, base_url="http://localhost")


# ---- The environment ----


@pytest.fixture
def environment(monkeypatch):
    for name, value in HTTP.items():
        monkeypatch.setenv("CYCLES_" + name.upper(), value)
    return monkeypatch


@pytest.mark.parametrize("blank", ["", " ", "\t\n"], ids=ascii)
def test_blank_variables_are_unset(environment, blank):
    for setting in set(SETTINGS) - set(HTTP):
        environment.setenv("CYCLES_" + setting.upper(), blank)
    assert CyclesConfig.from_env() == config()
    for setting in ("api_key", "base_url"):
        environment.setenv("CYCLES_" + setting.upper(), blank)
        with pytest.raises(ConfigError, match=rf"^CYCLES_{setting.upper()} is not set: "):
            CyclesConfig.from_env()


def test_the_prefix_names_the_variables(environment):
    environment.setenv("BILLING_BASE_URL", "http://billing")
    environment.setenv("BILLING_API_KEY", "billing")
    environment.setenv("CYCLES_TENANT", "acme")
    made = CyclesConfig.from_env("BILLING_")
    assert (made.base_url, made.api_key, made.tenant) == ("http://billing", "billing", None)
    assert CyclesConfig.from_env().tenant == "acme"
    environment.setenv("BILLING_READ_TIMEOUT", "soon")
    with pytest.raises(ConfigError, match=r"^BILLING_READ_TIMEOUT: 'soon' is not a number of seconds"):
        CyclesConfig.from_env(prefix="BILLING_")


def test_changes_win_over_the_environment(environment):
    environment.setenv("CYCLES_TENANT", "acme")
    environment.setenv("CYCLES_READ_TIMEOUT", "soon")
    made = CyclesConfig.from_env(tenant=None, read_timeout=1, api_key=" other ")
    assert (made.tenant, made.read_timeout, made.api_key) == (None, 1.0, "other")


def test_what_is_wrong_with_a_change_is_said_by_the_settings_own_name(environment):
    with pytest.raises(ConfigError, match=r"^read_timeout: 'soon' is not a number of seconds"):
        CyclesConfig.from_env(read_timeout="soon")
    with pytest.raises(ConfigError, match=r"^mode: None is not one of"):
        CyclesConfig.from_env(mode=None)


def test_the_environment_is_read_at_each_call(environment):
    assert CyclesConfig.from_env().tenant is None
    environment.setenv("CYCLES_TENANT", "acme")
    assert CyclesConfig.from_env().tenant == "acme"


@pytest.mark.skipif(os.name == "nt", reason="bytes in the environment are of POSIX")
def test_bytes_in_the_environment_that_are_no_text_are_refused_readably(environment):
    environment.setitem(os.environb, b"CYCLES_TENANT", b"acme\xff")
    with pytest.raises(ConfigError, match=r"^CYCLES_TENANT: 'acme\\udcff' is not a text") as caught:
        CyclesConfig.from_env()
    str(caught.value).encode("utf-8")


@pytest.fixture
def warnings(environment, caplog):
    """What is logged, in a process that warned of nothing yet."""
    environment.setattr("cycles_lite.config.warned_of", set())
    return caplog


@pytest.mark.parametrize(
    ("variable", "meant"),
    [
        ("CYCLES_TENNANT", "CYCLES_TENANT"),
        ("CYCLES_TENANT_ID", "CYCLES_TENANT"),
        ("CYCLES_APIKEY", "CYCLES_API_KEY"),
        ("CYCLES_READ_TIMEOUT_MS", "CYCLES_READ_TIMEOUT"),
        ("CYCLES_ON_UNAVAILIBLE", "CYCLES_ON_UNAVAILABLE"),
        ("CYCLES_JOURNAL", None),
        # The official SDK's, under another name.
        ("CYCLES_RETRY_FLUSH_TIMEOUT", "CYCLES_FLUSH_TIMEOUT"),
        # Others that are known, and strangers.
        ("CYCLES_SERVE_API_KEY", None),
        ("CYCLES_SERVE_ADMIN_KEY", None),
        ("CYCLES_TEST_BASE_URL", None),
        ("CYCLES_TEST_API_KEY", None),
        ("CYCLES_", None),
        ("CYCLES_COLOUR", None),
        ("MY_CYCLES_TENNANT", None),
        ("cycles_tennant", None),
    ],
)
def test_a_variable_that_is_nearly_a_setting_is_warned_of_once(environment, warnings, variable, meant):
    """Never with its value, which may be a key."""
    environment.setenv(variable, "hunter2")
    for _ in range(3):
        assert CyclesConfig.from_env() == config()
    expected = [f"{variable} is set, which is no setting: did you mean {meant}?"] if meant else []
    assert [record.getMessage() for record in warnings.records] == expected
    assert {record.name for record in warnings.records} <= {"cycles_lite"}


def test_variables_are_doubted_by_their_prefix(environment, warnings):
    environment.setenv("BILLING_TENNANT", "acme")
    environment.setenv("CYCLES_TENNANT", "acme")
    for prefix in ("BILLING_", ""):
        CyclesConfig.from_env(prefix, **HTTP)
    assert [record.getMessage() for record in warnings.records] == [
        "BILLING_TENNANT is set, which is no setting: did you mean BILLING_TENANT?"
    ]


def test_a_key_that_is_missing_because_of_its_spelling_is_warned_of_first(environment, warnings):
    environment.setenv("CYCLES_APIKEY", environment.delenv("CYCLES_API_KEY") or "key")
    with pytest.raises(ConfigError, match=r"^CYCLES_API_KEY is not set"):
        CyclesConfig.from_env()
    assert "did you mean CYCLES_API_KEY?" in warnings.text


# ---- Changes ----


def test_replace_changes_what_it_names_and_checks_it():
    made = config(tenant="acme", read_timeout=1)
    assert made.replace(tenant="other", api_key=" key ") == config(tenant="other", read_timeout=1, api_key="key")
    assert made == config(tenant="acme", read_timeout=1)
    assert made.replace(tenant=None).tenant is None
    with pytest.raises(ConfigError, match=r"^read_timeout: 0 is not a number of seconds"):
        made.replace(read_timeout=0)
    with pytest.raises(ConfigError, match=r"^api_key is not set"):
        made.replace(api_key=None)
    assert made.replace(api_key=None, mode="off").mode == "off"


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("timeout", None),
        ("CYCLES_TENANT", None),
        ("is_local", None),
        ("", None),
        ("tennant", "tenant"),
        ("read_timeout_ms", "read_timeout"),
        ("retry_flush_timeout", "flush_timeout"),
    ],
)
def test_unknown_settings_are_refused_and_what_was_meant_is_named(name, meant):
    message = f"{name} is not a setting" + (f": did you mean {meant}?" if meant else "")
    for make in (config().replace, CyclesConfig.from_env):
        with pytest.raises(ConfigError) as caught:
            make(**{name: 1})
        assert str(caught.value) == message
    with pytest.raises(TypeError):
        CyclesConfig(**{**HTTP, name: 1})


def test_a_copy_is_of_the_same_class_and_leaves_what_is_no_setting():
    class Ours(CyclesConfig):
        pass

    config = Ours(base_url="http://127.0.0.1:1", api_key="key", tenant="acme")
    config.__dict__["note"] = "as functools.cached_property keeps its value"
    copied = config.replace(tenant="globex")
    assert type(copied) is Ours
    assert (copied.tenant, copied.base_url) == ("globex", config.base_url)
    assert "note" not in copied.__dict__
