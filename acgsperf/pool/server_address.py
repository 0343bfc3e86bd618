"""The DSN of a pool: what asyncpg reads of it, and what the pool does itself."""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import parse_qsl, unquote, unquote_plus, urlsplit

from acgsperf.addresses import checked_dsn, hidden

Endpoint = Mapping[str, Any]

# Parameters of libpq that asyncpg does not know, with the values that agree with what it does: it always uses UTF-8,
# protocol 3.0 and SCRAM without channel binding, sends the host's name with TLS, and never uses GSSAPI or compression.
_WITHOUT_EFFECT: Final[Mapping[str, tuple[str, ...]]] = {
    "channel_binding": ("disable", "prefer"),
    "client_encoding": ("auto", "utf8", "utf-8", "unicode"),
    "gssdelegation": ("0",),
    "gssencmode": ("disable", "prefer"),
    "max_protocol_version": ("3.0", "3.2", "latest"),
    "min_protocol_version": ("3.0",),
    "replication": ("0", "false", "no", "off"),
    "requiressl": ("0",),
    "sslcertmode": ("allow",),
    "sslcompression": ("0",),
    "sslsni": ("1",),
}
_UNSUPPORTED: Final = frozenset(
    {
        "hostaddr",
        "oauth_client_id",
        "oauth_client_secret",
        "oauth_issuer",
        "oauth_scope",
        "require_auth",
        "requirepeer",
        "scram_client_key",
        "scram_server_key",
        "sslcrldir",
        "sslkeylogfile",
    }
)
# Options of asyncpg and of SQLAlchemy's dialect that libpq does not know. asyncpg would send them to the server.
_KEYWORDS: Final = frozenset(
    {
        "command_timeout",
        "max_cacheable_statement_size",
        "max_cached_statement_lifetime",
        "prepared_statement_cache_size",
        "prepared_statement_name_func",
        "statement_cache_size",
    }
)
# Parameters that the pool honors itself.
_SOCKET_OPTIONS: Final = frozenset(
    {"keepalives", "keepalives_count", "keepalives_idle", "keepalives_interval", "tcp_user_timeout"}
)
_OWN: Final = _SOCKET_OPTIONS | {"connect_timeout", "fallback_application_name", "load_balance_hosts"}
_CHOICES: Final[Mapping[str, tuple[str, ...]]] = {
    **_WITHOUT_EFFECT,
    "keepalives": ("0", "1"),
    "load_balance_hosts": ("disable", "random"),
    "ssl_max_protocol_version": ("TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3"),
    "ssl_min_protocol_version": ("TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3"),
    "sslnegotiation": ("postgres", "direct"),
    "target_session_attrs": ("any", "primary", "standby", "prefer-standby", "read-write", "read-only"),
}


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """A DSN, parsed.

    Attributes:
        dsn: the DSN for asyncpg, without the parameters that it does not know.
        endpoints: the host and port of each server, as keyword arguments for asyncpg; empty if the DSN names none.
        ports: the `port` parameter of the DSN.
        database: the name of the database, if the DSN has one.
        service: the `service` of the DSN, which may name hosts.
        connect_timeout: the `connect_timeout` of the DSN, in seconds.
        shuffled: whether `load_balance_hosts` asks for a random order of servers.
        session_attributes: the `target_session_attrs` of the DSN.
        socket_options: the `keepalives...` and `tcp_user_timeout` of the DSN.
    """

    dsn: str
    endpoints: tuple[Endpoint, ...] = ()
    ports: tuple[int | None, ...] = ()
    database: str | None = None
    service: str | None = None
    connect_timeout: float | None = None
    shuffled: bool = False
    session_attributes: str | None = None
    socket_options: Mapping[str, int] = field(default_factory=dict)

    def name_of(self, endpoints: Sequence[Endpoint]) -> str:
        """Return how messages name the servers at these endpoints; it contains no secret."""
        if endpoints == self.endpoints:
            # If there is a second @, the text around it may be part of a password.
            netloc = urlsplit(self.dsn).netloc
            if netloc.count("@") > 1 or self.dsn.count("@") > netloc.count("@"):
                return hidden(self.dsn)
        if not endpoints:
            return f"service {self.service}" if self.service else "the default server"
        return ", ".join(map(_name_of, endpoints))

    @property
    def full_name(self) -> str:
        """How messages name the servers of the DSN and its database; it contains no secret."""
        server = self.name_of(chosen_endpoints(self, {}, os.environ))
        return f"{server}, database {self.database}" if self.database and "***" not in server else server


def parsed_address(name: str, dsn: str) -> ServerAddress:
    """Parse a DSN.

    Raises:
        TypeError: if it is not a str.
        ValueError: if it cannot be used, or has a parameter of libpq that the pool cannot honor. The message names the
            parameter. It contains no value, because a value may be a part of a password.
    """
    parts = urlsplit(checked_dsn(name, dsn))
    # As in asyncpg, the last value of a parameter counts.
    parameters = dict(parse_qsl(parts.query, keep_blank_values=True))
    for parameter, value in parameters.items():
        _check_parameter(name, parameter, value)
    before, mark, _ = dsn.partition("?")
    query = "&".join(_kept(parts.query, "application_name" in parameters))
    seconds = parameters.get("connect_timeout")
    return ServerAddress(
        dsn=f"{before}{mark}{query}" if query else before,
        endpoints=_endpoints(name, parts.netloc, parameters),
        ports=_ports(name, parameters["port"]) if parameters.get("port") else (),
        database=unquote(parts.path[1:]) or parameters.get("database") or parameters.get("dbname"),
        service=parameters.get("service"),
        connect_timeout=float(seconds) if seconds else None,
        shuffled=parameters.get("load_balance_hosts") == "random",
        session_attributes=parameters.get("target_session_attrs"),
        socket_options={key: int(value) for key, value in parameters.items() if key in _SOCKET_OPTIONS},
    )


