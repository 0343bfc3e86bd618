"""What `PostgresBackplane.watch` costs a writer: the same statements on tables that are watched in several ways.

Run `pytest -s bench/test_backplane_watch.py` with `acgsperf[bench]`. Each table has a primary key, an index, and a
time. The tables take turns within one run. The output is the first decile, or the minimum of a few rounds, and the
median: the CPU time of the server's process (on Linux), and the time that the client waited: asyncpg over a unix
socket, a prepared statement, each in its own transaction. Another process carries the changes into the log, and uses
the same cores.

The server runs with `fsync = on`. With `synchronous_commit = on`, a commit waits for the disk, as in production; with
`off`, only the work of the processors remains, which is the worst case for the relative cost.
"""

import asyncio
import multiprocessing
import random
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from multiprocessing.synchronize import Event
from pathlib import Path

import asyncpg
import pytest
from asyncpg.prepared_stmt import PreparedStatement
from pytest_benchmark.fixture import BenchmarkFixture

from acgsperf.backplane.postgres import PostgresBackplane
from acgsperf.tiers.records import Record
from acgsperf.workbench.embedded import embedded_servers

KINDS: dict[str, dict[str, object] | None] = {
    "plain": None,
    "a column": {"tags": ["user:{id}"]},
    "no column": {"tags": ["users"]},
    "a column, coarse_on": {"tags": ["user:{id}"], "coarse_on": ["insert", "update", "delete"]},
}
ROWS = 100_000
STATEMENTS_A_ROUND = 100
WRITERS = 8

_Measured = dict[str, list[tuple[float, float]]]


class Silent:
    """A cache that ignores all records."""

    def apply(self, record: Record) -> None:
        pass

    def extend(self, until: float) -> None:
        pass

    def missed(self) -> None:
        pass


def _carry_changes(dsn: str, following: Event, done: Event) -> None:
    async def carry() -> None:
        backplane = PostgresBackplane(dsn)
        await backplane.open("bench", Silent(), b"a reader")
        following.set()
        await asyncio.to_thread(done.wait)
        await backplane.close()

    asyncio.run(carry())


class Tables:
    """One table of each kind."""

    def __init__(self, dsn: str) -> None:
        self.loop = asyncio.new_event_loop()
        self._backplane = PostgresBackplane(dsn)
        self.dsn = dsn
        self.names = {kind: f"bench_{number}" for number, kind in enumerate(KINDS)}

    async def open(self) -> None:
        self.connection = await asyncpg.connect(self.dsn)
        await self._backplane.open("bench", Silent(), b"a writer")
        for kind, name in self.names.items():
            await self.connection.execute(
                f"CREATE TABLE {name} (id int PRIMARY KEY, team text, note text, changed_at timestamptz DEFAULT now());"
                f"CREATE INDEX ON {name} (team);"
                f"INSERT INTO {name} SELECT i, 'team ' || i % 100, repeat('x', 100) FROM generate_series(1, 1000) i;"
            )
            await self.connection.execute(f"VACUUM ANALYZE {name}")
            options = KINDS[kind]
            if options is not None:
                await self._backplane.watch(name, **options)  # type: ignore[arg-type]

    async def close(self) -> None:
        for name in self.names.values():
            await self._backplane.unwatch(name)
            await self.connection.execute(f"DROP TABLE {name}")
        await self._backplane.close()
        await self.connection.close()

    async def take_turns(self, rounds: int, measure: Callable[[str], Awaitable[tuple[float, float]]]) -> _Measured:
        """Measure each table once in each round. The order changes from round to round."""
        kinds = list(KINDS)
        found: _Measured = {kind: [] for kind in kinds}
        for number in range(rounds):
            for kind in kinds[number % len(kinds) :] + kinds[: number % len(kinds)]:
                found[kind].append(await measure(self.names[kind]))
        return found


@pytest.fixture(scope="module")
def tables() -> Iterator[Tables]:
    with embedded_servers(redis=False) as servers:
        tables = Tables(str(servers.database_url))
        tables.loop.run_until_complete(tables.open())
        context = multiprocessing.get_context("spawn")
        following, done = context.Event(), context.Event()
        reader = context.Process(target=_carry_changes, args=(tables.dsn, following, done))
        reader.start()
        assert following.wait(120)
        yield tables
        done.set()
        reader.join()
        tables.loop.run_until_complete(tables.close())
        tables.loop.close()


