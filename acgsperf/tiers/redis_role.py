"""The role of a Redis server, as INFO tells it."""

import re
from typing import Any, Final

from acgsperf.tiers.redis_replies import ReplicaError

__all__ = ["Role", "check_primary"]


def check_primary(replies: list[Any]) -> list[Any]:
    """Return replies without the first one, which is that of `INFO replication`.

    Raises:
        ReplicaError: if it says that the server is a replica. A server that refuses INFO is taken to be a primary.
    """
    replication, *others = replies
    if type(replication) is bytes and (role := Role(replication)).is_replica:
        raise ReplicaError(role.describe())
    return others


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
