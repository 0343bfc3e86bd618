"""Connections to one Redis server, shared by everything in a tier that talks to it."""

import asyncio
import itertools
import logging
import random
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from time import monotonic, perf_counter_ns
from typing import Any, Final, TypeVar

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import InvalidResponse, ResponseError

from acgsperf._native.arguments import checked_at_least, checked_callable, checked_seconds
from acgsperf.dispatch import LatencyHistogram
from acgsperf.tiers.base import ConnectionStats
from acgsperf.tiers.redis_connection import Command, Connection, Greeting, OwnConnection, packed
from acgsperf.tiers.redis_replies import MovedSlotError, ReplicaError, UnexpectedReplyError
from acgsperf.tiers.redis_role import check_primary, is_node, node_error
from acgsperf.tiers.redis_sentinel import redis_server
from acgsperf.tiers.redis_server import Credentials, RedisServer
from acgsperf.tiers.redis_slots import ClusterServer, key_slot

__all__ = ["Command", "Credentials", "Greeting", "OwnConnection", "RedisConnections"]

_log: Final = logging.getLogger("acgsperf.tiers")
MAX_CONNECTIONS: Final = 10
MAX_LIFETIME_S: Final = 3600.0
# How many idle connections are kept open, and how long the others may be idle.
KEPT_IDLE: Final = 2
MAX_IDLE_S: Final = 4.0

_T = TypeVar("_T")


