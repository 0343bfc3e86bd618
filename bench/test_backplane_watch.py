"""What `PostgresBackplane.watch` costs a writer: the same writes to a plain, a watched, and a quietly watched table.

Run `pytest bench/test_backplane_watch.py` with `acgsperf[bench]`. The tables have what tables usually have: a primary
key, an index, and a time. Compare within one group only. The server writes to the disk at each commit, as it does by
default; `test_one_row` is mostly that.
"""

import asyncio
import itertools
from collections.abc import Iterator

import asyncpg
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from acgsperf.backplane.postgres import PostgresBackplane
from acgsperf.tiers.records import Record
from acgsperf.workbench.embedded import embedded_servers

KINDS = ["plain", "watched", "watched without notify"]
ROWS = 100_000


class Silent:
    """A cache that does nothing, so that only the writer is measured."""

    def apply(self, record: Record) -> None:
        pass

    def extend(self, until: float) -> None:
        pass

    def missed(self) -> None:
        pass


class Tables:
    """One table of each kind."""

    def __init__(self, dsn: str) -> None:
        self.loop = asyncio.new_event_loop()
        self._backplane = PostgresBackplane(dsn)
        self._dsn = dsn
        self.names = {kind: f"bench_{number}" for number, kind in enumerate(KINDS)}

    async def open(self) -> None:
        self.connection = await asyncpg.connect(self._dsn)
        await self._backplane.open("bench", Silent(), b"a writer")
        for kind, name in self.names.items():
            await self.connection.execute(
                f"CREATE TABLE {name} (id int PRIMARY KEY, team text, note text, changed_at timestamptz DEFAULT now());"
                f"CREATE INDEX ON {name} (team);"
                f"INSERT INTO {name} SELECT i, 'team ' || i % 100, repeat('x', 100) FROM generate_series(1, 1000) i"
            )
            if kind != "plain":
                await self._backplane.watch(name, ["user:{id}"], notify=kind == "watched")

    async def close(self) -> None:
        for name in self.names.values():
            await self._backplane.unwatch(name)
            await self.connection.execute(f"DROP TABLE {name}")
        await self._backplane.close()
        await self.connection.close()


@pytest.fixture(scope="module")
def tables() -> Iterator[Tables]:
    with embedded_servers(redis=False) as servers:
        tables = Tables(str(servers.database_url))
        tables.loop.run_until_complete(tables.open())
        yield tables
        tables.loop.run_until_complete(tables.close())
        tables.loop.close()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.benchmark(group="watch: one row, committed")
def test_one_row(benchmark: BenchmarkFixture, tables: Tables, kind: str) -> None:
    statement = f"UPDATE {tables.names[kind]} SET note = note WHERE id = $1"
    numbers = itertools.cycle(range(1, 1001))

    async def update() -> None:
        for _ in range(100):
            await tables.connection.fetch(statement, next(numbers))

    benchmark.pedantic(lambda: tables.loop.run_until_complete(update()), rounds=20, warmup_rounds=1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("what", ["insert", "update", "delete"])
@pytest.mark.benchmark(group="watch: 100,000 rows at once")
def test_many_rows(benchmark: BenchmarkFixture, tables: Tables, kind: str, what: str) -> None:
    name, connection = tables.names[kind], tables.connection
    statements = {
        "insert": f"INSERT INTO {name} SELECT i, 'team ' || i % 100, repeat('x', 100)"
        f" FROM generate_series(10001, 10000 + {ROWS}) i",
        "update": f"UPDATE {name} SET changed_at = now() WHERE id > 10000",
        "delete": f"DELETE FROM {name} WHERE id > 10000",
    }

    def prepare() -> None:
        run = tables.loop.run_until_complete
        run(connection.execute(statements["delete"]))
        run(connection.execute(f"VACUUM {name}"))
        if what != "insert":
            run(connection.execute(statements["insert"]))
        run(connection.execute("CHECKPOINT"))

    benchmark.pedantic(
        lambda: tables.loop.run_until_complete(connection.execute(statements[what])), setup=prepare, rounds=5
    )
