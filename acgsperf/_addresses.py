"""Addresses of servers: whether they can be used, and what of them may be shown, for they may hold passwords."""

import re
from typing import Final
from urllib.parse import parse_qs, unquote, unquote_plus, urlsplit

__all__ = ["checked_dsn", "checked_redis_url", "hidden", "masked", "secrets_of"]

_REDIS_SCHEMES: Final = frozenset({"redis", "rediss", "unix"})


def checked_redis_url(name: str, url: str) -> str:
    """An address of a Redis. No message repeats any of it, for it may hold a password."""
    if not isinstance(url, str):
        raise TypeError(f"{name} must be a str, not of type {type(url).__name__}")
    try:
        parts = urlsplit(url)
        usable = parts.scheme in _REDIS_SCHEMES and "://" in url and (parts.port is None or parts.port > 0)
        # redis-py takes any other path for database 0. A # begins what it never looks at, be it of a password.
        usable = usable and "#" not in url
        usable = usable and (parts.scheme == "unix" or re.fullmatch(r"/?[0-9]*", parts.path) is not None)
    except ValueError:
        usable = False
    if not usable:
        raise ValueError(
            f"{name} must be a redis://, rediss:// or unix:// URL, with a port from 1 to 65535 and a number as database"
            " where it has them; a / in a password is written %2F, a # %23"
        )
    return url


def checked_dsn(name: str, dsn: str) -> str:
    """An address that asyncpg can read. No message repeats any of it, for it may hold a password."""
    if not isinstance(dsn, str):
        raise TypeError(f"{name} must be a str, not of type {type(dsn).__name__}")
    try:
        parts = urlsplit(dsn)
        if parts.query:
            parse_qs(parts.query, strict_parsing=True)
        # asyncpg ends the password at the first @.
        before, at, after = parts.netloc.partition("@")
        servers = (after if at else before).split(",")
        if len(servers) > 1 and not all(servers):
            raise ValueError("one of several servers has no name")
        for server in servers:
            int(unquote(server.rpartition("]")[2].partition(":")[2]) or 0)
    except ValueError:
        raise ValueError(f"{name} cannot be parsed; a / in a password is written %2F") from None
    if parts.scheme not in {"postgresql", "postgres"}:
        raise ValueError(f"{name} must start with postgresql:// or postgres://")
    return dsn


def masked(url: str) -> str:
    """An address that can be used, with `***` for its passwords."""
    head, mark, query = url.partition("?")
    scheme, separator, rest = head.partition("://")
    authority, slash, path = rest.partition("/")
    # Where an @ or a # comes later than it should, what stands before it may be the rest of a password.
    if not separator or "@" in path + query or "#" in url:
        return hidden(url)
    user_info, at, server = authority.rpartition("@")
    user, colon, _ = user_info.partition(":")
    shown = f"{scheme}://{user}{colon}{'***' * len(colon)}{at}{server}{slash}{path}{mark}"
    options: list[str] = []
    for option in query.split("&"):
        name = option.partition("=")[0]
        if any(word in unquote_plus(name).lower() for word in ("pass", "secret", "token")):
            # What follows may be the rest of it, after an & that should have been written %26.
            options.append(f"{name}=***")
            break
        options.append(option)
    return shown + "&".join(options)


def hidden(url: str) -> str:
    """The scheme of an address, if it has a likely one, and nothing else of it."""
    scheme, separator, _ = url.partition("://")
    return f"{scheme}://***" if separator and scheme.isalpha() else "***"


def secrets_of(dsn: str, password: object) -> set[str]:
    """What must not be shown of an address: the password, as written and as meant.

    It is asked for while an error is handled, so it raises none: all of an address that cannot be parsed is secret.
    """
    try:
        parts = urlsplit(dsn)
        written = parts.netloc.rpartition("@")[0].partition(":")[2]
        found = {written, unquote(written), *parse_qs(parts.query).get("password", ())}
    except ValueError:
        found = {dsn}
    if isinstance(password, str):
        found.add(password)
    return found - {""}
