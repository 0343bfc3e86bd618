"""What a real PostgreSQL server sends is never refused: to asyncpg, and to clients that do what asyncpg does not."""

import asyncio
import io
import struct
from contextlib import suppress
from urllib.parse import parse_qs, urlsplit

import asyncpg
import pytest

from acgsperf.dispatch import Dialogue


async def connect(dsn):
    parts = urlsplit(dsn)
    [folder] = parse_qs(parts.query).get("host", [None])
    if folder is None:
        return await asyncio.open_connection(parts.hostname, parts.port or 5432)
    return await asyncio.open_unix_connection(f"{folder}/.s.PGSQL.5432")


def split(data):
    """Return the messages of a server that are complete, and the rest."""
    found, at = [], 0
    while len(data) - at >= 5 and len(data) > (end := at + int.from_bytes(data[at + 1 : at + 5], "big")):
        found.append(data[at : end + 1])
        at = end + 1
    return found, data[at:]


def refused(turns, size=65_536):
    """Return what a dialogue refuses of what was sent (True) and received in turn, in pieces of a size."""
    dialogue = Dialogue()
    for is_sent, data in turns:
        for at in range(0, len(data), size):
            if is_sent:
                dialogue.sent(data[at : at + size])
            elif refusal := dialogue.received(data[at : at + size]):
                return refusal
    return None


class Recorder:
    """Forwards connections to a server, and records for each what is sent and received in turn."""

    def __init__(self, dsn):
        self._dsn = dsn
        self._tasks = set()
        self.recordings = []

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        parts = urlsplit(self._dsn)
        user = parts.netloc.rpartition("@")[0] or "postgres:"
        address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        # The answer to a request for TLS is no message.
        self.dsn = f"postgresql://{user}@{address}{parts.path}?sslmode=disable"
        return self

    async def __aexit__(self, *error):
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader, writer):
        task = asyncio.current_task()
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        turns = []
        self.recordings.append(turns)
        server, to_server = await connect(self._dsn)

        async def forward(source, target, is_sent):
            while data := await source.read(65_536):
                turns.append((is_sent, data))
                target.write(data)
            target.close()

        with suppress(OSError, asyncio.CancelledError):
            await asyncio.gather(forward(reader, to_server, True), forward(server, writer, False))
        for each in (writer, to_server):
            each.transport.abort()

    def received(self):
        """The messages that the server has sent in all connections."""
        return [
            message
            for turns in self.recordings
            for message in split(b"".join(data for is_sent, data in turns if not is_sent))[0]
        ]

    def check(self, *types):
        """Fail if something is refused, or if the server has not sent these types of messages."""
        for turns in self.recordings:
            total = sum(len(data) for _, data in turns)
            for size in (65_536, 1_000, 3, 1):
                if total / size < 1_000_000:
                    assert refused(turns, size) is None
        seen = {chr(message[0]) for message in self.received()}
        assert seen >= set("".join(types))


@pytest.fixture
async def recorder(dsn):
    async with Recorder(dsn) as running:
        yield running


@pytest.fixture
async def connection(recorder):
    made = await asyncpg.connect(recorder.dsn, timeout=10)
    yield made
    made.terminate()


async def everyday(connection):
    """Do what applications do."""
    await connection.execute("CREATE TEMP TABLE items (id int PRIMARY KEY, name text)")
    await connection.execute("SELECT 1; SELECT 2; SELECT generate_series(1, 3)")
    assert await connection.fetch("") == []
    await connection.execute("INSERT INTO items VALUES ($1, $2)", 0, "none")
    for _ in range(3):
        assert await connection.fetchval("SELECT $1::int", 7) == 7
    statement = await connection.prepare("SELECT generate_series(1, $1::int)")
    assert len(await statement.fetch(5)) == 5
    assert (await statement.fetchrow(5))[0] == 1
    del statement
    nothing = await connection.prepare("SET application_name = 'other'")
    await nothing.fetch()
    await connection.executemany(
        "INSERT INTO items VALUES ($1, $2)", [(number, "x" * 50) for number in range(1, 3_000)]
    )
    returned = await connection.fetchmany("INSERT INTO items VALUES ($1, 'y') RETURNING id", [(-1,), (-2,)])
    assert [row[0] for row in returned] == [-1, -2]
    async with connection.transaction():
        cursor = await connection.cursor("SELECT id FROM items ORDER BY id")
        assert len(await cursor.fetch(10)) == 10
        await cursor.forward(5)
        assert len([row async for row in connection.cursor("SELECT id FROM items", prefetch=700)]) > 2_000
    await connection.execute("DO $$ BEGIN RAISE NOTICE 'text'; END $$")
    # More statements than are kept: the oldest are closed.
    for number in range(5):
        await connection.fetchval(f"SELECT {number}")


