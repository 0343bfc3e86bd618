"""A client of a Redis Cluster with the commands of the former cache, each for one key."""

import asyncio
from collections.abc import Sequence
from typing import Any, Final

from redis.asyncio import Connection, ConnectionPool, Redis, SSLConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AskError, ClusterDownError, MovedError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError

from acgsperf.tiers.redis_server import RedisServer
from acgsperf.tiers.redis_slots import CLUSTER_SCHEMES, joined, key_slot, slots_of

__all__ = ["ClusterClient", "is_cluster"]

_MOST_ROUNDS: Final = 5


def is_cluster(url: str) -> bool:
    """Return whether a URL names the nodes of a cluster."""
    return url.startswith(tuple(f"{scheme}:" for scheme in CLUSTER_SCHEMES))


class _ToNode(Connection):
    """Connects to a node.

    Args:
        server: the node.
        options: those of redis-py.
    """

    def __init__(self, *, server: RedisServer, **options: Any) -> None:
        super().__init__(**options)
        self._server = server
        server.tls.give(self)

    async def connect(self) -> None:
        """Connect, if it is not connected."""
        if not self.is_connected:
            await self._server.locate(self)
            await super().connect()  # type: ignore[no-untyped-call]


class _ToNodeOverTLS(_ToNode, SSLConnection):
    """The same, over TLS."""


class ClusterClient:
    """Sends each command to the node that has its key, over redis-py's client of that node.

    MOVED and ASK are followed. If a node does not answer, the next command asks the others for the slots first.

    Args:
        url: `redis+cluster://` or `rediss+cluster://`.

    Raises:
        ValueError: if the URL is not valid. The message does not repeat it.
    """

    def __init__(self, url: str) -> None:
        self._slots = slots_of(url)
        self._clients: dict[str, Redis] = {}
        # For each slot of which a node has answered MOVED since the last request for all slots: its new node.
        self._moved: dict[int, str] = {}
        self._is_known = False

    async def find(self) -> None:
        """Ask the nodes for their slots.

        Raises:
            redis.ConnectionError: if none of them tells.
        """
        found = await self._slots.find()
        self._moved.clear()
        self._is_known = True
        known = {*found.primaries, *(one for some in found.replicas.values() for one in some)}
        for address in self._clients.keys() - known:
            await self._clients.pop(address).aclose()

    async def ping(self) -> None:
        """Ask every primary whether it answers.

        Raises:
            redis.RedisError, OSError: if one of them does not.
        """
        await self.find()
        clients: list[Any] = [self._client(address) for address in self._slots.map.primaries]
        await asyncio.gather(*(client.execute_command("PING") for client in clients))

    async def get(self, key: str) -> Any:
        """Return the value of a key."""
        return (await self._run([("GET", key)]))[0]

    async def set(self, key: str, value: str) -> Any:
        """Store a value forever."""
        return (await self._run([("SET", key, value)]))[0]

    async def setex(self, key: str, ttl: int, value: str) -> Any:
        """Store a value for some seconds."""
        return (await self._run([("SETEX", key, ttl, value)]))[0]

    async def ttl(self, key: str) -> Any:
        """Return the seconds until a key expires."""
        return (await self._run([("TTL", key)]))[0]

    async def delete(self, *keys: str) -> int:
        """Remove keys, and return how many there were."""
        return sum(await self._run([("DEL", key) for key in keys]))

    async def close(self) -> None:
        """Close all connections."""
        clients, self._clients = self._clients, {}
        await asyncio.gather(*(client.aclose() for client in clients.values()))

    async def _run(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        try:
            return await self._sent(commands)
        except ResponseError:
            raise
        except BaseException:
            # A deadline ends a call to a node that hangs.
            self._is_known = False
            raise

    async def _sent(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Send commands for one key each, one pipeline to each node, and return their replies."""
        if not self._is_known:
            await self.find()
        slots = [key_slot(command[1].encode()) for command in commands]
        replies: list[Any] = [None] * len(commands)
        todo: Sequence[int] = range(len(commands))
        asked: dict[int, str] = {}
        for _ in range(_MOST_ROUNDS):
            groups: dict[str, list[int]] = {}
            for at in todo:
                address = asked.get(at) or self._moved.get(slots[at]) or self._slots.map.owner(slots[at])
                if not address:
                    raise RedisConnectionError(f"no node has the slot {slots[at]} of the {self._slots.where}")
                groups.setdefault(address, []).append(at)
            parts = await asyncio.gather(*(self._ask(node, some, commands, asked) for node, some in groups.items()))
            again: list[int] = []
            asked = {}
            has_moved = False
            for (address, some), part in zip(groups.items(), parts, strict=True):
                for at, reply in zip(some, part, strict=True):
                    replies[at] = reply
                    if isinstance(reply, MovedError):
                        self._moved[slots[at]] = joined(*reply.node_addr, address)
                        has_moved = True
                        again.append(at)
                    elif isinstance(reply, AskError):
                        asked[at] = joined(*reply.node_addr, address)
                        again.append(at)
                    elif isinstance(reply, ClusterDownError):
                        raise RedisConnectionError(f"{address} refuses all commands: {reply}")
                    elif isinstance(reply, ResponseError):
                        raise reply
            if not again:
                return replies
            todo = again
            if has_moved:
                moved = dict(self._moved)
                await self.find()
                # A node that answers MOVED may know of it earlier than those that tell the slots.
                self._moved.update({slot: to for slot, to in moved.items() if self._slots.map.owner(slot) != to})
        raise RedisConnectionError(f"the nodes of the cluster disagree about {len(todo)} keys")

    async def _ask(
        self, address: str, some: Sequence[int], commands: Sequence[tuple[Any, ...]], asked: dict[int, str]
    ) -> list[Any]:
        async with self._client(address).pipeline(transaction=False) as pipeline:
            for at in some:
                if at in asked:
                    pipeline.execute_command("ASKING")
                pipeline.execute_command(*commands[at])
            replies = iter(await pipeline.execute(raise_on_error=False))
        return [next(replies) if at not in asked else (next(replies), next(replies))[1] for at in some]

    def _client(self, address: str) -> Redis:
        client = self._clients.get(address)
        if client is None:
            url = self._slots.url_of(address)
            # RESP2 has no push messages, so a reply always belongs to its command. Retries would delay a miss.
            pool = ConnectionPool.from_url(url, protocol=2, retry=Retry(NoBackoff(), 0))
            over_tls = issubclass(pool.connection_class, SSLConnection)
            if over_tls:
                pool.connection_kwargs.setdefault("ssl_check_hostname", True)
            pool.connection_class = _ToNodeOverTLS if over_tls else _ToNode
            pool.connection_kwargs["server"] = RedisServer(url, tls=self._slots.tls)
            client = self._clients[address] = Redis.from_pool(pool)
        return client
