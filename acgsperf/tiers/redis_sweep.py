"""Frees the memory of the entries that an invalidation of the whole namespace has left."""

import re
from collections.abc import Callable, Sequence
from typing import Final

from redis.exceptions import ResponseError

from acgsperf.tiers.redis_calls import Asking, Job, RedisCalls, ScriptCall
from acgsperf.tiers.redis_keys import RedisKeys
from acgsperf.tiers.redis_replies import cursor_and_keys
from acgsperf.tiers.redis_scripts import SWEEP
from acgsperf.tiers.server_calls import ServerCalls

__all__ = ["RedisSweep"]

KEYS_A_SCAN: Final = 1_000


class RedisSweep:
    """Removes the entries with a former token of the namespace, by SCAN, a thousand keys at a time.

    Args:
        scripts: calls the script.
        connections: to the server, or to the nodes of a cluster.
        prefix: what all keys of the namespace begin with.
        keys_of: returns the keys of the namespace, or of the bucket to which a key belongs.
    """

    def __init__(
        self, scripts: RedisCalls, connections: Asking, prefix: bytes, keys_of: Callable[[bytes], RedisKeys]
    ) -> None:
        self._scripts = scripts
        self._connections = connections
        # It narrows the scan; the exact prefix decides which keys are ours.
        self._pattern = re.sub(rb"([*?\[\]\\^-])", rb"\\\1", prefix) + b"[:%]*"
        self._keys_of = keys_of

    async def run(self, calls: ServerCalls, node: Asking) -> int | None:
        """Sweep one server.

        Args:
            calls: makes the calls to it.
            node: connections to it.

        Returns:
            How many live entries were removed; None if the server has refused one, or does not answer.
        """
        removed, cursor = 0, b"0"
        while True:
            scan = ("SCAN", cursor, "MATCH", self._pattern, "COUNT", KEYS_A_SCAN)
            scanned = await calls.run(lambda scan=scan: node.ask([scan], cursor_and_keys))  # type: ignore[misc]
            if scanned is None:
                return None
            cursor, keys = scanned
            some = await calls.run(lambda keys=keys: self._remove(keys))  # type: ignore[misc]
            if some is None:
                return None
            removed += some
            if cursor == b"0":
                return removed

    async def _remove(self, keys: Sequence[bytes]) -> int:
        entries: dict[bytes, list[bytes]] = {}
        tags: list[bytes] = []
        for key in keys:
            own = self._keys_of(key)
            if key.startswith(own.tags):
                tags.append(key)
            elif own.is_entry(key):
                entries.setdefault(own.token, []).append(key)
        if tags:
            await self._connections.ask([("UNLINK", key) for key in tags], list)
        jobs: list[Job] = [(self._call, some) for some in entries.values()]
        removed = 0
        for _, reply in await self._scripts.run_each(jobs) if jobs else ():
            if isinstance(reply, ResponseError):
                raise reply
            removed += reply[1:].count(-2)
        return removed

    def _call(self, keys: Sequence[bytes]) -> ScriptCall:
        return ScriptCall(SWEEP, [self._keys_of(keys[0]).token, *keys], [], 1 + len(keys))