async def test_the_replies_to_everyday_queries(recorder):
    connection = await asyncpg.connect(recorder.dsn, statement_cache_size=3)
    await everyday(connection)
    await connection.reset()
    await connection.close()
    recorder.check("RSKZ", "1t2DC", "TnI3sN")


async def test_the_replies_to_everyday_queries_without_a_cache_of_statements(recorder):
    connection = await asyncpg.connect(recorder.dsn, statement_cache_size=0)
    await everyday(connection)
    await connection.close()
    recorder.check("RSKZ", "1t2DC", "TnIsN")


async def test_a_message_that_comes_twice_in_real_traffic_is_refused(recorder, connection):
    assert await connection.fetchval("SELECT $1::int", 7) == 7
    await connection.execute("SELECT 1")
    await connection.executemany("SELECT $1::int", [(1,), (2,)])
    await connection.reset()
    with suppress(asyncpg.PostgresError):
        await connection.fetch("SELECT 1 / $1::int", 0)
    [turns] = recorder.recordings
    checked = set()
    for number, (is_sent, data) in enumerate(turns):
        if is_sent:
            continue
        found, rest = split(data)
        assert not rest
        for at, message in enumerate(found):
            if message[0] in b"Z12t":
                checked.add(message[0])
                twice = b"".join(found[: at + 1] + found[at:])
                assert " where " in refused([*turns[:number], (False, twice)])
    assert checked == set(b"Z12t")


async def test_the_replies_to_queries_that_fail(recorder, connection):
    await connection.execute("CREATE TEMP TABLE items (id int PRIMARY KEY DEFERRABLE INITIALLY DEFERRED)")
    for query in ("SELECT", "SELECT nothing", "SELECT 1 / 0", "SELECT 1; SELECT 1 / 0; SELECT 2"):
        with suppress(asyncpg.PostgresError):
            await connection.execute(query)
        with suppress(asyncpg.PostgresError):
            await connection.fetch(query)
    with pytest.raises(asyncpg.DivisionByZeroError):
        await connection.fetch("SELECT 100 / (50 - generate_series(1, $1::int))", 100)
    with pytest.raises(asyncpg.DivisionByZeroError):
        async with connection.transaction():
            await connection.fetch("SELECT 1 / $1::int", 0)
    with pytest.raises(asyncpg.UniqueViolationError):
        await connection.execute("INSERT INTO items VALUES ($1), ($1)", 1)
    with pytest.raises(asyncpg.UniqueViolationError):
        async with connection.transaction():
            await connection.execute("INSERT INTO items VALUES ($1), ($1)", 1)
    with suppress(asyncpg.DivisionByZeroError):
        async with connection.transaction():
            async for _ in connection.cursor("SELECT 100 / (50 - generate_series(1, 100))", prefetch=20):
                pass
            pytest.fail("nothing was raised")
    assert await connection.fetchval("SELECT 1") == 1
    recorder.check("E")


@pytest.mark.parametrize("in_transaction", [True, False])
@pytest.mark.parametrize("fails_at", [0, 1, 500, 40_000])
@pytest.mark.parametrize("wrong", [0, "text"])
async def test_the_replies_to_many_statements_of_which_one_fails(recorder, connection, in_transaction, fails_at, wrong):
    arguments = [(1, "x" * 20)] * fails_at + [(wrong, "")] + [(1, "x" * 20)] * 40_000
    transaction = connection.transaction()
    if in_transaction:
        await transaction.start()
    with pytest.raises((asyncpg.DivisionByZeroError, asyncpg.DataError)):
        await connection.executemany("SELECT 1 / $1::int, $2::text", arguments)
    if in_transaction:
        await transaction.rollback()
    assert await connection.fetchval("SELECT 1") == 1
    recorder.check("2" if fails_at == 0 else "2C")


async def test_the_replies_to_a_statement_whose_plan_has_changed(recorder, connection):
    await connection.execute("CREATE TEMP TABLE items AS SELECT 1 AS id")
    for _ in range(2):
        assert await connection.fetch("SELECT * FROM items") == [(1,)]
    await connection.execute("ALTER TABLE items ALTER COLUMN id TYPE text")
    assert await connection.fetch("SELECT * FROM items") == [("1",)]
    recorder.check("E")


