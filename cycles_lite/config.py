"""The configuration: one frozen object, from code or from the environment, checked when it is made."""

from __future__ import annotations

import math
import os
import re
from typing import TYPE_CHECKING, Any, Callable, Iterator, Mapping

from .errors import ConfigError
from .protocol.checks import integer, shown, text
from .protocol.fields import Checked, Kind, field
from .protocol.values import SUBJECT_LEVELS
from .runtime.log import log

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .protocol.keywords import Mode, OnUnavailable, Settings
else:  # for `typing.get_type_hints`
    Mode = OnUnavailable = str

_TRUE = ("1", "true", "yes", "on")
_FALSE = ("0", "false", "no", "off")

_NO_FOLDER = "usable: the current folder is deleted, so give an absolute path"

#: A host or an IPv6 address in brackets, and a port.
_HOST = r"(\[[0-9a-fA-F:.]+\]|[^\s/?#@\\:\[\]]+)(?::([0-9]{1,5}))?"


#: What may be secret has one of these, whichever setting got it: a URL with a password, or an API key.
_SECRET_SIGNS = "@", "cyc_live_"


class _Setting(Kind):
    """What a function takes, from code or as text. The function raises a `ValueError` that says what is expected."""

    _is_secret = False

    def __init__(self, parse: Callable[[Any], Any]) -> None:
        self._parse = parse

    def check(self, field: str, value: Any) -> Any:
        """The value to keep. `field` is the name by which the user has set it: the setting's or the variable's."""
        try:
            return self._parse(value)
        except ValueError as e:
            raise ConfigError(f"{field}: {self._shown(value)} is not {e}") from None
        except Exception as e:  # the value is an object of the program's, whose methods may raise anything
            raise ConfigError(f"{field}: {self._shown(value)} cannot be used: {type(e).__name__}") from None

    def _shown(self, value: Any) -> str:
        try:
            is_secret = self._is_secret or any(sign in str(value) for sign in _SECRET_SIGNS)
        except Exception:  # the value's own `__str__` has raised
            is_secret = True
        return "its value" if is_secret else shown(value)


class _Secret(_Setting):
    """A setting whose value no message shows, whatever is wrong with it."""

    _is_secret = True


@_Setting
def _url(value: Any) -> str:
    """An http, https or sqlite URL, without the trailing slash."""
    if not isinstance(value, str):
        raise ValueError("a URL")
    scheme, colon, rest = value.strip().partition(":")
    scheme = scheme.lower()
    if not colon or (scheme not in ("http", "https", "sqlite") and "//" not in rest[:2]):
        raise ValueError("a URL with a scheme: http://..., https://... or sqlite:...")
    if scheme not in ("http", "https", "sqlite"):
        raise ValueError("a URL of a known scheme: http, https or sqlite")
    if scheme == "sqlite":
        if not re.match(r"//[/?]|//\Z|(?!//)[^?]", rest):
            raise ValueError("a file's URL: sqlite:///absolute/path, sqlite:relative/path or sqlite:// (memory)")
        return scheme + ":" + (rest if rest.startswith("/") else _absolute(rest))
    if re.match(r"//[^/?#@\\]*@", rest):
        raise ValueError("a URL without a user name or password in it; the key goes to api_key")
    if not rest.isprintable() or not re.match(r"//[^ /?#@\\]+(/[^ ?#\\]*)?\Z", rest):
        raise ValueError("a URL with a host, and without query, fragment or blanks")
    if not _is_address(re.match(rf"//{_HOST}(?:/|\Z)", rest)):
        raise ValueError("a URL with a host in ASCII, and where it names a port, one of 1..65535")
    return scheme + ":" + rest.rstrip("/")


def _absolute(rest: str) -> str:
    """A relative file's URL as an absolute one: it stays where it is when the program changes its current folder, and
    the journal never takes the budgets of two folders for the same."""
    from urllib.parse import quote  # for these URLs alone

    from .runtime import system

    if system.is_absolute(rest):
        return "//" + system.url_path(rest)
    try:
        folder = system.url_path(os.getcwd())
    except OSError:
        raise ValueError(_NO_FOLDER) from None
    return "//" + quote(os.fsencode(folder)).rstrip("/") + "/" + rest