def _cpu_ns(pid: int) -> int:
    """Return the CPU time of a process; 0 if the system does not report it."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0])
    except OSError:
        return 0


def _report(benchmark: BenchmarkFixture, title: str, unit: str, measured: _Measured) -> None:
    print(f"\n\n{title}, {unit}: first decile, or minimum of a few (median); difference from the plain table")
    print(f"{'':21}{'in the server':>44}{'at the client':>47}")
    figures = {
        kind: [(_fast(column), statistics.median(column)) for column in zip(*values, strict=True)]
        for kind, values in measured.items()
    }
    for kind, columns in figures.items():
        texts = [
            f"{least:9.1f} ({median:7.1f})  {least - plain:+7.1f}  {_percent(least, plain)} ({_percent(median, usual)})"
            for (least, median), (plain, usual) in zip(columns, figures["plain"], strict=True)
        ]
        print(f"{kind:21}{texts[0]}   {texts[1]}")
    benchmark.extra_info.update(unit=unit, **figures)


def _fast(column: Sequence[float]) -> float:
    """Return the first decile, or the minimum if there are fewer than 100 values."""
    return statistics.quantiles(column, n=10)[0] if len(column) >= 100 else min(column)


def _percent(measured: float, plain: float) -> str:
    return f"{(measured / plain - 1) * 100 if plain else 0:+5.0f} %"


# `BEGIN` and `COMMIT` are round trips of their own.
@pytest.mark.parametrize(
    ("commit", "what"), [("off", "one statement"), ("on", "one statement"), ("on", "BEGIN and COMMIT")]
)
@pytest.mark.parametrize("event", ["update", "insert", "delete"])
def test_one_row(benchmark: BenchmarkFixture, tables: Tables, event: str, commit: str, what: str) -> None:
    """The tables take turns with each statement, so that all of them find the machine in the same state."""
    connection = tables.connection
    statement = {
        "update": "UPDATE {} SET note = note WHERE id = $1",
        "insert": "INSERT INTO {} VALUES ($1, 'team 1', repeat('x', 100))",
        "delete": "DELETE FROM {} WHERE id = $1",
    }[event]
    first = 1 if event == "update" else 10_001
    numbers = range(first, first + STATEMENTS_A_ROUND)

    async def execute(prepared: PreparedStatement, number: int) -> None:
        if what == "one statement":
            await prepared.fetch(number)
        else:
            async with connection.transaction():
                await prepared.fetch(number)

    async def run() -> _Measured:
        pid = connection.get_server_pid()
        found: _Measured = {kind: [] for kind in KINDS}
        statements = {kind: await connection.prepare(statement.format(name)) for kind, name in tables.names.items()}
        await connection.execute(f"SET synchronous_commit = {commit}")
        try:
            for _ in range(15):
                for kind, name in tables.names.items():
                    await connection.execute(f"DELETE FROM {name} WHERE id > 10000")
                    if event == "delete":
                        await connection.execute(
                            f"INSERT INTO {name} SELECT i, 'team 1', repeat('x', 100)"
                            f" FROM generate_series({numbers[0]}, {numbers[-1] + 1}) i"
                        )
                    await connection.execute(f"VACUUM {name}")
                    await execute(statements[kind], numbers[-1] + 1)
                for number in numbers:
                    for kind in random.sample(list(KINDS), len(KINDS)):
                        before, began = _cpu_ns(pid), time.perf_counter_ns()
                        await execute(statements[kind], number)
                        took = time.perf_counter_ns() - began
                        found[kind].append(((_cpu_ns(pid) - before) / 1e3, took / 1e3))
        finally:
            await connection.execute("RESET synchronous_commit")
        return found

    found = benchmark.pedantic(lambda: tables.loop.run_until_complete(run()), rounds=1)
    _report(benchmark, f"{event} one row, {what}, synchronous_commit = {commit}", "us", found)


def test_first_statement_of_a_session(benchmark: BenchmarkFixture, tables: Tables) -> None:
    async def measure(name: str) -> tuple[float, float]:
        connection = await asyncpg.connect(tables.dsn)
        await connection.execute(
            f"SET synchronous_commit = off; UPDATE {tables.names['plain']} SET id = 0 WHERE id = 0"
        )
        pid = connection.get_server_pid()
        before, began = _cpu_ns(pid), time.perf_counter_ns()
        await connection.execute(f"UPDATE {name} SET note = note WHERE id = 1")
        took, cpu_ns = time.perf_counter_ns() - began, _cpu_ns(pid) - before
        await connection.close()
        return cpu_ns / 1e3, took / 1e3

    found = benchmark.pedantic(lambda: tables.loop.run_until_complete(tables.take_turns(15, measure)), rounds=1)
    _report(benchmark, "first statement of a session", "us", found)


@pytest.mark.parametrize("commit", ["off", "on"])
def test_writers_together(benchmark: BenchmarkFixture, tables: Tables, commit: str) -> None:
    """Several connections write at the same time, each in a row of its own."""

    async def run() -> _Measured:
        writers = [await asyncpg.connect(tables.dsn) for _ in range(WRITERS)]
        pids = [writer.get_server_pid() for writer in writers]
        try:
            for writer in writers:
                await writer.execute(f"SET synchronous_commit = {commit}")

            async def measure(name: str) -> tuple[float, float]:
                await tables.connection.execute(f"VACUUM {name}")
                update = f"UPDATE {name} SET note = note WHERE id = $1"
                prepared = [await writer.prepare(update) for writer in writers]

                async def write(number: int, count: int) -> None:
                    for _ in range(count):
                        await prepared[number].fetch(number + 1)

                await asyncio.gather(*(write(number, 2) for number in range(WRITERS)))
                before, began = sum(map(_cpu_ns, pids)), time.perf_counter_ns()
                await asyncio.gather(*(write(number, STATEMENTS_A_ROUND // 2) for number in range(WRITERS)))
                took, cpu_ns = time.perf_counter_ns() - began, sum(map(_cpu_ns, pids)) - before
                # At the client: the time between two commits of any writer.
                statements = WRITERS * (STATEMENTS_A_ROUND // 2)
                return cpu_ns / statements / 1e3, took / statements / 1e3

            return await tables.take_turns(15, measure)
        finally:
            for writer in writers:
                await writer.close()

    found = benchmark.pedantic(lambda: tables.loop.run_until_complete(run()), rounds=1)
    _report(benchmark, f"{WRITERS} writers together, synchronous_commit = {commit}", "us for a statement", found)


# If the rows of a statement need more than `work_mem`, PostgreSQL writes its copy of them into a file.
@pytest.mark.parametrize("work_mem", ["4MB", "64MB"])
@pytest.mark.parametrize("what", ["insert", "copy", "update", "delete"])
def test_many_rows(benchmark: BenchmarkFixture, tables: Tables, what: str, work_mem: str) -> None:
    connection = tables.connection
    rows = [(i, f"team {i % 100}", "x" * 100) for i in range(10_001, 10_001 + ROWS)] if what == "copy" else []
    statements = {
        "insert": f"INSERT INTO {{}} SELECT i, 'team ' || i % 100, repeat('x', 100)"
        f" FROM generate_series(10001, 10000 + {ROWS}) i",
        "update": "UPDATE {} SET changed_at = now() WHERE id > 10000",
        "delete": "DELETE FROM {} WHERE id > 10000",
    }

    async def measure(name: str) -> tuple[float, float]:
        await connection.execute(statements["delete"].format(name))
        await connection.execute(f"VACUUM {name}")
        if what in ("update", "delete"):
            await connection.execute(statements["insert"].format(name))
        await connection.execute("CHECKPOINT")
        pid = connection.get_server_pid()
        before, began = _cpu_ns(pid), time.perf_counter_ns()
        if what == "copy":
            await connection.copy_records_to_table(name, records=rows, columns=("id", "team", "note"))
        else:
            await connection.execute(statements[what].format(name))
        return (_cpu_ns(pid) - before) / 1e6, (time.perf_counter_ns() - began) / 1e6

    async def run() -> _Measured:
        await connection.execute(f"SET work_mem = '{work_mem}'")
        try:
            return await tables.take_turns(5, measure)
        finally:
            await connection.execute("RESET work_mem")

    found = benchmark.pedantic(lambda: tables.loop.run_until_complete(run()), rounds=1)
    _report(benchmark, f"{what} {ROWS:,} rows, durable commit, work_mem = {work_mem}", "ms", found)
