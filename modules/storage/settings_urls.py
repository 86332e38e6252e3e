"""Database URLs as text: take one apart, put one together, show one without its secrets.

Pure functions for the settings models. No driver and no SQLAlchemy is needed, and no message ever holds a
part of the URL: an unparsable URL may have its password anywhere.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Optional
from urllib.parse import parse_qsl, quote, unquote

from .settings_sources import SettingsError, nearest

__all__ = ["MASK", "MEMORY", "ParsedUrl", "build_url", "is_local_host", "parse_url", "sqlite_url"]

MASK = "***"
MEMORY = ":memory:"

# Query parameters that may be shown. Other values are masked: drivers take passwords and tokens there too.
_OPEN_PARAMETERS = frozenset(
    {
        "application_name",
        "appname",
        "authmechanism",
        "authsource",
        "compressors",
        "connect_timeout",
        "connecttimeoutms",
        "directconnection",
        "host",
        "journal",
        "maxpoolsize",
        "minpoolsize",
        "port",
        "readpreference",
        "replicaset",
        "retryreads",
        "retrywrites",
        "serverselectiontimeoutms",
        "sockettimeoutms",
        "ssl",
        "sslmode",
        "sslrootcert",
        "target_session_attrs",
        "tls",
        "tlscafile",
        "w",
        "wtimeoutms",
    }
)
_ENCODE_HINT = "percent-encode the characters @ : / ? # % and blanks inside user name, password and database"


@dataclass(frozen=True)
class ParsedUrl:
    """The parts of a URL, decoded; `netloc` and `path` are the raw text of hosts and database."""

    scheme: str
    driver: str = ""
    username: Optional[str] = None
    password: Optional[str] = field(default=None, repr=False)
    hosts: tuple[str, ...] = ()
    port: Optional[int] = None
    database: str = ""
    query: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    netloc: str = ""
    path: str = ""

    def option(self, *names: str) -> Optional[str]:
        """The last value of the query parameter called one of `names` (case ignored), or None."""
        found = [value for key, value in self.query if key.lower() in names]
        return found[-1] if found else None

    def safe(self) -> str:
        """The URL with its password and every parameter that might be secret replaced by `***`."""
        user = _user_info(self.username, None if self.password is None else MASK)
        scheme = f"{self.scheme}+{self.driver}" if self.driver else self.scheme
        query = [(key, value if key.lower() in _OPEN_PARAMETERS else MASK) for key, value in self.query]
        return f"{scheme}://{user}{self.netloc}{self.path}{_query_text(query)}"


def parse_url(text: str, schemes: Mapping[str, str]) -> ParsedUrl:
    """Take a URL apart.

    Args:
        text: The URL.
        schemes: Accepted scheme (lower case) -> its canonical name. Each may have a driver (`+asyncpg`).

    Raises:
        SettingsError: Not a URL of these schemes. Key "url"; the message holds nothing of the URL.
    """
    head, separator, rest = text.partition("://")
    if not separator:
        raise SettingsError("is not a URL; write scheme://user:password@host:port/database", key="url")
    name, plus, driver = head.lower().partition("+")
    if name not in schemes or (plus and not re.fullmatch(r"\w+", driver, re.ASCII)):
        allowed = ", ".join(sorted(set(schemes)))
        raise SettingsError(
            f"has an unknown scheme; use one of: {allowed}", key="url", suggestion=nearest(name, schemes)
        )
    scheme = schemes[name]
    return _parse_file(scheme, driver, rest) if scheme == "sqlite" else _parse_network(scheme, driver, rest)


def _parse_file(scheme: str, driver: str, rest: str) -> ParsedUrl:
    body, question, _ = rest.partition("?")
    if question:
        raise SettingsError(
            "has parameters after '?', which SQLite URLs do not take here; use the sql.sqlite_* settings",
            key="url",
        )
    if body and not body.startswith("/"):
        raise SettingsError(
            "needs three slashes before the file: sqlite:///path or sqlite:////abs/path", key="url"
        )
    path = unquote(body[1:])
    if "\x00" in path:
        raise SettingsError("has a NUL character in its path", key="url")
    return ParsedUrl(scheme, driver, database=path or MEMORY, path=body)


def _parse_network(scheme: str, driver: str, rest: str) -> ParsedUrl:
    body, _, query_text = rest.partition("?")
    authority, slash, database = body.partition("/")
    # Drivers disagree about these characters when they are raw, and a piece of a password could end up in the
    # host or the database name; refusing is the only reading that is safe everywhere.
    if (
        re.search(r"[\s#\x00-\x20\x7f]", rest)
        or "@" in database
        or "@" in query_text
        or authority.count("@") > 1
        or "\x00" in unquote(rest)
    ):
        raise SettingsError(f"cannot be read without doubt; {_ENCODE_HINT}", key="url")
    user_info, at, netloc = authority.rpartition("@")
    username, colon, password = user_info.partition(":")
    query = tuple(parse_qsl(query_text, keep_blank_values=True))
    hosts = [_split_host(part) for part in netloc.split(",")] if netloc else []
    ports = [port for _, port in hosts if port is not None]
    return ParsedUrl(
        scheme,
        driver,
        username=unquote(username) if at else None,
        password=unquote(password) if colon else None,
        hosts=tuple(host for host, _ in hosts if host),
        port=ports[0] if ports else None,
        database=unquote(database),
        query=query,
        netloc=netloc,
        path=slash + database,
    )


def _split_host(text: str) -> tuple[str, Optional[int]]:
    if text.startswith("["):
        host, bracket, tail = text[1:].partition("]")
        if not bracket or (tail and not tail.startswith(":")):
            raise SettingsError("has an IPv6 address without a closing bracket", key="url")
        port_text = tail[1:]
    else:
        host, _, port_text = text.partition(":")
    if not port_text:
        return unquote(host), None
    # A password with a raw '/' or '?' shows up here as a port that is no number.
    if not re.fullmatch(r"[0-9]{1,5}", port_text) or not 1 <= int(port_text) <= 65535:
        raise SettingsError(
            f"has a port that is not a number from 1 to 65535, or else: {_ENCODE_HINT}", key="url"
        )
    return unquote(host), int(port_text)


def build_url(
    scheme: str,
    *,
    username: Optional[str],
    password: Optional[str],
    host: str,
    port: int,
    database: str,
) -> str:
    """Put a URL together; credentials and database are percent-encoded, IPv6 hosts bracketed.

    A host that begins with `/` is the directory of a unix socket and becomes `?host=...&port=...`.
    """
    user = _user_info(username, password)
    path = quote(database, safe="")
    if host.startswith("/"):
        return f"{scheme}://{user}/{path}?host={quote(host, safe='/')}&port={port}"
    shown = ",".join(f"[{part}]" if ":" in part else part for part in host.split(","))
    return f"{scheme}://{user}{shown}:{port}/{path}"


def sqlite_url(path: str) -> str:
    """`sqlite:///` and the path; only the characters that would end or change the path are encoded."""
    return "sqlite:///" + path.replace("%", "%25").replace("?", "%3F")


def is_local_host(host: str) -> bool:
    """True for a unix socket, `localhost` and loopback addresses."""
    import ipaddress

    name = host.strip("[]").lower()
    if not name or name.startswith(("/", "@")) or name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name.partition("%")[0]).is_loopback
    except ValueError:
        return False


def _user_info(username: Optional[str], password: Optional[str]) -> str:
    if username is None and password is None:
        return ""
    secret = "" if password is None else ":" + quote(password, safe="*")
    return f"{quote(username or '', safe='')}{secret}@"


def _query_text(query: Sequence[tuple[str, str]]) -> str:
    return (
        "?" + "&".join(f"{quote(key)}={quote(value, safe='/*,:')}" for key, value in query) if query else ""
    )