def _is_address(match: re.Match[str] | None) -> bool:
    """Whether a host in ASCII was found, and the port that it comes with, if any, is one."""
    if match is None:
        return False
    host, port = match.groups()
    if not host.isascii() or not host.isprintable() or not 1 <= int(port or 80) <= 65535:
        return False
    try:
        if host[0] == "[":
            import ipaddress  # rarely needed

            ipaddress.IPv6Address(host[1:-1])
    except ValueError:
        return False
    return True


@_Secret
def _proxy(value: Any) -> str:
    """The URL of a proxy; without a scheme it is http."""
    url = value.strip() if isinstance(value, str) else ""
    if not _is_address(re.match(rf"(?:[hH][tT][tT][pP][sS]?://)?(?:[^\s/?#]*@)?{_HOST}/?\Z", url)):
        raise ValueError("an http or https URL: http://[user:password@]host:port")
    return url


@_Secret
def _secret(value: Any) -> str:
    """An API key without the blanks around it. An error about one does not show it."""
    key = value.strip() if isinstance(value, str) else ""
    if not re.match(r"[\x21-\x7e]+\Z", key):
        raise ValueError("visible ASCII characters without blanks between them")
    return key


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError("a text that is not blank")
    return str(value.strip())


@_Setting
def _level(value: Any) -> str:
    try:
        return text("level", _text(value), 128)
    except ValueError:
        raise ValueError("a text of 1..128 characters, none of them a control character") from None


@_Setting
def _path(value: Any) -> str:
    """An absolute path, so that it stays where it is when the program changes its current folder, or its home."""
    path = _text(os.fspath(value) if isinstance(value, os.PathLike) else value)
    path = os.path.expanduser(path)
    if path.startswith("~"):
        raise ValueError("usable: that home folder is not known (a folder of such a name is ./~...)")
    try:
        return os.path.abspath(path)
    except OSError:
        raise ValueError(_NO_FOLDER) from None


def _float(value: Any) -> float:
    """A number, or NaN for what is none."""
    try:
        return math.nan if isinstance(value, (bool, bytes, bytearray)) else float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def _number(expected: str, low: float, high: float, beyond: str = "") -> _Setting:
    def parse(value: Any) -> float:
        number = _float(value)
        if not low <= number <= high:
            raise ValueError(f"{expected} from {low:g} to {high:g}" + (beyond if number > high else ""))
        return number

    return _Setting(parse)


#: The longest timeout and the longest delay between attempts, in seconds. A larger value is one in milliseconds by
#: mistake.
_LONGEST_TIMEOUT, _LONGEST_DELAY = 600.0, 3600.0
_SECONDS, _BEYOND = "a number of seconds", ": seconds, not milliseconds"
_timeout = _number(_SECONDS, 0.001, _LONGEST_TIMEOUT, _BEYOND)
_wait = _number(_SECONDS, 0.0, _LONGEST_TIMEOUT, _BEYOND)
_delay = _number(_SECONDS, 0.0, _LONGEST_DELAY, _BEYOND)
_factor = _number("a number", 1.0, 100.0)


def _count(high: int) -> _Setting:
    def parse(value: Any) -> int:
        if isinstance(value, str) and re.match(r"\s*[0-9]{1,9}\s*\Z", value):
            value = int(value)
        try:
            return integer("", value, 1, high)
        except ValueError:
            raise ValueError(f"a whole number from 1 to {high}") from None

    return _Setting(parse)


@_Setting
def _flag(value: Any) -> bool:
    word = value.strip().lower() if isinstance(value, str) else value
    if word in _TRUE or word is True:
        return True
    if word in _FALSE or word is False:
        return False
    raise ValueError("true or false (also 1/0, yes/no, on/off)")


def part(value: Any) -> float:
    """A part of a whole, as a number or in percent. Raises a `ValueError` that says what is expected."""
    is_percent = isinstance(value, str) and value.strip().endswith("%")
    number = _float(value.strip()[:-1]) / 100 if is_percent else _float(value)
    if not 0.0 < number <= 1.0:
        raise ValueError("a part of a whole, such as 0.2 or 20%, above 0 and up to 1")
    return number


@_Setting
def _warning(value: Any) -> float | None:
    if value is None or (isinstance(value, str) and value.strip().lower() == "off"):
        return None
    try:
        return part(value)
    except ValueError as e:
        raise ValueError(f"{e}, or off") from None


