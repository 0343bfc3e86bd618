"""A PostgreSQL server for the tests of the pool, a clock, and a record of the connections that a pool opens."""

import asyncio
from contextlib import AsyncExitStack, suppress
from urllib.parse import parse_qs, urlsplit

import asyncpg
import pytest


async def until(condition, seconds=10.0):
    """Return when the condition is true; the pool works in the background meanwhile."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


class Opened(list):
    """The connections that a pool has opened: pass it as `init`."""

    async def __call__(self, connection):
        self.append(connection)

    def pids(self):
        """The server's processes of the connections that are open."""
        return [connection.get_server_pid() for connection in self if not connection.is_closed()]


async def whole(data, write):
    """Pass a reply on as it came."""
    await write(data)


class Proxy:
    """Stands between a pool and its server, and misbehaves as a test says.

    Attributes:
        dsn: the address of the proxy.
        relay: passes what the server sent on to the pool.
        make_relay: makes the relay of each new connection; it uses `relay` by default.
        accepted: connections that it has accepted.
        refusing: whether it accepts connections and closes them at once.
        silent: whether it accepts connections and says nothing.
    """

    def __init__(self, dsn):
        self._dsn = dsn
        self.accepted = 0
        self._tasks = set()
        self.reset()

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        parts = urlsplit(self._dsn)
        user = parts.netloc.rpartition("@")[0] or "postgres:"
        self.dsn = f"postgresql://{user}@{self.address}{parts.path}"
        return self

    async def __aexit__(self, *error):
        self._server.close()
        self.hang_up()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def reset(self):
        """Behave well from now on."""
        self.relay = whole
        self.make_relay = lambda: self.relay
        self.refusing = self.silent = False

    @property
    def connections(self):
        """The number of connections that are open."""
        return len(self._tasks)

    def hang_up(self):
        """Close all connections."""
        for task in self._tasks:
            task.cancel()

    async def _connect(self):
        parts = urlsplit(self._dsn)
        [folder] = parse_qs(parts.query).get("host", [None])
        if folder is None:
            return await asyncio.open_connection(parts.hostname, parts.port or 5432)
        return await asyncio.open_unix_connection(f"{folder}/.s.PGSQL.5432")

    async def _serve(self, reader, writer):
        self.accepted += 1
        task = asyncio.current_task()
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        writers = [writer]
        try:
            if self.silent:
                await reader.read()
            elif not self.refusing:
                server, to_server = await self._connect()
                writers.append(to_server)
                await self._pass_on(reader, writer, server, to_server)
        except (asyncio.CancelledError, OSError):
            pass
        finally:
            for each in writers:
                each.transport.abort()

    async def _pass_on(self, reader, writer, server, to_server):
        relay = self.make_relay()

        async def write(data):
            writer.write(data)
            # The pool runs in the same event loop: it has read the data before the proxy writes more.
            for _ in range(3):
                await asyncio.sleep(0)

        async def requests():
            while data := await reader.read(65_536):
                to_server.write(data)

        async def replies():
            while data := await server.read(65_536):
                await relay(data, write)

        both = [asyncio.ensure_future(requests()), asyncio.ensure_future(replies())]
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in both:
                one.cancel()
            with suppress(asyncio.CancelledError, OSError):
                await asyncio.gather(*both)


class BlackHole:
    """A proxy that swallows everything while the hole is open; what it swallowed stays lost."""

    def __init__(self, proxy):
        self._proxy = proxy
        self.is_open = False
        proxy.make_relay = lambda: self._relay

    async def _relay(self, data, write):
        if not self.is_open:
            await write(data)

    def open(self):
        self.is_open = self._proxy.silent = True

    def close(self):
        self.is_open = self._proxy.silent = False


@pytest.fixture
async def make_proxy(dsn):
    async with AsyncExitStack() as stack:

        async def make():
            return await stack.enter_async_context(Proxy(dsn))

        yield make


@pytest.fixture
async def proxy(make_proxy):
    return await make_proxy()


@pytest.fixture
def hole(proxy):
    return BlackHole(proxy)


@pytest.fixture
def opened():
    return Opened()


@pytest.fixture(name="until")
def _until():
    return until


@pytest.fixture
def dsn(servers):
    return servers.database_url


@pytest.fixture
async def admin(dsn):
    connection = await asyncpg.connect(dsn)
    yield connection
    await connection.close()
