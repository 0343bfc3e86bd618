"""Addresses of servers: whether they can be used, and what of them may be shown, for they may hold passwords."""

import re
from typing import Final
from urllib.parse import parse_qs, unquote, unquote_plus, urlsplit

__all__ = ["checked_dsn", "checked_redis_url", "hidden", "masked", "secrets_of", "server_of"]

_REDIS_SCHEMES: Final = frozenset({"redis", "rediss", "unix"})
_SSL_MODES: Final = frozenset({"disable", "allow", "prefer", "require", "verify-ca", "verify-full"})


def checked_redis_url(name: str, url: str) -> str:
    """An address of a Redis. No message repeats any of it, for it may hold a password."""
    if not isinstance(url, str):
        raise TypeError(f"{name} must be a str, not of type {type(url).__name__}")
    try:
        parts = urlsplit(url)
        usable = parts.scheme in _REDIS_SCHEMES and "://" in url and (parts.port is None or parts.port > 0)
        # redis-py takes any other path for database 0. A # begins what it never looks at, be it of a password.
        usable = usable and "#" not in url
        form = r"/.+" if parts.scheme == "unix" else r"/?[0-9]*/?"
        usable = usable and re.fullmatch(form, parts.path) is not None
    except ValueError:
        usable = False
    if not usable:
        raise ValueError(
            f"{name} must be a redis://, rediss:// or unix:// URL, with a port from 1 to 65535 and a number as database"
            " where it has them, the path of a socket in the last; a / in a password is written %2F, a # %23"
        )
    return url


def checked_dsn(name: str, dsn: str) -> str:
    """An address that asyncpg can read. No message repeats any of it, for it may hold a password."""
    if not isinstance(dsn, str):
        raise TypeError(f"{name} must be a str, not of type {type(dsn).__name__}")
    try:
        # What stands behind a # is not looked at, be it the rest of a password.
        if "#" in dsn:
            raise ValueError("a #")
        parts = urlsplit(dsn)
        options = parse_qs(parts.query, strict_parsing=True) if parts.query else {}
        # asyncpg ends the password at the first @.
        before, at, after = parts.netloc.partition("@")
        servers = (after if at else before).split(",")
        if len(servers) > 1 and not all(servers):
            raise ValueError("one of several servers has no name")
        ports = [unquote(server.rpartition("]")[2].partition(":")[2]) for server in servers]
        for port in [*ports, *",".join(options.get("port", ())).split(",")]:
            if port and not 0 < int(port) < 65_536:
                raise ValueError("no port")
    except ValueError:
        raise ValueError(
            f"{name} must be a postgresql:// URL with ports from 1 to 65535; a / in a password is written %2F, a # %23"
        ) from None
    if parts.scheme not in {"postgresql", "postgres"}:
        raise ValueError(f"{name} must start with postgresql:// or postgres://")
    if not _SSL_MODES.issuperset(mode.replace("_", "-") for mode in options.get("sslmode", ())):
        raise ValueError(f"{name} must have one of these as its sslmode: {', '.join(sorted(_SSL_MODES))}")
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


def server_of(dsn: str) -> str:
    """Where the server of an address that can be used is: hosts and ports, or the directory of a socket."""
    parts = urlsplit(dsn)
    # Where there is another @, or one later on, what stands around it may be of a password.
    user, _, hosts = parts.netloc.rpartition("@")
    if "@" in user or dsn.count("@") > parts.netloc.count("@"):
        return "its server"
    return hosts or ", ".join(parse_qs(parts.query).get("host", ())) or "its server"


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