def _choice(*words: str) -> _Setting:
    def parse(value: Any) -> str:
        word = value.strip().lower() if isinstance(value, str) else ""
        if word not in words:
            raise ValueError("one of " + ", ".join(words))
        return word

    return _Setting(parse)


class CyclesConfig(Checked):
    """How to reach the authority, for whom, and what to do when it does not answer.

    Seconds are floats. A value that cannot be used raises `ConfigError` that names it, what was given and what is
    expected. The repr shows neither the key nor a proxy's password.
    """

    #: `http(s)://host[:port][/prefix]` of a server, or `sqlite:///abs/path`, `sqlite:rel`, `sqlite://` (memory). A
    #: relative path is below what is the current folder when the configuration is made, and is kept as an absolute one.
    base_url: str | None = field(_url, default=None)
    #: The key that servers ask for: needed for http and https, visible ASCII. Blanks around it are dropped.
    api_key: str | None = field(_secret, default=None, repr=False)
    # Defaults for the levels of a subject that a request does not name: 1..128 characters each.
    #: The level `tenant`; also whose the reservations and balances are that a query without a tenant asks for, and who
    #: asks an embedded authority.
    tenant: str | None = field(_level, default=None)
    #: The level `workspace`.
    workspace: str | None = field(_level, default=None)
    #: The level `app`.
    app: str | None = field(_level, default=None)
    #: The level `workflow`.
    workflow: str | None = field(_level, default=None)
    #: The level `agent`.
    agent: str | None = field(_level, default=None)
    #: The level `toolset`.
    toolset: str | None = field(_level, default=None)
    #: Seconds that a new connection may take, 0.001..600. One attempt takes at most `connect_timeout + read_timeout`
    #: seconds, whatever the server does.
    connect_timeout: float = field(_timeout, default=2.0)
    #: Seconds that the answer may take after that, 0.001..600.
    read_timeout: float = field(_timeout, default=5.0)
    #: Whether reads are retried, settlements sooner than every ten minutes, and other calls once where none answered.
    retry_enabled: bool = field(_flag, default=True)
    #: How often a read is sent at the most, and how many attempts of a settlement have growing delays: at least 1.
    retry_max_attempts: int = field(_count(999_999_999), default=5)
    #: Seconds before the second attempt, 0..3600.
    retry_initial_delay: float = field(_delay, default=0.5)
    #: By how much each delay is longer than the one before, 1..100.
    retry_multiplier: float = field(_factor, default=2.0)
    #: Seconds that a delay never exceeds, 0..3600. A read whose server asks for more than that is not retried.
    retry_max_delay: float = field(_delay, default=30.0)
    #: Seconds that `close()` and the interpreter's exit wait for pending settlements, 0..600.
    flush_timeout: float = field(_wait, default=2.0)
    #: Whether spend is written to disk before it is sent, so that it survives the process.
    journal_enabled: bool = field(_flag, default=True)
    #: The journal's folder; None is one below the user's home. A relative one is below what is the current folder when
    #: the configuration is made.
    journal_dir: str | None = field(_path, default=None)
    #: Whether each record is forced to the disk itself, so that it survives a loss of power as well.
    journal_fsync: bool = field(_flag, default=False)
    #: Whether guards extend their reservations while the work runs.
    heartbeat: bool = field(_flag, default=True)
    #: `enforce`; `shadow` asks and never stops the work; `off` asks nothing and needs neither URL nor key.
    mode: Mode = field(_choice("enforce", "shadow", "off"), default="enforce")
    #: `raise`, or `allow` the work when the authority cannot be reached.
    on_unavailable: OnUnavailable = field(_choice("raise", "allow"), default="raise")
    #: Connections to the server at the same time, 1..10000; a call that finds none free waits for one.
    max_connections: int = field(_count(10_000), default=16)
    #: Below which part of what was allocated the observer is told that a budget runs low: above 0 and up to 1; None, or
    #: the text `off`, for never. As text it may also be in percent: `20%`.
    warn_below: float | None = field(_warning, default=0.2)
    #: A file or folder of certificates to trust; else REQUESTS_CA_BUNDLE, else SSL_CERT_FILE, else the system's.
    ca_certs: str | None = field(_path, default=None)
    #: A proxy's URL; else HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY decide.
    proxy: str | None = field(_proxy, default=None, repr=False)

    def __post_init__(self) -> None:
        _refuse_missing(self.__dict__, str)

    @property
    def is_local(self) -> bool:
        """Whether the authority is the embedded one."""
        return _is_local(self.base_url)

    @classmethod
    def from_env(cls, prefix: str = "CYCLES_", **changes: Unpack[Settings]) -> CyclesConfig:
        """The configuration in the variables `<prefix><NAME>`; blank ones count as unset, `changes` win.

        A variable that looks like a setting and is none is warned of, once in a process.
        """
        _refuse_unknown(changes)
        for variable, doubt in doubtful_variables(prefix):
            if variable not in warned_of:
                warned_of.add(variable)
                log().warning("%s", doubt)
        found: dict[str, Any] = {}
        for setting in cls.layout():
            variable = prefix + setting.name.upper()
            value = os.environ.get(variable, "")
            if setting.name in changes:
                found[setting.name] = setting.check(changes[setting.name])  # type: ignore[literal-required]
            elif value.strip():
                found[setting.name] = setting.kind.check(variable, value)
        _refuse_missing(found, lambda name: prefix + name.upper())
        return cls(**found)

    def replace(self, **changes: Unpack[Settings]) -> CyclesConfig:
        """A copy with other values."""
        _refuse_unknown(changes)
        kept: dict[str, Any] = {setting.name: getattr(self, setting.name) for setting in self.layout()}
        return type(self)(**{**kept, **changes})

    def subject_defaults(self) -> dict[str, str]:
        """The levels that are set, from the root down."""
        levels = ((level, getattr(self, level)) for level in SUBJECT_LEVELS)
        return {level: value for level, value in levels if value is not None}