async def test_the_replies_to_copies(recorder, connection):
    await connection.execute("CREATE TEMP TABLE items (id int, name text)")
    records = [(number, "x" * 50) for number in range(5_000)]
    await connection.copy_records_to_table("items", records=records)
    found = io.BytesIO()
    await connection.copy_from_table("items", output=found)
    found.seek(0)
    await connection.copy_to_table("items", source=found)
    found = io.BytesIO()
    await connection.copy_from_query("SELECT * FROM items WHERE id < $1", 5, output=found)
    assert found.getvalue().count(b"\n") == 10
    with pytest.raises(asyncpg.PostgresError):
        await connection.copy_to_table("items", source=io.BytesIO(b"text\n" * 100_000))
    with pytest.raises(asyncpg.PostgresError):
        await connection.copy_from_query("SELECT 100 / (50 - generate_series(1, 100))", output=io.BytesIO())

    def failing():
        yield records[0]
        raise LookupError

    with pytest.raises(LookupError):
        await connection.copy_records_to_table("items", records=failing())
    assert await connection.fetchval("SELECT count(*) FROM items") == 10_000
    recorder.check("GHdcCE")


async def test_notifications_come_between_queries(recorder, connection):
    heard = asyncio.Queue()
    await connection.add_listener("news", lambda *notified: heard.put_nowait(notified[-1]))
    await connection.execute("NOTIFY news, 'one'")
    await connection.fetch("SELECT pg_notify('news', 'two')")
    other = await asyncpg.connect(recorder.dsn)
    await other.execute("NOTIFY news, 'three'")
    await other.close()
    assert [await asyncio.wait_for(heard.get(), 10) for _ in range(3)] == ["one", "two", "three"]
    await connection.remove_listener("news", print)
    await connection.reset()
    recorder.check("A")


async def test_the_replies_to_queries_that_are_cancelled(recorder, connection):
    for _ in range(5):
        with pytest.raises(asyncio.TimeoutError):
            await connection.fetch("SELECT pg_sleep($1)", 10, timeout=0.03)
        with pytest.raises(asyncio.TimeoutError):
            await connection.execute("SELECT pg_sleep(10); SELECT 1", timeout=0.03)
        assert await connection.fetchval("SELECT 1") == 1
    # At any step: the number of turns of the event loop decides where a query is.
    for turns in range(40):
        query = asyncio.ensure_future(connection.fetch(f"SELECT {turns}, generate_series(1, $1::int)", 3_000))
        for _ in range(turns):
            await asyncio.sleep(0)
        query.cancel()
        with suppress(asyncio.CancelledError):
            await query
    assert await connection.fetchval("SELECT 1") == 1
    recorder.check("E")


async def test_a_query_that_is_cancelled_while_its_statement_cannot_be_parsed(recorder, connection):
    for turns in range(20):
        query = asyncio.ensure_future(connection.fetch(f"SELECT nothing{turns}"))
        for _ in range(turns):
            await asyncio.sleep(0)
        query.cancel()
        with suppress(asyncio.CancelledError, asyncpg.PostgresError):
            await query
    assert await connection.fetchval("SELECT 1") == 1
    recorder.check("E")


async def test_the_end_of_a_session(recorder, connection, admin):
    other = await asyncpg.connect(recorder.dsn)
    await admin.execute("SELECT pg_terminate_backend($1)", other.get_server_pid())
    while not other.is_closed():  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    with pytest.raises(asyncpg.PostgresError):
        await connection.execute("SELECT pg_terminate_backend(pg_backend_pid())")
    with suppress(asyncpg.PostgresError):
        await asyncpg.connect(recorder.dsn, database="no database")
    recorder.check("E")


async def test_a_large_result(recorder, connection):
    query = "SELECT number, repeat('x', number % 3000) FROM generate_series(1, $1::int) AS number"
    assert len(await connection.fetch(query, 20_000)) == 20_000
    assert len(await connection.fetchval("SELECT repeat('x', $1::int)", 10_000_000)) == 10_000_000
    recorder.check("D")


def message(kind, *fields):
    """Return a message of a client: its type, and int and bytes."""
    payload = b"".join(field if isinstance(field, bytes) else struct.pack(">H", field) for field in fields)
    return kind + struct.pack(">i", 4 + len(payload)) + payload


def text(value):
    return value.encode() + b"\0"


def parse(query, name=""):
    return message(b"P", text(name), text(query), 0)


def call(function):
    return message(b"F", struct.pack(">i", function), 0, 0, 1)


QUERY = message(b"Q", text("SELECT 1"))
BIND = message(b"B", text(""), text(""), 0, 0, 0)
EXECUTE = message(b"E", text(""), struct.pack(">i", 0))
EXECUTE_2 = message(b"E", text(""), struct.pack(">i", 2))
RUN = BIND + EXECUTE
SYNC, FLUSH = message(b"S"), message(b"H")
PG_BACKEND_PID, NO_FUNCTION = 2026, 1
ROWS = "SELECT generate_series(1, 5)"
DEFERRED = """
CREATE TEMP TABLE items (id int PRIMARY KEY DEFERRABLE INITIALLY DEFERRED)
"""
WRONG = parse("SELECT nothing")


