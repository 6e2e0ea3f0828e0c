"""The page that is served at `/`: it shows a tenant's budgets to whoever has a key of that tenant.

It is static, and the same for everybody: the page asks for the key, and then asks this server as any client would. Its
style and its script are files of their own, and are put into the one document when it is loaded. Its policy names them
by their hashes, so that a browser runs nothing else, whatever a text from the ledger says.

What it shows beside the protocol is the `extension`'s.
"""

from __future__ import annotations

import base64
import hashlib
import pkgutil
from typing import Mapping

from ..errors import ConfigError
from ..protocol.wire import Answer
from .messages import new_answer

_POLICY = (
    "default-src 'none'; script-src '{script}'; style-src '{style}'; img-src data:; connect-src 'self';"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script';"
    " trusted-types 'none'"
)


class Page:
    """The document with its headers. Raises `ConfigError` where the package came without the page's files."""

    def __init__(self) -> None:
        blocks = {"style": _text("page.css"), "script": _text("page.js")}
        document = _text("page.html")
        for tag, text in blocks.items():
            document = document.replace(f"<{tag}></{tag}>", f"<{tag}>{text}</{tag}>")
        self._document = document.encode("utf-8")
        self._headers = {
            "content-type": "text/html; charset=utf-8",
            "content-security-policy": _POLICY.format(**{tag: _hash(text) for tag, text in blocks.items()}),
            "x-content-type-options": "nosniff",
            "referrer-policy": "no-referrer",
            "cache-control": "no-cache",  # else a browser may show the one from before an upgrade
        }

    def document(self, headers: Mapping[str, str]) -> Answer:
        """The page, for a request with these headers."""
        answer = new_answer(200, {}, headers, None)
        return Answer(200, {**answer.headers, **self._headers}, self._document)


def _text(name: str) -> str:
    """A file beside this module, also where the package is in a zip. Browsers hash what has these line ends."""
    try:
        data = pkgutil.get_data(__package__ or "", name)
    except OSError:
        data = None
    if data is None:
        raise ConfigError(f"the package has no {name}, which the page needs: install all of it, or use --no-page")
    return data.decode("utf-8").replace("\r\n", "\n")


def _hash(text: str) -> str:
    """A block as a policy names it."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