def _is_local(base_url: str | None) -> bool:
    return base_url is not None and base_url.startswith("sqlite:")


#: Settings of the official SDK that have another name here.
_ELSEWHERE = {"retry_flush_timeout": "flush_timeout"}

#: Variables of the command line and of this project's tests.
_OTHERS = ("SERVE_API_KEY", "SERVE_ADMIN_KEY", "TEST_BASE_URL", "TEST_API_KEY")

#: The variables that a warning was logged for in this process.
warned_of: set[str] = set()


def doubtful_variables(prefix: str = "CYCLES_") -> Iterator[tuple[str, str]]:
    """The environment's variables that look like settings and are none, each with a sentence that does not show its
    value."""
    known = {*_OTHERS, *(setting.name.upper() for setting in CyclesConfig.layout())}
    for variable in sorted(os.environ):
        name = variable[len(prefix) :]
        if variable.startswith(prefix) and prefix and name not in known:
            meant = _meant(name.lower())
            if meant is not None:
                yield variable, f"{variable} is set, which is no setting: did you mean {prefix}{meant.upper()}?"


def _meant(name: str) -> str | None:
    """The setting that is probably meant by a name that is none; None where nothing is close."""
    if name in _ELSEWHERE:
        return _ELSEWHERE[name]
    from difflib import get_close_matches  # costly, and needed for mistakes alone

    return next(iter(get_close_matches(name, [setting.name for setting in CyclesConfig.layout()], 1, 0.8)), None)


def _refuse_unknown(changes: Mapping[str, Any]) -> None:
    unknown = sorted(set(changes) - {setting.name for setting in CyclesConfig.layout()})
    if unknown:
        meant = _meant(unknown[0])
        raise ConfigError(f"{unknown[0]} is not a setting" + (f": did you mean {meant}?" if meant else ""))


def _refuse_missing(settings: Mapping[str, Any], name: Callable[[str], str]) -> None:
    """Raise a `ConfigError` if a setting is missing that this mode and kind of authority need. `name` makes a setting's
    name into the one by which the user would set it."""
    if settings.get("mode") == "off":
        return
    if settings.get("base_url") is None:
        raise ConfigError(name("base_url") + " is not set: the URL of a server, or of a budget file (sqlite:...)")
    if settings.get("api_key") is None and not _is_local(settings["base_url"]):
        raise ConfigError("{} is not set: {} needs one".format(name("api_key"), settings["base_url"]))
