"""Odd environment variables: each makes a configuration, or a `ConfigError` that names it and not the key."""

from __future__ import annotations

import os

import pytest
from mutations import TEXTS, mutated_bytes
from peers import KEY

from cycles_lite import ConfigError, CyclesClient, CyclesConfig, CyclesError
from cycles_lite.config import doubtful_variables

SETTINGS = [entry.name.upper() for entry in CyclesConfig.layout()]

USUAL = {
    "BASE_URL": [
        "http://127.0.0.1:7878",
        "https://cycles.example/prefix/",
        "sqlite:rel.db",
        "sqlite:///tmp/x.db",
        "sqlite://",
    ],
    "API_KEY": [KEY],
    "MODE": ["enforce", "shadow", "off"],
    "ON_UNAVAILABLE": ["raise", "allow"],
    "PROXY": ["http://user:pass-word-1@127.0.0.1:3128", "127.0.0.1:80"],
    "JOURNAL_DIR": ["journal", "~/journal", "~nobody-here/x"],
    "CA_CERTS": ["certs.pem"],
}
NUMBERS = [
    "0",
    "1",
    "5",
    "0.5",
    "600",
    "601",
    "1e3",
    "-1",
    "nan",
    "inf",
    "-inf",
    "1_000",
    "0x10",
    "٣",
    " 5 ",
    "5s",
    "9" * 400,
]
FLAGS = ["true", "FALSE", "yes", "No", "on", "0", "1", "2", "enabled", "tru"]
URLS = [
    "http://", "http:///x", "http://[::1]:80", "http://[::1", "http://a b", "http://a:0", "http://a:65536", "http://a:b",
    "http://u:p@h", "HTTP://H", "ftp://h", "http:h", "//h", "http://h?q", "http://h#f", "http://h/%zz", "http://h\\x",
    "http://ex\u00e4mple", "sqlite:", "sqlite:/x", "sqlite:////x", "sqlite:x?synchronous=full", "sqlite:x?mode=ro",
    "sqlite:%00", "sqlite:%ff", "sqlite:///" + "x" * 5000, "http://" + "h" * 300, "http://h:80:80", "https://.", "http://-",
]  # fmt: skip


def value(random, name):
    made = random.choice(
        [
            random.choice(USUAL.get(name, TEXTS)),
            random.choice(NUMBERS),
            random.choice(FLAGS),
            random.choice(URLS),
            random.choice(TEXTS),
        ]
    )
    raw = made.encode("utf-8", "surrogatepass")
    if random.random() < 0.3:
        raw = mutated_bytes(random, raw)
    return os.fsdecode(raw.replace(b"\0", b""))


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_environment(fuzz, logged, monkeypatch):
    def check(case):
        random = case.random
        del logged[:]
        prefix = "CYCLES_" if random.random() < 0.9 else random.choice(["APP_", "", "X"])
        given = {"BASE_URL": "http://127.0.0.1:7878", "API_KEY": KEY}
        for _ in range(random.randint(1, 3)):
            name = random.choice(SETTINGS)
            given[name] = value(random, name)
        if random.random() < 0.1:
            given[random.choice(["RETRY_FLUSH_TIMEOUT", "BASE_UR", "TENNANT", "\u00e4", "X=Y"]).replace("=", "")] = "x"
        case.show(prefix=prefix, given=given)
        with monkeypatch.context() as patch:
            for name, text in given.items():
                patch.setenv(prefix + name, text)
            return outcome(prefix, given, logged)

    fuzz.run(check, short=400)


def outcome(prefix, given, logged):
    list(doubtful_variables(prefix))
    key = given["API_KEY"].strip()
    if any(key in text for name, text in given.items() if name != "API_KEY"):
        key = ""  # it is no secret
    try:
        config = CyclesConfig.from_env(prefix)
    except ConfigError as e:
        assert any(prefix + name in str(e) for name in given), str(e)
        assert str(e).isprintable()
        if len(key) > 8:
            assert key not in str(e)
            assert key not in "".join(logged)
        assert "pass-word-1" not in str(e)
        return "ConfigError"
    assert config.replace() == config
    shown = repr(config)
    assert "pass-word-1" not in shown
    if len(key) > 8:
        assert key not in shown
    for name, text in given.items():  # nothing is taken for something else without a word
        if name in ("CONNECT_TIMEOUT", "READ_TIMEOUT"):
            assert 0.001 <= getattr(config, name.lower()) <= 600 or not text.strip()
    try:
        with CyclesClient(config):
            pass
    except CyclesError as e:
        assert isinstance(e, ConfigError)
        return "no client: ConfigError"
    return "accepted"