def _check_parameter(name: str, parameter: str, value: str) -> None:
    if parameter in _UNSUPPORTED:
        raise ValueError(f"{name} must not have the parameter {parameter}, which asyncpg does not support")
    if parameter in _KEYWORDS:
        raise ValueError(
            f"{name} must not have the parameter {parameter}, which libpq does not know; pass it as a keyword argument"
        )
    if parameter in _CHOICES:
        choices = _CHOICES[parameter]
        if value not in choices and value.lower() not in choices:
            raise ValueError(f"{name}: parameter {parameter} must be one of: {', '.join(choices)}")
    elif parameter in _OWN and parameter != "fallback_application_name":
        least = 1 if parameter == "connect_timeout" else 0
        if re.fullmatch(r"[0-9]{1,9}", value) is None or int(value) < least:
            raise ValueError(f"{name}: parameter {parameter} must be an integer of at least {least}")


def _kept(query: str, named: bool) -> list[str]:
    """Return the items of a query for asyncpg; `named` says whether the query has an `application_name`."""
    kept = []
    for item in query.split("&"):
        parameter, _, value = item.partition("=")
        parameter = unquote_plus(parameter)
        if parameter == "fallback_application_name" and not named:
            kept.append(f"application_name={value}")
        elif parameter not in _OWN and parameter not in _WITHOUT_EFFECT:
            kept.append(item)
    return kept


def chosen_endpoints(
    address: ServerAddress, connect_options: Mapping[str, Any], environ: Mapping[str, str]
) -> tuple[Endpoint, ...]:
    """Return the host and port of each server, chosen as asyncpg does it.

    Hosts are those of the keyword argument, of the DSN, or of `PGHOST`. None are returned if asyncpg has to find them:
    in a service file, or in the places where a server on this machine has its socket.

    Raises:
        ValueError: if there is neither one port nor one for each host.
    """
    host, port = connect_options.get("host"), connect_options.get("port")
    ports = list(port) if isinstance(port, list | tuple) else [port] if port else []
    if host:
        endpoints: list[Endpoint] = [{"host": name} for name in (host if isinstance(host, list | tuple) else [host])]
        ports = ports or list(address.ports)
    elif address.endpoints:
        endpoints = list(address.endpoints)
    elif address.service or connect_options.get("service") or not environ.get("PGHOST"):
        return ()
    else:
        endpoints = [_endpoint(spec) for spec in environ["PGHOST"].split(",")]
        ports = ports or list(address.ports)
    if ports:
        return _with_ports("host and port", [{"host": endpoint["host"]} for endpoint in endpoints], ports)
    if all("port" in endpoint for endpoint in endpoints):
        return tuple(endpoints)
    return _with_ports("PGPORT", endpoints, _ports("PGPORT", environ.get("PGPORT", "")))


def _with_ports(name: str, endpoints: Sequence[Endpoint], ports: Sequence[Any]) -> tuple[Endpoint, ...]:
    """Give each host without a port its port, if that is given."""
    if len(ports) <= 1:
        ports = (list(ports) or [None]) * len(endpoints)
    if len(ports) != len(endpoints):
        raise ValueError(
            f"{name} must have one port, or one for each host, got {len(endpoints)} hosts, {len(ports)} ports"
        )
    return tuple(
        {**endpoint, "port": port} if port and "port" not in endpoint else endpoint
        for endpoint, port in zip(endpoints, ports, strict=True)
    )


def _ports(name: str, text: str) -> tuple[int | None, ...]:
    try:
        return tuple(int(port) if port else None for port in text.split(","))
    except ValueError:
        raise ValueError(f"{name} must have integers as its ports") from None


def _endpoints(name: str, netloc: str, parameters: Mapping[str, str]) -> tuple[Endpoint, ...]:
    # As in asyncpg, the password ends at the first @.
    before, at, after = netloc.partition("@")
    hosts = after if at else before
    decode: Callable[[str], str] = unquote if hosts else str
    hosts = hosts or parameters.get("host", "")
    if not hosts:
        return ()
    endpoints = [_endpoint(decode(host)) for host in hosts.split(",")]
    return _with_ports(name, endpoints, _ports(name, parameters.get("port", "")))


def _endpoint(spec: str) -> Endpoint:
    host, port = spec, ""
    if found := re.fullmatch(r"\[([^\]]+)\](?::([0-9]*))?", spec):
        host, port = found[1], found[2] or ""
    elif not spec.startswith("/"):
        host, _, port = spec.partition(":")
    return {"host": host, "port": int(port)} if port else {"host": host}


def _name_of(endpoint: Endpoint) -> str:
    host, port = endpoint["host"], endpoint.get("port")
    if host.startswith("/"):
        # The file of the socket, as libpq and asyncpg name it.
        return f"unix:{host}/.s.PGSQL.{port}" if port else f"unix:{host}"
    host = f"[{host}]" if ":" in host else host
    return f"{host}:{port}" if port else host
