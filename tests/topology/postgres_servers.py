"""A PostgreSQL with a streaming standby, and names that lead to one of them."""

import asyncio
import os
import shutil
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path
from urllib.parse import quote

import asyncpg

from acgsperf.testing.server_processes import PrivatePostgres


class Replicated:
    """A primary and its standby, which a test may promote.

    Attributes:
        folders: the directories of their sockets: first the primary's, then the standby's.
        primary: the number of the primary, as `promote` has last left it.
    """

    def __init__(self, folder: Path) -> None:
        self._servers: list[PrivatePostgres] = []
        self._folders = [folder / name for name in ("one", "two")]
        self.folders = [own / "pg" for own in self._folders]
        self.primary = 0
        for own in self._folders:
            own.mkdir()
            self._servers.append(PrivatePostgres(own, *self._servers))

    def start(self) -> None:
        for server in self._servers:
            server.start(lambda: None)

    @property
    def primary_dsn(self) -> str:
        return dsn_of(self.folders[self.primary])

    @property
    def standby_dsn(self) -> str:
        return dsn_of(self.folders[1 - self.primary])

    def kill_primary(self) -> None:
        process = self._servers[self.primary].process
        assert process is not None
        pid = process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for number in [pid, *map(int, children)]:
            # Some end by themselves.
            with suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        process.wait(10)

    async def promote(self) -> None:
        connection = await asyncpg.connect(self.standby_dsn)
        # Without waiting in the server: the recovery may cancel a statement that takes long.
        assert await connection.fetchval("SELECT pg_promote(wait => false)")
        async with asyncio.timeout(60):
            while await connection.fetchval("SELECT pg_is_in_recovery()"):
                pass
        await connection.close()
        self.primary = 1 - self.primary

    def rebuild(self) -> None:
        """Make the server that was killed a standby of the one that was promoted."""
        number = 1 - self.primary
        self._servers[number].stop()
        shutil.rmtree(self.folders[number])
        self._servers[number] = PrivatePostgres(self._folders[number], self._servers[self.primary])
        self._servers[number].start(lambda: None)

    async def take_over(self) -> None:
        """As `promote`."""
        await self.promote()

    async def restore(self) -> None:
        """Make the former primary a standby; return when the next failover is possible."""
        await asyncio.to_thread(self.rebuild)
        await self.caught_up()

    @asynccontextmanager
    async def position(self) -> AsyncIterator[Callable[[], Awaitable[int]]]:
        """What tells how far the log of the primary is, in bytes."""
        connection = await asyncpg.connect(self.primary_dsn)

        async def ask() -> int:
            return int(await connection.fetchval("SELECT (pg_current_wal_flush_lsn() - '0/0')::bigint"))

        try:
            yield ask
        finally:
            connection.terminate()

    async def received(self) -> int:
        """How far the log of the former primary was as this primary had received it, when it was promoted."""
        return await _asked(self.primary_dsn, "SELECT (pg_last_wal_replay_lsn() - '0/0')::bigint")

    async def cut_replication(self) -> None:
        """Close the connection of the standby, which connects again."""
        await _asked(self.primary_dsn, "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_replication")

    async def caught_up(self) -> None:
        """Return when the standby has everything."""
        primary, standby = await asyncpg.connect(self.primary_dsn), await asyncpg.connect(self.standby_dsn)
        position = await primary.fetchval("SELECT pg_current_wal_lsn()::text")
        async with asyncio.timeout(20):
            while not await standby.fetchval("SELECT pg_last_wal_replay_lsn() >= $1::text::pg_lsn", position):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await primary.close()
        await standby.close()

    def stop(self) -> None:
        for server in reversed(self._servers):
            server.stop()


async def start_replicated(folder: Path, stack: ExitStack) -> tuple[Replicated, str]:
    """Start both servers; return them with the DSN of both."""
    servers = Replicated(folder)
    stack.callback(servers.stop)
    await asyncio.to_thread(servers.start)
    return servers, dsn_of(*servers.folders)


async def _asked(dsn: str, query: str) -> int:
    connection = await asyncpg.connect(dsn)
    try:
        return int(await connection.fetchval(query))
    finally:
        await connection.close()


def dsn_of(*folders: Path) -> str:
    return f"postgresql://postgres:@/postgres?host={','.join(quote(str(folder)) for folder in folders)}"
