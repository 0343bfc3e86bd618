"""Checks that a service can run here: the extension, the settings, the servers."""

import os
import platform
import secrets
import textwrap
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from importlib.metadata import version
from typing import Any, Final

import asyncpg
import redis.asyncio
import redis.exceptions
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from rich.console import Console
from rich.text import Text

from acgsperf.dispatch import IMPLEMENTATION
from acgsperf.errors import AcgsperfError, SettingsError
from acgsperf.printable import printable
from acgsperf.service.workers import Workers
from acgsperf.settings import Settings
from acgsperf.tiers.redis_keys import RedisKeys
from acgsperf.tiers.redis_tls import hint_of
from acgsperf.timeouts import time_limit
from acgsperf.workbench.embedded import embedded_servers
from acgsperf.workbench.topology import postgres_topology, redis_topology, role_of_redis

__all__ = ["Finding", "Severity", "as_dicts", "examine", "print_findings"]

TIMEOUT_S: Final = 5.0
# On a narrower terminal, the detail does not get a column of its own.
WIDE: Final = 60
OLDEST_REDIS: Final = (6, 2)
# The first with xid8.
OLDEST_POSTGRES: Final = 130_000


class Severity(StrEnum):
    """OK; WARNING: it works, but not well; ERROR: it does not work."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the examination."""

    subject: str
    severity: Severity
    detail: str


@dataclass(frozen=True, slots=True)
class _Server:
    """A server that a service needs.

    Attributes:
        name: its name for people.
        variable: the environment variable with its address.
        ask: examines a server that answers.
    """

    name: str
    variable: str
    ask: Callable[[str, Settings], Coroutine[Any, Any, Finding]]


async def examine(environ: Mapping[str, str]) -> AsyncIterator[Finding]:
    """Examine this machine and the servers that the environment names, one after the other.

    If a server is not named, a private one is started for the examination. That shows that private servers work here.

    Args:
        environ: the variables of `Settings.from_environment`.
    """
    yield _python()
    yield _extension()
    try:
        settings = Settings.from_environment(environ)
    except SettingsError as error:
        yield Finding("settings", Severity.ERROR, str(error))
        return
    yield Finding("settings", Severity.OK, f"hash {', '.join(settings.constitutional_hashes)}")
    if (found := _workers(settings)) is not None:
        yield found
    yield await _examined(_Server("Redis", "REDIS_URL", _redis), settings.redis_url, settings)
    yield await _examined(_Server("PostgreSQL", "DATABASE_URL", _postgres), settings.database_url, settings)


def as_dicts(findings: Iterable[Finding]) -> list[dict[str, str]]:
    """Return the findings as JSON-like values."""
    return [asdict(finding) for finding in findings]


def print_findings(findings: Iterable[Finding]) -> None:
    """Print a line for each finding; on a terminal, lines are wrapped between words."""
    console = Console(highlight=False)
    colours = {Severity.OK: "green", Severity.WARNING: "yellow", Severity.ERROR: "bold red"}
    # In a pipe, a finding is one line that can be searched.
    one_line = not (console.is_terminal or "COLUMNS" in os.environ)
    for finding in findings:
        head = f"{finding.severity:7} {finding.subject:10} "
        indent = len(head) if console.width >= WIDE else 8
        line = head + printable(finding.detail)
        lines = [line] if one_line else _wrapped(line, console.width, indent)
        text = Text("\n".join(lines))
        text.stylize(colours[finding.severity], 0, len(finding.severity))
        console.print(text, soft_wrap=True)


def _wrapped(line: str, width: int, indent: int) -> list[str]:
    return textwrap.wrap(line, width, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False)


async def _examined(server: _Server, url: str | None, settings: Settings) -> Finding:
    if url is not None:
        return await _reached(server, url, settings)
    is_redis = server.name == "Redis"
    try:
        with embedded_servers(redis=is_redis, postgres=not is_redis) as private:
            url = private.redis_url or private.database_url
            assert url is not None
            # No pool of the configured size will be opened there.
            found = await _reached(server, url, replace(settings, db_pool_min_size=1, db_pool_max_size=1))
    except AcgsperfError as error:
        problem = f"{server.variable} is not set, so a service has no {server.name} ({error})"
        return Finding(server.name, Severity.WARNING, problem)
    if found.severity is Severity.ERROR:
        return replace(found, detail=f"{server.variable} is not set, and the private one failed: {found.detail}")
    return replace(found, detail=f"{server.variable} is not set; a private one is {found.detail}")


async def _reached(server: _Server, url: str, settings: Settings) -> Finding:
    try:
        async with time_limit(TIMEOUT_S):
            return await server.ask(url, settings)
    except TimeoutError:
        problem = f"no answer within {TIMEOUT_S:g} s{hint_of(url)}"
    except Exception as error:
        # Clients raise many types of exceptions for an address that they refuse.
        # A Redis that does not know AUTH repeats its arguments, among which is the password.
        text = str(error).partition(", with args")[0]
        problem = " ".join(text.split()) or type(error).__name__
    return Finding(server.name, Severity.ERROR, f"{server.variable}: cannot be reached: {problem}")


