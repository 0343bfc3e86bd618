"""Checks addresses of servers, and hides the passwords in them."""

import re
from typing import Final
from urllib.parse import parse_qs, unquote, unquote_plus, urlsplit

__all__ = ["checked_dsn", "checked_redis_url", "hidden", "masked", "secrets_of"]

_REDIS_SCHEMES: Final = frozenset(
    {"redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster"}
)
_SCHEMES_IN_WORDS: Final = (
    "redis://, rediss://, unix://, redis+sentinel://, rediss+sentinel://, redis+cluster:// or rediss+cluster://"
)
# A host name or an address in brackets, and a port.
_HOST: Final = re.compile(r"(\[[0-9a-fA-F:.%]+\]|[^\[\]:/@]+)(:([0-9]{1,5}))?")
_SENTINEL_FORM: Final = "redis+sentinel://[user:password@]host:port,host:port/service"
_CLUSTER_FORM: Final = "redis+cluster://[user:password@]host:port,host:port"
_DSN_FORM: Final = "postgresql://[user:password@]host:port,host:port/database"
_SSL_MODES: Final = frozenset({"disable", "allow", "prefer", "require", "verify-ca", "verify-full"})


def checked_redis_url(name: str, url: str) -> str:
    """Accept the URL of a Redis server, of the sentinels that watch one, or of the nodes of a cluster.

    No message repeats anything but its scheme, because it may contain a password.
    """
    if not isinstance(url, str):
        raise TypeError(f"{name} must be a str, got {type(url).__name__}")
    scheme, separator, _ = url.partition("://")
    if separator and re.fullmatch(r"[a-z][a-z0-9+.-]{0,30}", scheme) and scheme not in _REDIS_SCHEMES:
        raise ValueError(f"{name} must start with {_SCHEMES_IN_WORDS}, got {scheme}://")
    if scheme.endswith(("+sentinel", "+cluster")):
        return _checked_hosts_url(name, url, in_cluster=scheme.endswith("+cluster"))
    try:
        parts = urlsplit(url)
        usable = parts.scheme in _REDIS_SCHEMES and "://" in url and (parts.port is None or parts.port > 0)
        # redis-py uses database 0 for any other path. It ignores what follows a #, even if that is part of a password.
        usable = usable and "#" not in url
        # It also ignores an option without a value, even if that is the rest of a password after a ?.
        usable = usable and all("=" in option for option in parts.query.split("&") if option)
        form = r"/.+" if parts.scheme == "unix" else r"/?[0-9]*/?"
        usable = usable and re.fullmatch(form, parts.path) is not None
    except ValueError:
        usable = False
    if not usable:
        raise ValueError(
            f"{name} must be a {_SCHEMES_IN_WORDS} URL. A port must be 1 to 65535, a database a number, and"
            " unix:// needs the path of a socket. In a password, write / as %2F, ? as %3F and # as %23"
        )
    return url


def _checked_hosts_url(name: str, url: str, *, in_cluster: bool) -> str:
    form, member = (_CLUSTER_FORM, "node") if in_cluster else (_SENTINEL_FORM, "sentinel")
    try:
        parts = urlsplit(url)
        hosts = parts.netloc.rpartition("@")[2]
        found = [_HOST.fullmatch(host) for host in hosts.split(",")]
        options = parse_qs(parts.query, keep_blank_values=True, strict_parsing=True) if parts.query else {}
        problem = "" if "#" not in url else "no #; in a password, write / as %2F and # as %23"
    except ValueError:
        raise ValueError(f"{name} must be {form}") from None
    path = unquote(parts.path.strip("/"))
    databases = options.get("db", [])
    if problem:
        pass
    elif not hosts:
        problem = f"the host of at least one {member}"
    elif not all(host and (host[3] is None or 0 < int(host[3]) < 65_536) for host in found):
        problem = f"a host, and a port from 1 to 65535 if any, for each {member}"
    elif in_cluster and (path not in {"", "0"} or any(database != "0" for database in databases)):
        problem = "no database other than 0, because a cluster has only that one"
    elif not in_cluster and (not path or "/" in path):
        problem = "the name of the service as its path"
    elif not all(database.isdecimal() for database in databases):
        problem = "a number as its db"
    if problem:
        raise ValueError(f"{name} must have {problem}: {form}")
    return url


def checked_dsn(name: str, dsn: str) -> str:
    """Accept a DSN that asyncpg can read. No message repeats any part of it, because it may contain a password."""
    if not isinstance(dsn, str):
        raise TypeError(f"{name} must be a str, got {type(dsn).__name__}")
    try:
        # asyncpg ignores what follows a #, even if that is the rest of a password.
        if "#" in dsn:
            raise ValueError("a #")
        parts = urlsplit(dsn)
        options = parse_qs(parts.query, strict_parsing=True) if parts.query else {}
        # asyncpg ends the password at the first @.
        before, at, after = parts.netloc.partition("@")
        servers = (after if at else before).split(",")
        nameless = len(servers) > 1 and not all(servers)
        ports = [unquote(server.rpartition("]")[2].partition(":")[2]) for server in servers]
        for port in [*ports, *",".join(options.get("port", ())).split(",")]:
            if port and not 0 < int(port) < 65_536:
                raise ValueError("no port")
    except ValueError:
        raise ValueError(
            f"{name} must be a postgresql:// URL with ports from 1 to 65535. In a password, write / as %2F, ? as %3F"
            " and # as %23"
        ) from None
    if nameless:
        raise ValueError(f"{name} must have a host for each of its servers: {_DSN_FORM}")
    if parts.scheme not in {"postgresql", "postgres"}:
        raise ValueError(f"{name} must start with postgresql:// or postgres://")
    if not _SSL_MODES.issuperset(mode.replace("_", "-") for mode in options.get("sslmode", ())):
        raise ValueError(f"{name} must have an sslmode of {', '.join(sorted(_SSL_MODES))}")
    return dsn


def masked(url: str) -> str:
    """Return a valid address with `***` in place of its passwords."""
    head, mark, query = url.partition("?")
    scheme, separator, rest = head.partition("://")
    authority, slash, path = rest.partition("/")
    # If an @ or a # comes too late, the text before it may be the rest of a password.
    if not separator or "@" in path + query or "#" in url:
        return hidden(url)
    user_info, at, server = authority.rpartition("@")
    user, colon, _ = user_info.partition(":")
    shown = f"{scheme}://{user}{colon}{'***' * len(colon)}{at}{server}{slash}{path}{mark}"
    options: list[str] = []
    for option in query.split("&"):
        name = option.partition("=")[0]
        if any(word in unquote_plus(name).lower() for word in ("pass", "secret", "token")):
            # What follows may be the rest of the password, after an & that should have been %26.
            options.append(f"{name}=***")
            break
        options.append(option)
    return shown + "&".join(options)


def hidden(url: str) -> str:
    """Return the scheme of an address, if it looks like one, and `***` for the rest."""
    scheme, separator, _ = url.partition("://")
    return f"{scheme}://***" if separator and re.fullmatch("[A-Za-z+]+", scheme) else "***"


def secrets_of(dsn: str, password: object) -> set[str]:
    """Return what must not be shown of a DSN: its passwords, encoded and decoded.

    It is called while an error is handled and does not raise: if the DSN cannot be parsed, all of it is secret.
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