@pytest.mark.parametrize(
    "turns",
    [
        [(parse("SELECT 1") + RUN + SYNC, "1 2 D C Z")],
        [(parse("SELECT 1") + RUN + RUN + FLUSH, "1 2 D C 2 D C"), (SYNC, "Z")],
        [(parse("") + message(b"D", b"S\0") + RUN + SYNC, "1 t n 2 I Z"), (message(b"Q", b"\0"), "I Z")],
        [(message(b"C", b"Snone\0") + SYNC + SYNC, "3 Z Z")],
        [
            (parse(ROWS) + BIND + message(b"D", b"P\0") + EXECUTE_2 + FLUSH, "1 2 T D D s"),
            (EXECUTE + SYNC, "D D D C Z"),
        ],
        # Errors in extended queries.
        [(WRONG + RUN + SYNC + parse("SELECT 1") + RUN + SYNC, "E Z 1 2 D C Z")],
        [(WRONG + RUN + QUERY + call(PG_BACKEND_PID) + SYNC, "E Z"), (QUERY, "T D C Z")],
        [(WRONG + FLUSH, "E"), (QUERY + RUN + FLUSH, ""), (SYNC + SYNC, "Z Z")],
        [(parse("SELECT 1") + FLUSH, "1"), (WRONG, "E"), (RUN + SYNC + RUN, "Z E"), (SYNC, "Z")],
        [(message(b"D", b"?\0") + SYNC + message(b"D") + SYNC, "E Z E Z")],
        # A message that is too short.
        [(message(b"B") + EXECUTE + SYNC, "E Z")],
        [
            (message(b"Q", text(DEFERRED)), "C Z"),
            (parse("INSERT INTO items VALUES (1), (1)") + RUN + SYNC, "1 2 C E Z"),
        ],
        # Queries and calls.
        [(message(b"Q", text("SELECT 1; SELECT 1 / 0; SELECT 2")) + QUERY, "T D C E Z T D C Z")],
        [(call(NO_FUNCTION) + call(PG_BACKEND_PID) + QUERY + SYNC, "E Z V Z T D C Z Z")],
        [(parse("SELECT 1") + QUERY + call(PG_BACKEND_PID) + RUN + SYNC, "1 T D C Z V Z E Z")],
        # COPY.
        [(parse("COPY (SELECT 1) TO STDOUT") + RUN + SYNC, "1 2 H d c C Z")],
        [
            (message(b"Q", text("CREATE TEMP TABLE items (id int)")), "C Z"),
            (
                message(b"Q", text("COPY items FROM STDIN")) + message(b"d", b"1\n") + message(b"c") + QUERY,
                "G C Z T D C Z",
            ),
            (message(b"Q", text("COPY items FROM STDIN")), "G"),
            (message(b"d", b"text\n") * 3 + message(b"c") + message(b"d") + QUERY, "E Z T D C Z"),
            (message(b"Q", text("COPY items FROM STDIN")) + message(b"f", text("no")) + QUERY, "G E Z T D C Z"),
            (parse("COPY items FROM STDIN") + RUN + FLUSH, "1 2 G"),
            (message(b"d", b"1\n") + message(b"c") + SYNC, "C Z"),
            (parse("COPY items FROM STDIN") + RUN + FLUSH, "1 2 G"),
            (message(b"d", b"text\n") + message(b"c") + RUN + SYNC, "E Z"),
        ],
    ],
)
@pytest.mark.parametrize("early", [False, True])
async def test_a_server_owes_what_the_dialogue_says(dsn, turns, early):
    reader, writer = await connect(dsn)
    dialogue, rest = Dialogue(), b""

    def send(data):
        dialogue.sent(data)
        writer.write(data)

    async def receive(expected):
        nonlocal rest
        types = []
        while len(types) < len(expected):
            data = rest + await asyncio.wait_for(reader.read(65_536), 10)
            assert dialogue.received(data[len(rest) :]) is None
            found, rest = split(data)
            types += [chr(message[0]) for message in found if message[0] not in b"NAS"]
        assert types == expected

    send(struct.pack(">ii", 8, 80877103))
    # The answer has no type and no length.
    assert await reader.readexactly(1) == b"N"
    start = text("user") + text("postgres") + text("database") + text("postgres") + b"\0"
    send(struct.pack(">ii", 8 + len(start), 196608) + start)
    if not early:
        await receive(["R", "K", "Z"])
    for number, (sent, expected) in enumerate(turns):
        send(sent)
        await receive(["R", "K", "Z"] * (early and number == 0) + expected.split())
    assert dialogue.received(message(b"1")) == "'1' where nothing was due"
    writer.transport.abort()