class RedisConnections:
    """Sends commands over a bounded number of connections.

    A connection carries the commands of one caller at a time. It is used again only if every reply was read and
    belonged to its command. If all connections are in use, callers wait in order.

    If the server says that it is a replica, all connections are closed, and the commands are sent once more over a new
    one, for which the name of the server is looked up again. If that leads to a replica too, the call fails.

    Args:
        url: `redis://`, `rediss://`, `unix://`, `redis+sentinel://`, `redis+cluster://`, or one of the last two with
            `rediss`.
        max_connections: maximum number of open connections; None for the URL's `max_connections`, or 10.
        max_lifetime: seconds after which a connection is replaced; most are replaced up to 10 % earlier.
        credentials: called for each new connection; returns, or awaits, a password, or a user name and a password.
        server: finds the server; None for the one of the URL.

    Attributes:
        server: finds the server.
        where: address of the server, for messages; without a password.
        failovers: how often the server turned out to have become a replica.
        connect_time: how long it took to open a connection, in ns.
        label: names the owner in log lines.
        greeting: the commands that are sent first over each new connection.

    Raises:
        ValueError: if the URL or a number is not valid. The message does not repeat the URL.
    """

    def __init__(
        self,
        url: str,
        *,
        max_connections: int | None = None,
        max_lifetime: float = MAX_LIFETIME_S,
        credentials: Credentials | None = None,
        server: RedisServer | None = None,
    ) -> None:
        self.greeting: Greeting | None = None
        self._max_lifetime = checked_seconds("max_lifetime", max_lifetime)
        checked_callable("credentials", credentials)
        self._url, self._credentials = url, credentials
        self.server: Final = redis_server(url, credentials) if server is None else server
        self.server.follow(self)
        if max_connections is None:
            in_url = self.server.max_connections
            max_connections = MAX_CONNECTIONS if in_url is None else in_url
        self._max_connections = checked_at_least("max_connections", max_connections, 1)
        self.where: Final = self.server.where
        self.label: str = "redis"
        self.failovers: int = 0
        self.connect_time: Final = LatencyHistogram()
        self._failed_connects = 0
        self._is_demoted = False
        # Changes when connections are closed because their server is a replica, or is another one.
        self._era = 0
        self._run = b""
        self._loop: asyncio.AbstractEventLoop | None = None
        # Connections in use or idle.
        self._size = 0
        self._idle: list[Connection] = []
        self._opened: weakref.WeakSet[Connection] = weakref.WeakSet()
        # Each waiter gets an idle connection, or None if it may open one.
        self._waiters: deque[asyncio.Future[Connection | None]] = deque()
        self._reaper: asyncio.TimerHandle | None = None
        self._fences = itertools.count()

    def open(self) -> None:
        """Bind to the running event loop."""
        self._loop = asyncio.get_running_loop()

    def close(self) -> None:
        """Close idle connections now, and those in use when their commands have ended."""
        self._loop = None
        if self._reaper is not None:
            self._reaper.cancel()
            self._reaper = None
        self.close_idle()
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_exception(RedisConnectionError("the tier was closed"))

    def close_idle(self) -> None:
        """Close all idle connections, because the server is known to have lost some."""
        idle, self._idle = self._idle, []
        self._size -= len(idle)
        for connection in idle:
            connection.close()

    def clone(self, max_connections: int, key: bytes = b"") -> "RedisConnections":
        """Return other connections to the same server, without a greeting. They are not open.

        Args:
            max_connections: maximum number of open connections.
            key: in a cluster, they lead to the node that has this key.
        """
        others = RedisConnections(
            self._url,
            max_connections=max_connections,
            max_lifetime=self._max_lifetime,
            credentials=self._credentials,
        )
        if isinstance(others.server, ClusterServer):
            others.server.slot = key_slot(key)
        return others

    @property
    def is_idle(self) -> bool:
        """Whether no connection is in use."""
        return self._size == len(self._idle) and not self._waiters

    def stats(self) -> ConnectionStats:
        """Return the open connections, and the counts so far."""
        is_open = sum(connection.is_open for connection in self._opened)
        created = self.connect_time.snapshot()
        return ConnectionStats(is_open, created.count, self._failed_connects, created)

    @property
    def identity(self) -> object:
        """Equal for connections that were created with the same URL and credentials."""
        return self._url, self._credentials

    @property
    def in_cluster(self) -> bool:
        """Whether they lead to one node of a cluster."""
        return isinstance(self.server, ClusterServer)

    def check_role(self, replies: list[Any]) -> list[Any]:
        """Return replies without the first one; they are those of `INFO replication` and `INFO server`, and others.

        Raises:
            redis.ConnectionError: if the server is a replica, or a node of a cluster that the URL does not name as one.
        """
        others = check_primary(replies)
        if not self.in_cluster and is_node(others[0]):
            raise node_error(self.where)
        return others

    def own_connection(self) -> OwnConnection:
        """Return a connection that is not counted as one of these, without a greeting."""
        return OwnConnection(self.server)

    async def ask(
        self,
        commands: Sequence[Command],
        read: Callable[[list[Any]], _T],
        before_sending: Callable[[], None] | None = None,
    ) -> _T:
        """Send commands together and return what `read` makes of their replies. It has no deadline of its own.

        An ECHO follows the commands: its reply proves that no reply to earlier commands is read as one of these.

        If a reused connection was closed by the server, or gives unexpected replies, the commands are sent once more
        over a new connection. The server may therefore carry them out twice.

        Args:
            commands: the commands; bytes for one that is packed already.
            read: gets the replies, in order; error replies are exceptions among them. It may raise the error of a
                command, or `UnexpectedReplyError`.
            before_sending: called before the server may see any of the commands.

        Raises:
            redis.RedisError, OSError: what `read` raises, or if the server cannot be reached.
        """
        count = len(commands)
        # A comprehension is a call.
        sent = packed(commands[0]) if count == 1 else b"".join([packed(command) for command in commands])
        fence = b"%d" % next(self._fences)
        sent = b"%b*2\r\n$4\r\nECHO\r\n$%d\r\n%b\r\n" % (sent, len(fence), fence)
        connection = self._pop_idle()
        if connection is None:
            if self._size < self._max_connections:
                self._size += 1
            else:
                connection = await self._wait()
        try:
            if connection is not None:
                try:
                    return await self._exchange(connection, sent, count, fence, read, before_sending)
                except (RedisConnectionError, InvalidResponse, UnexpectedReplyError):
                    # The other idle connections are probably in the same state.
                    self.close_idle()
            connection = Connection(self.server, self._expiry(), self.greeting, self._era)
            return await self._exchange(connection, sent, count, fence, read, before_sending)
        except UnexpectedReplyError as error:
            if error.usable is None:
                raise
            return error.usable  # type: ignore[no-any-return]
        finally:
            self._release(connection)

    def _expiry(self) -> float:
        return monotonic() + self._max_lifetime * random.uniform(0.9, 1.0)

    def _pop_idle(self) -> Connection | None:
        if self._loop is None:
            raise RedisConnectionError("the tier was closed")
        while self._idle:
            connection = self._idle.pop()
            if connection.is_usable(monotonic()):
                return connection
            self._size -= 1
            connection.close()
        return None

    async def _wait(self) -> Connection | None:
        assert self._loop is not None
        waiter: asyncio.Future[Connection | None] = self._loop.create_future()
        self._waiters.append(waiter)
        try:
            return await waiter
        except asyncio.CancelledError:
            # Cancelled after it got its turn: the next waiter gets it.
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self._release(waiter.result())
            raise

    def _release(self, connection: Connection | None) -> None:
        """Give a connection, or the permission to open one, to the next waiter."""
        usable = connection if connection is not None and connection.is_open else None
        if usable is None and connection is not None:
            # It may have been aborted during its last call.
            connection.close()
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(usable)
                return
        if usable is None or self._loop is None:
            self._size -= 1
            if usable is not None:
                usable.close()
            return
        usable.idle_since = monotonic()
        self._idle.append(usable)
        if self._reaper is None and len(self._idle) > KEPT_IDLE:
            self._reaper = self._loop.call_later(MAX_IDLE_S, self._close_unused)

    def _close_unused(self) -> None:
        """Close connections that have been idle for long. The oldest come first, because the newest is used first."""
        self._reaper = None
        if self._loop is None:
            return
        idle, since = self._idle, monotonic() - MAX_IDLE_S
        while len(idle) > KEPT_IDLE and idle[0].idle_since <= since:
            self._size -= 1
            idle.pop(0).close()
        if len(idle) > KEPT_IDLE:
            self._reaper = self._loop.call_later(idle[0].idle_since - since, self._close_unused)

    async def _exchange(
        self,
        connection: Connection,
        sent: bytes,
        count: int,
        fence: bytes,
        read: Callable[[list[Any]], _T],
        before_sending: Callable[[], None] | None,
    ) -> _T:
        try:
            if not connection.is_open:
                await self._connect(connection)
            if before_sending is not None:
                before_sending()
            await connection.redis.send_packed_command(sent, check_health=False)
            replies = await connection.parser.read_replies(count + 1)
            if (reply := replies.pop()) != fence:
                _check_refused(reply)
            return read(replies)
        except ResponseError:
            # The server has refused a command; all replies have been read. If it has refused the greeting, the
            # connection is not open, and nothing closes it later.
            if not connection.is_open:
                connection.close()
            raise
        except BaseException as error:
            connection.close()
            if isinstance(error, ReplicaError):
                self.server.forget()
                self._leave_replica(connection, error)
            raise

    def note_moved(self) -> None:
        """Close all connections, because the server has been found at another address; in any thread."""
        loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(self._begin_era)

    def _leave_replica(self, connection: Connection, error: ReplicaError) -> None:
        if connection.era != self._era:
            # Another call has noticed it. Later connections may lead to another server.
            return
        self._begin_era()
        if not self._is_demoted and not isinstance(error, MovedSlotError):
            self._is_demoted = True
            self.failovers += 1
            _log.warning(
                "%s: %s became a replica (%s); its connections are closed, and its name is looked up again",
                *(self.label, self.where, error.reason),
            )

    async def _connect(self, connection: Connection) -> None:
        started_ns = perf_counter_ns()
        try:
            await connection.open()
        except BaseException:
            self._failed_connects += 1
            raise
        self.connect_time.record(perf_counter_ns() - started_ns)
        self._note_opened(connection)

    def _note_opened(self, connection: Connection) -> None:
        if connection.run != self._run and connection.run:
            if self._run:
                # The name leads to another server now, before the former one has refused anything.
                self._begin_era()
            self._run = connection.run
        connection.era = self._era
        self._opened.add(connection)
        if self._is_demoted:
            self._is_demoted = False
            _log.info("%s: %s is a primary again", self.label, self.where)

    def _begin_era(self) -> None:
        """Close all connections, because they may lead to a server that is not the primary, those in use as well.

        The calls in flight there end with a lost connection, and are repeated over a new one. Reads are, too: a replica
        may lack acknowledged writes.
        """
        self._era += 1
        self.close_idle()
        for other in list(self._opened):
            if other.is_open:
                other.abort()


def _check_refused(reply: Any) -> None:
    """Raise an error unless this is the refusal of ECHO by an ACL."""
    if not isinstance(reply, ResponseError) or "echo" not in str(reply).lower():
        raise UnexpectedReplyError("the last reply must belong to ECHO")
