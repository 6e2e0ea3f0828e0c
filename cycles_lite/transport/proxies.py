"""Which proxy a server is reached through: the configuration's, else the environment's."""

from __future__ import annotations

import os
from base64 import b64encode
from typing import Mapping, NamedTuple
from urllib.parse import unquote, urlsplit

from ..errors import ConfigError


class Proxy(NamedTuple):
    """An http or https proxy."""

    scheme: str
    host: str
    #: The proxy's URL without credentials.
    url: str
    #: The credentials, for the proxy alone.
    headers: Mapping[str, str] | None


def find_proxy(configured: str | None, scheme: str, host: str, port: int | None) -> Proxy | None:
    """The proxy for a server, by the configuration or else by HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY."""
    if configured:
        return _read("proxy", configured)
    if not any(name.lower().endswith("_proxy") for name in os.environ):
        return None
    import urllib.request as request  # costly, and rarely needed

    exempt = request.proxy_bypass_environment  # type: ignore[attr-defined]
    if exempt(host) or (port is not None and exempt(f"{host}:{port}")):
        return None
    proxies = request.getproxies_environment()
    value = proxies.get(scheme) or proxies.get("all")
    if not value:
        return None
    known = {name: set_to for name, set_to in os.environ.items() if name.lower() in (scheme + "_proxy", "all_proxy")}
    return _read(next((name for name in known if known[name] == value), "the environment's proxy"), value)


def _read(name: str, value: str) -> Proxy:
    """The proxy in a URL, which may lack its scheme. Raises a `ConfigError` that shows neither URL nor password."""
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
        scheme = value.partition("://")[0] if "://" in value else ""
        kind = f"a {scheme} proxy" if scheme.isalnum() and scheme not in ("http", "https") else "no usable URL"
        raise ConfigError(f"{name}: its value is {kind}; http:// and https:// proxies are supported") from None
    return Proxy(url.scheme, host, "{}://{}".format(url.scheme, url.netloc.rpartition("@")[2]), headers)