def _workers(settings: Settings) -> Finding | None:
    try:
        workers = Workers.from_settings(settings)
    except SettingsError as error:
        return Finding("workers", Severity.ERROR, str(error))
    if workers is None:
        return None
    reporting = sum(1 for _ in workers.others())
    processes = "1 other process reports" if reporting == 1 else f"{reporting} other processes report"
    return Finding("workers", Severity.OK, f"{processes} in {settings.workers_directory!r}")


def _python() -> Finding:
    return Finding("Python", Severity.OK, f"{platform.python_implementation()} {platform.python_version()}")


def _extension() -> Finding:
    name = f"acgsperf {version('acgsperf')}"
    if IMPLEMENTATION == "c":
        return Finding("extension", Severity.OK, f"{name}, compiled")
    return Finding("extension", Severity.WARNING, f"{name} runs in plain Python: correct, but tens of times slower")


async def _redis(url: str, settings: Settings) -> Finding:
    topology = await redis_topology(url)
    client = redis.asyncio.Redis.from_url(topology.connect_to, retry=Retry(NoBackoff(), 0), protocol=2)
    try:
        asked = time.perf_counter()
        await client.time()
        took = time.perf_counter() - asked
        about = await client.info("server")
        memory = await client.info("memory")
        role, role_problem = await role_of_redis(topology.connect_to)
        refused = await _refused_log(client, settings.cache_namespace)
    finally:
        await client.aclose()
    server = about["redis_version"]
    name = f"Valkey {about['valkey_version']}" if "valkey_version" in about else server
    measured = f"{name}, {1e3 * took:.2f} ms away, {role}"
    if topology.detail:
        measured += f"; {topology.detail}"
    if problem := role_problem or topology.problem:
        return Finding("Redis", Severity.WARNING, f"{measured}; {problem}")
    if tuple(int(part) for part in server.split(".")[:2]) < OLDEST_REDIS:
        return Finding("Redis", Severity.WARNING, f"{measured}; the oldest supported version is 6.2")
    if refused:
        problem = f"the user may not use {', '.join(refused)}: caches do not get records of each other's writes"
        return Finding("Redis", Severity.WARNING, f"{measured}; {problem}")
    if memory.get("maxmemory") and memory.get("maxmemory_policy") == "noeviction":
        return Finding(
            "Redis", Severity.WARNING, f"{measured}; maxmemory-policy is noeviction: it refuses writes when it is full"
        )
    return Finding("Redis", Severity.OK, measured)


async def _refused_log(client: Any, namespace: str) -> list[str]:
    """Use a log as a backplane does, and return the commands that the user may not use."""
    key = RedisKeys(namespace).entry(f"acgsperf-doctor-{secrets.token_hex(8)}")
    commands: list[tuple[str | int | bytes, ...]] = [
        ("XADD", key, "MAXLEN", "~", 10, "*", "r", ""),
        ("XRANGE", key, "-", "+"),
        ("XREAD", "COUNT", 1, "STREAMS", key, "0"),
        ("PEXPIRE", key, 1000),
        ("UNLINK", key),
    ]
    async with client.pipeline(transaction=False) as pipe:
        for command in commands:
            pipe.execute_command(*command)
        replies = await pipe.execute(raise_on_error=False)
    asked = zip(commands[:3], replies, strict=False)
    return [str(command[0]) for command, reply in asked if isinstance(reply, redis.exceptions.NoPermissionError)]


async def _postgres(url: str, settings: Settings) -> Finding:
    topology = await postgres_topology(url)
    connection = await asyncpg.connect(statement_cache_size=0, **topology.connect_to)
    try:
        asked = time.perf_counter()
        await connection.fetchval("SELECT 1")
        took = time.perf_counter() - asked
        ((allowed, reserved, number, server),) = await connection.fetch(
            "SELECT current_setting('max_connections')::int, current_setting('superuser_reserved_connections')::int"
            # Since PostgreSQL 16.
            " + coalesce(current_setting('reserved_connections', true), '0')::int,"
            " current_setting('server_version_num')::int, current_setting('server_version')"
        )
        read_only = await connection.fetchval("SHOW transaction_read_only") == "on"
        direct = connection.get_server_pid() == await connection.fetchval("SELECT pg_backend_pid()")
    finally:
        await connection.close(timeout=1)
    measured = f"{server.split()[0]}, {1e3 * took:.2f} ms away, {topology.detail}"
    if number < OLDEST_POSTGRES:
        problem = "L3 needs version 13 or later, and stores nothing here"
        return Finding("PostgreSQL", Severity.WARNING, f"{measured}; {problem}")
    if topology.problem:
        return Finding("PostgreSQL", Severity.WARNING, f"{measured}; {topology.problem}")
    if read_only:
        return Finding("PostgreSQL", Severity.WARNING, f"{measured}; it is read-only, so L3 cannot store anything")
    if settings.db_pool_max_size > allowed - reserved:
        problem = (
            f"DB_POOL_MAX_SIZE is {settings.db_pool_max_size}, but the server allows {allowed - reserved} connections "
            f"to its users (max_connections {allowed}, of which it reserves {reserved})"
        )
        return Finding("PostgreSQL", Severity.WARNING, f"{measured}; {problem}")
    if not direct and settings.redis_url is None:
        problem = "a pooler is in between, and there is no Redis: caches do not get records of each other's writes"
        return Finding("PostgreSQL", Severity.WARNING, f"{measured}; {problem}")
    return Finding("PostgreSQL", Severity.OK, measured)
