"""The role of a Redis server, as INFO tells it."""

import re
from typing import Any, Final

from redis.exceptions import ConnectionError as RedisConnectionError

from acgsperf.tiers.redis_replies import ReplicaError

__all__ = ["Role", "check_primary", "is_node", "node_error", "product_of"]


def check_primary(replies: list[Any]) -> list[Any]:
    """Return replies without the first one, which is that of `INFO replication`.

    Raises:
        ReplicaError: if it says that the server is a replica. A server that refuses INFO is taken to be a primary.
    """
    replication, *others = replies
    if type(replication) is bytes and (role := Role(replication)).is_replica:
        raise ReplicaError(role.describe())
    return others


def is_node(info: Any) -> bool:
    """Return whether a server is a node of a cluster; `info` is the section `server` of INFO."""
    return type(info) is bytes and re.search(rb"^(redis|server)_mode:cluster", info, re.MULTILINE) is not None


def node_error(where: str) -> RedisConnectionError:
    """Return the error for a node of a cluster whose URL is that of a single server."""
    return RedisConnectionError(f"{where} is a node of a cluster; use redis+cluster:// in its URL")


def product_of(info: bytes) -> str:
    """Return the product and its version, as INFO tells them."""
    # For its clients, Valkey calls itself Redis 7.2.4, too.
    for name in ("Valkey", "Redis"):
        if version := re.search(rb"\b%s_version:(\S+)" % name.lower().encode(), info):
            return f"{name} {version[1].decode()}"
    return "Redis"


class Role:
    """Reads the section `replication` of INFO.

    Args:
        info: the reply.

    Attributes:
        is_replica: whether the server is a replica.
        replicas: how many replicas of a primary are connected.
        lag_s: the longest time since one of them has acknowledged what it has; for a replica, since it has heard from
            its primary. None if it is unknown.
    """

    def __init__(self, info: bytes) -> None:
        self.is_replica: Final = re.search(rb"^role:slave\b", info, re.MULTILINE) is not None
        lags = re.findall(rb"^slave\d+:.*\bstate=online\b.*\blag=(\d+)", info, re.MULTILINE)
        self.replicas: Final = len(lags)
        if self.is_replica:
            lags = re.findall(rb"^master_last_io_seconds_ago:(\d+)", info, re.MULTILINE)
        self.lag_s: Final = max(map(int, lags), default=None)

    def describe(self) -> str:
        """Return the role in words."""
        if self.is_replica:
            heard = (
                "not connected to its primary" if self.lag_s is None else f"heard from its primary {self.lag_s} s ago"
            )
            return f"replica, {heard}"
        if not self.replicas:
            return "primary without replicas"
        number = "1 replica" if self.replicas == 1 else f"{self.replicas} replicas"
        return f"primary with {number}, lag at most {self.lag_s} s"
