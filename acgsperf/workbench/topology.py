"""The roles of the servers that an address leads to, as `doctor` tells them."""

import asyncio
import os
from dataclasses import dataclass
from typing import Any, Final

import asyncpg

from acgsperf.pool.server_address import Endpoint, chosen_endpoints, parsed_address
from acgsperf.tiers.redis_connections import RedisConnections
from acgsperf.tiers.redis_replies import text
from acgsperf.tiers.redis_role import Role
from acgsperf.tiers.redis_sentinel import SentinelServer, redis_server
from acgsperf.tiers.redis_slots import SLOTS, ClusterServer, RedisSlots

__all__ = ["Topology", "postgres_topology", "redis_topology", "role_of_redis"]

_TIMEOUT_S: Final = 2.0
_ROLE: Final = """
SELECT pg_is_in_recovery(), current_setting('transaction_read_only') = 'on',
    CASE WHEN NOT pg_is_in_recovery() THEN NULL
        WHEN pg_last_wal_receive_lsn() = pg_last_wal_replay_lsn() THEN 0
        ELSE extract(epoch FROM now() - pg_last_xact_replay_timestamp()) END::float,
    (SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'),
    (SELECT extract(epoch FROM max(replay_lag)) FROM pg_stat_replication)::float
"""


@dataclass(frozen=True, slots=True)
class Topology:
    """What was found.

    Attributes:
        connect_to: what leads to the server that a service would use: a URL of Redis, or arguments for asyncpg.
        detail: the roles in words; empty if there is nothing to tell.
        problem: what is wrong with them; empty if nothing is.
    """

    connect_to: Any
    detail: str = ""
    problem: str = ""


async def redis_topology(url: str) -> Topology:
    """Ask the sentinels or the nodes of a URL, if it names some."""
    server = redis_server(url)
    if isinstance(server, ClusterServer):
        return await _cluster_topology(server.slots)
    if not isinstance(server, SentinelServer):
        return Topology(url)
    host, port = await server.find()
    answers = await server.ask_all()
    others = [answer.problem for answer in answers if answer.address is None]
    others += [
        f"one sentinel names {found[0]}:{found[1]}"
        for answer in answers
        if (found := answer.address) is not None and found != (host, port)
    ]
    detail = f"{host}:{port} is the primary of the service {server.service!r} of {len(answers)} sentinels"
    return Topology(server.url_of(host, port), detail, "; ".join(others))


async def _cluster_topology(slots: RedisSlots) -> Topology:
    """Ask each primary of a cluster for its role."""
    found = await slots.find()
    primaries = found.primaries
    details, problems = [], []
    asked = await asyncio.gather(
        *(asyncio.wait_for(role_of_redis(slots.url_of(address)), _TIMEOUT_S) for address in primaries),
        return_exceptions=True,
    )
    for address, answer in zip(primaries, asked, strict=True):
        if isinstance(answer, BaseException):
            problems.append(f"{address} cannot be reached ({type(answer).__name__})")
        else:
            details.append(f"{address}: {answer[0]}")
            if answer[1]:
                problems.append(f"{address} is a replica, and has slots")
    covered = sum(shard.last - shard.first + 1 for shard in found.shards)
    if covered < SLOTS:
        problems.append(f"{SLOTS - covered} of {SLOTS} slots belong to no node")
    number = "1 primary" if len(primaries) == 1 else f"{len(primaries)} primaries"
    usable = [at for at, answer in enumerate(asked) if not isinstance(answer, BaseException)]
    connect_to = slots.url_of(primaries[usable[0] if usable else 0])
    return Topology(connect_to, f"cluster of {number}: {'; '.join(details)}", "; ".join(problems))


async def role_of_redis(url: str) -> tuple[str, str]:
    """Return the role of a Redis in words, and what is wrong with it."""
    connections = RedisConnections(url)
    connections.open()
    try:
        role = Role(await connections.ask([("INFO", "replication")], lambda replies: text(replies[0])))
    finally:
        connections.close()
    return role.describe(), "it is a replica, so L2 does not use it" if role.is_replica else ""


async def postgres_topology(dsn: str) -> Topology:
    """Ask each server of a DSN for its role."""
    address = parsed_address("DATABASE_URL", dsn)
    endpoints = chosen_endpoints(address, {}, os.environ) or ({},)
    found = await asyncio.gather(*(_role_of_postgres(address.dsn, endpoint) for endpoint in endpoints))
    if len(endpoints) == 1 and isinstance(found[0], Exception):
        raise found[0]
    alone = len(endpoints) == 1
    details, problems = [], []
    chosen: dict[str, Any] = {}
    for endpoint, role in zip(endpoints, found, strict=True):
        name = "" if alone else ":".join(map(str, endpoint.values())) + ": "
        if isinstance(role, Exception):
            problems.append(f"{name}cannot be reached ({type(role).__name__})")
            continue
        details.append(name + role[1])
        if role[0]:
            chosen = chosen or {"dsn": address.dsn, **endpoint}
    if not chosen:
        problems.append("it is a standby, so L3 does not use it" if alone else "none of the servers is a primary")
        usable = [endpoint for endpoint, role in zip(endpoints, found, strict=True) if not isinstance(role, Exception)]
        chosen = {"dsn": address.dsn, **(usable or [endpoints[0]])[0]}
    return Topology(chosen, "; ".join(details), "; ".join(problems))


async def _role_of_postgres(dsn: str, endpoint: Endpoint) -> tuple[bool, str] | Exception:
    """Return whether a server is a primary, and its role in words; or why it cannot be reached."""
    try:
        options: dict[str, Any] = {**endpoint, "timeout": _TIMEOUT_S, "target_session_attrs": "any"}
        connection = await asyncpg.connect(dsn, statement_cache_size=0, **options)
        try:
            in_recovery, read_only, lag_s, standbys, their_lag_s = await connection.fetchrow(_ROLE)
        finally:
            await connection.close(timeout=1)
    except Exception as error:
        return error
    if in_recovery:
        return False, f"standby, lag {'unknown' if lag_s is None else f'{lag_s:.1f} s'}"
    primary = "read-only primary" if read_only else "primary"
    if not standbys:
        return True, f"{primary} without standbys"
    number = "1 standby" if standbys == 1 else f"{standbys} standbys"
    return True, f"{primary} with {number}, lag at most {their_lag_s or 0:.1f} s"
