"""Which proxy a server is reached through: the configuration's, else the environment's."""

from __future__ import annotations

import os
from base64 import b64encode
from typing import Mapping, NamedTuple
from urllib.parse import unquote, urlsplit

from .errors import ConfigError


class Proxy(NamedTuple):
    """An http or https proxy."""

    scheme: str
    host: str
    #: Without credentials.
    url: str
    #: The credentials, for the proxy alone.
    headers: Mapping[str, str] | None


def from_environment(scheme: str, host: str, port: int | None) -> str | None:
    """What HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY say about a server."""
    if not any(name.lower().endswith("_proxy") for name in os.environ):
        return None
    import urllib.request as request  # costly, and rarely needed

    exempt = request.proxy_bypass_environment  # type: ignore[attr-defined]
    if exempt(host) or (port is not None and exempt(f"{host}:{port}")):
        return None
    proxies = request.getproxies_environment()
    return proxies.get(scheme) or proxies.get("all")


def read_proxy(value: str | None) -> Proxy | None:
    """The proxy in a URL, which may lack its scheme. The `ConfigError` for another does not show it or its password."""
    if not value:
        return None
    try:
        url = urlsplit(value if "://" in value else "http://" + value)
        host = url.hostname
        if url.scheme not in ("http", "https") or not host or url.port == 0:
            raise ValueError
        headers = None
        if url.username is not None:
            secret = unquote(url.username) + ":" + unquote(url.password or "")
            headers = {"proxy-authorization": "Basic " + b64encode(secret.encode("utf-8")).decode("ascii")}
    except ValueError:
        raise ConfigError("proxy: its value is not an http or https URL") from None
    return Proxy(url.scheme, host, "{}://{}".format(url.scheme, url.netloc.rpartition("@")[2]), headers)
