"""A PostgreSQL with a streaming standby, and names that lead to one of them."""

import asyncio
import os
import signal
from pathlib import Path
from urllib.parse import quote

import asyncpg

from acgsperf.testing.server_processes import PrivatePostgres


class Replicated:
    """A primary and its standby, which a test may promote.

    Attributes:
        folders: the directories of their sockets: the primary's, then the standby's.
    """

    def __init__(self, folder: Path) -> None:
        self._servers: list[PrivatePostgres] = []
        self.folders: list[Path] = []
        for name in ("one", "two"):
            own = folder / name
            own.mkdir()
            self._servers.append(PrivatePostgres(own, *self._servers))
            self.folders.append(own / "pg")

    def start(self) -> None:
        for server in self._servers:
            server.start(lambda: None)

    @property
    def primary_dsn(self) -> str:
        return dsn_of(self.folders[0])

    @property
    def standby_dsn(self) -> str:
        return dsn_of(self.folders[1])

    def kill_primary(self) -> None:
        process = self._servers[0].process
        pid = process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for number in [pid, *map(int, children)]:
            os.kill(number, signal.SIGKILL)
        process.wait(10)

    async def promote(self) -> None:
        connection = await asyncpg.connect(self.standby_dsn)
        assert await connection.fetchval("SELECT pg_promote()")
        await connection.close()

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


def dsn_of(*folders: Path) -> str:
    return f"postgresql://postgres:@/postgres?host={','.join(quote(str(folder)) for folder in folders)}"
