"""Which certificates a TLS connection trusts: those that the user names, else the system's."""

from __future__ import annotations

import errno
import ipaddress
import os
import ssl
from typing import Any

from ..errors import ConfigError, CyclesError, TransportError

#: Errors that keep a file from being read for a while, and do not mean that its name is wrong.
_PASSING = frozenset(
    getattr(errno, name)
    for name in ("EMFILE", "ENFILE", "ENOMEM", "ENOBUFS", "EIO", "EAGAIN", "EINTR", "EBUSY", "ESTALE", "ETIMEDOUT")
    if hasattr(errno, name)
)


def trusting(ca_certs: str | None, unnamed_host: str = "") -> ssl.SSLContext:
    """A context that verifies certificates. If `unnamed_host` is an IP address, OpenSSL does not check it: urllib3 1.26
    checks addresses itself, and does not tell OpenSSL which one to expect."""
    name, trusted = "ca_certs", ca_certs
    if not trusted:
        name, trusted = "REQUESTS_CA_BUNDLE", os.environ.get("REQUESTS_CA_BUNDLE") or None
    try:
        if trusted is None:
            context = ssl.create_default_context()
            name, trusted = "SSL_CERT_FILE", os.environ.get("SSL_CERT_FILE")
            _load_system(context, trusted)
        else:
            context = ssl.create_default_context(**_place(trusted))
    except OSError as e:
        raise _blamed(name, trusted, e) from e
    if _is_address(unnamed_host):
        context.check_hostname = False
    return context


def _place(trusted: str) -> dict[str, Any]:
    return {"capath" if os.path.isdir(trusted) else "cafile": trusted}


def _load_system(context: ssl.SSLContext, named: str | None) -> None:
    """Load the system's certificates. OpenSSL ignores a file that it cannot read, and the context would trust nobody
    from then on; so that is an error here."""
    paths = ssl.get_default_verify_paths()
    file = named or paths.cafile
    if file is None or context.cert_store_stats()["x509_ca"]:
        return
    try:
        context.load_verify_locations(file)
    except OSError as e:
        if _passes(e) or paths.capath is None:  # else there may be enough in the folder of certificates
            raise


def _passes(e: OSError) -> bool:
    return e.errno in _PASSING and not isinstance(e, ssl.SSLError)  # SSLError's numbers are no errnos


def _blamed(name: str, trusted: str | None, e: OSError) -> CyclesError:
    """The error for certificates that cannot be used. Whether it was they or the file for TLS secrets that could not be
    opened, `ssl` does not tell, so it is tried here."""
    log = os.environ.get("SSLKEYLOGFILE")
    if log:
        try:
            if trusted:
                ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(**_place(trusted))
            name, trusted = "SSLKEYLOGFILE", log
        except OSError:  # it is the certificates that cannot be opened
            pass
    where = f"{name}: {trusted!r}" if trusted else "the system's certificates"
    return (TransportError if _passes(e) else ConfigError)(f"{where} cannot be used: {e}")


def _is_address(host: str) -> bool:
    try:
        return bool(ipaddress.ip_address(host))
    except ValueError:
        return False
