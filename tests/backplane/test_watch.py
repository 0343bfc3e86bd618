"""PostgresBackplane.watch: rows that change invalidate tags, and no writer fails because of it."""

import asyncio
import re
import secrets
import signal
import statistics
import sys
import time

import asyncpg
import pytest

from acgsperf import LRUCache, TieredCache
from acgsperf.backplane import postgres as postgres_module
from acgsperf.backplane import postgres_changes
from acgsperf.backplane.postgres import PostgresBackplane
from acgsperf.errors import BackplaneError, TierError
from acgsperf.tiers import Entry
from acgsperf.tiers.postgres import PostgresTier
from acgsperf.tiers.records import RecordKind, texts
from acgsperf.tiers.redis import RedisTier

FUNCTIONS = """
SELECT oid::regprocedure::text FROM pg_proc WHERE obj_description(oid, 'pg_proc') = 'acgsperf watch for ' || $1
"""


@pytest.fixture
async def users(connection):
    """A table of the application."""
    name = f"users_{secrets.token_hex(4)}"
    await connection.execute(f"CREATE TABLE {name} (id int PRIMARY KEY, team text, note text)")
    yield name
    await connection.execute(f"DROP TABLE IF EXISTS {name} CASCADE")


@pytest.fixture
async def listener(postgres, opened, namespace, connection, table):
    backplane = postgres()
    listener = await opened(backplane, namespace)
    listener.backplane = backplane
    yield listener
    for (function,) in await connection.fetch(FUNCTIONS, table):
        await connection.execute(f"DROP FUNCTION {function} CASCADE")


def heard(listener):
    """The tags of all records, sorted within each."""
    return [sorted(tag for tag, _ in texts(record.items)) for record in listener.records]


@pytest.fixture
def warnings(connection):
    found = []
    connection.add_log_listener(lambda _, message: found.append(str(message)))
    return found


async def warned(connection, warnings):
    """Wait until the server has sent a warning; it arrives with a later answer."""
    async with asyncio.timeout(5):
        while not warnings:
            await connection.execute("SELECT 1")


async def test_changed_rows_invalidate_their_tags(listener, connection, users, until):
    assert await listener.backplane.watch(users, ["user:{id}", "team {team}"])
    await connection.execute(f"INSERT INTO {users} VALUES (1, 'a'), (2, 'a')")
    await connection.execute(f"UPDATE {users} SET team = 'b' WHERE id = 1")
    await connection.execute(f"DELETE FROM {users} WHERE id = 2")
    await until(lambda: len(listener.records) == 3)
    assert heard(listener) == [["team a", "user:1", "user:2"], ["team a", "team b", "user:1"], ["team a", "user:2"]]
    assert {(record.kind, record.writer) for record in listener.records} == {(RecordKind.TAG, b"")}
    assert all(abs(record.sent_us / 1e6 - time.time()) < 60 for record in listener.records)
    assert listener.backplane.stats().malformed == 0


async def test_what_changes_nothing_says_nothing(listener, connection, users, until):
    await listener.backplane.watch(users, ["user:{id}"])
    await connection.execute(f"UPDATE {users} SET team = 'b'")
    await connection.execute(f"DELETE FROM {users}")
    await connection.execute(f"INSERT INTO {users} VALUES (1)")
    await until(lambda: listener.records)
    assert heard(listener) == [["user:1"]]


async def test_a_transaction_that_is_rolled_back_says_nothing(listener, connection, users, until):
    await listener.backplane.watch(users, ["user:{id}"])
    transaction = connection.transaction()
    await transaction.start()
    await connection.execute(f"INSERT INTO {users} VALUES (1)")
    await transaction.rollback()
    await connection.execute(f"INSERT INTO {users} VALUES (2)")
    await until(lambda: listener.records)
    assert heard(listener) == [["user:2"]]


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO {users} SELECT i + 1000 FROM generate_series(1, 201) i",
        "UPDATE {users} SET note = 'x'",
        "DELETE FROM {users}",
        "TRUNCATE {users}",
    ],
)
async def test_a_large_change_invalidates_one_coarse_tag(listener, connection, users, until, statement):
    await connection.execute(f"INSERT INTO {users} SELECT i FROM generate_series(1, 500) i")
    await listener.backplane.watch(users, ["user:{id}"])
    await connection.execute(statement.format(users=users))
    await until(lambda: listener.records)
    assert heard(listener) == [[f"table:{users}"]]


@pytest.mark.parametrize(("events", "coarse"), [(["delete"], [2, 3]), (["insert", "update"], [0, 1, 3])])
async def test_some_events_may_always_invalidate_the_coarse_tag(listener, connection, users, until, events, coarse):
    transitions = (
        "SELECT count(*) FROM pg_trigger WHERE tgrelid = $1::regclass AND num_nulls(tgoldtable, tgnewtable) < 2"
    )
    assert await listener.backplane.watch(users, ["user:{id}"], coarse="all", coarse_on=events)
    assert not await listener.backplane.watch(users, ["user:{id}"], coarse="all", coarse_on=events)
    assert await connection.fetchval(transitions, users) == 3 - len(events)
    await connection.execute(f"INSERT INTO {users} VALUES (1)")
    await connection.execute(f"UPDATE {users} SET note = 'x'")
    await connection.execute(f"DELETE FROM {users}")
    await connection.execute(f"TRUNCATE {users}")
    await until(lambda: len(listener.records) == 4)
    assert heard(listener) == [["all"] if number in coarse else ["user:1"] for number in range(4)]
    assert await listener.backplane.watch(users, ["user:{id}"], coarse="all")
    assert await connection.fetchval(transitions, users) == 3


async def test_tags_without_columns_need_no_rows(listener, connection, users, until):
    await listener.backplane.watch(users, ["users", "people", "users", "x" * 2_000], coarse="all")
    transitions = (
        "SELECT count(*) FROM pg_trigger WHERE tgrelid = $1::regclass AND num_nulls(tgoldtable, tgnewtable) < 2"
    )
    assert await connection.fetchval(transitions, users) == 0
    await connection.execute(f"INSERT INTO {users} SELECT i FROM generate_series(1, 1000) i")
    await connection.execute(f"UPDATE {users} SET note = 'x' WHERE id = 1")
    await connection.execute(f"DELETE FROM {users}")
    await connection.execute(f"TRUNCATE {users}")
    await until(lambda: len(listener.records) == 4)
    assert [set(tags) for tags in heard(listener)] == [{"all", "people", "users"}] * 4
    # Tags of other templates take their place, and need the rows again.
    assert await listener.backplane.watch(users, ["user:{id}"])
    assert await connection.fetchval(transitions, users) == 3
    await connection.execute(f"INSERT INTO {users} VALUES (7)")
    await until(lambda: len(listener.records) == 5)
    assert heard(listener)[4] == ["user:7"]


async def test_200_rows_are_told_one_by_one(listener, connection, users, until):
    await listener.backplane.watch(users, ["user:{id}"], coarse="all users")
    await connection.execute(f"INSERT INTO {users} SELECT i FROM generate_series(1, 200) i")
    await connection.execute(f"UPDATE {users} SET note = 'x'")
    await connection.execute(f"INSERT INTO {users} SELECT i FROM generate_series(1001, 1201) i")
    await until(lambda: len(listener.records) == 3)
    expected = sorted(f"user:{number}" for number in range(1, 201))
    assert heard(listener) == [expected, expected, ["all users"]]


async def test_a_tag_that_is_too_long_is_the_coarse_one(listener, connection, users, until):
    await listener.backplane.watch(users, ["{note}"], coarse="all users")
    await connection.execute(f"INSERT INTO {users} (id, note) VALUES (1, repeat('x', 1024))")
    await connection.execute(f"INSERT INTO {users} (id, note) VALUES (2, repeat('ü', 513))")
    await until(lambda: len(listener.records) == 2)
    assert heard(listener) == [["x" * 1024], ["all users"]]


async def test_every_way_to_write_is_seen(listener, connection, users, until):
    await listener.backplane.watch(users, ["user:{id}"])
    await connection.copy_records_to_table(users, records=[(1, "a", "b")])
    await connection.execute(
        f"INSERT INTO {users} VALUES (1, 'c'), (2, 'c') ON CONFLICT (id) DO UPDATE SET team = excluded.team"
    )
    await connection.execute(f"WITH gone AS (DELETE FROM {users} WHERE id = 2) SELECT 1")
    await until(lambda: len(listener.records) == 4)
    assert heard(listener)[0] == ["user:1"]
    assert sorted(heard(listener)[1:3]) == [["user:1"], ["user:2"]]
    assert heard(listener)[3] == ["user:2"]


async def test_merging_and_copying_several_rows_is_seen(listener, connection, users, until):
    await connection.execute(f"INSERT INTO {users} VALUES (1, 'a'), (2, 'a')")
    await listener.backplane.watch(users, ["user:{id}", "team {team}"])
    await connection.execute(
        f"MERGE INTO {users} u USING (VALUES (1, 'b'), (2, NULL), (3, 'c')) AS v (id, team) ON u.id = v.id"
        " WHEN MATCHED AND v.team IS NULL THEN DELETE WHEN MATCHED THEN UPDATE SET team = v.team"
        " WHEN NOT MATCHED THEN INSERT VALUES (v.id, v.team)"
    )
    await connection.copy_records_to_table(users, records=[(4, "d", "x"), (5, "d", "x")])
    await until(lambda: len(listener.records) == 4)
    merged = [["team a", "team b", "user:1"], ["team a", "user:2"], ["team c", "user:3"]]
    assert sorted(heard(listener)[:3]) == merged
    assert heard(listener)[3] == ["team d", "user:4", "user:5"]


async def test_a_change_of_the_tag_of_one_row_invalidates_both(listener, connection, users, until):
    await connection.execute(f"INSERT INTO {users} VALUES (1, 'a'), (2, NULL)")
    await listener.backplane.watch(users, ["team {team}"])
    for team, number in (("b", 1), ("a", 2), (None, 1)):
        await connection.execute(f"UPDATE {users} SET team = $1 WHERE id = $2", team, number)
    await connection.execute(f"UPDATE {users} SET note = 'x' WHERE id = 1")
    await until(lambda: len(listener.records) == 4)
    assert heard(listener) == [["team a", "team b"], ["team ", "team a"], ["team ", "team b"], ["team "]]


async def test_a_rolled_back_savepoint_says_nothing(listener, connection, users, until):
    await listener.backplane.watch(users, ["user:{id}"])
    async with connection.transaction():
        await connection.execute(f"INSERT INTO {users} VALUES (1)")
        await connection.execute("SAVEPOINT a")
        await connection.execute(f"INSERT INTO {users} VALUES (2)")
        await connection.execute("ROLLBACK TO a")
        with pytest.raises(asyncpg.UniqueViolationError):
            await connection.execute(f"INSERT INTO {users} VALUES (3), (1)")
        await connection.execute("ROLLBACK TO a")
        await connection.execute(f"INSERT INTO {users} VALUES (4)")
    await until(lambda: len(listener.records) == 2)
    assert heard(listener) == [["user:1"], ["user:4"]]


@pytest.mark.parametrize("column", ["tags", "changed", "longest", "may_write", "new_1", "n", "o", "new"])
async def test_any_name_of_a_column_is_possible(listener, connection, users, until, warnings, column):
    await connection.execute(f'ALTER TABLE {users} ADD "{column}" int')
    await listener.backplane.watch(users, [f"{{{column}}}"])
    await connection.execute(f'INSERT INTO {users} (id, "{column}") VALUES (1, 5)')
    await connection.execute(f'INSERT INTO {users} (id, "{column}") VALUES (2, 6), (3, 7)')
    await until(lambda: len(listener.records) == 2)
    assert heard(listener) == [["5"], ["6", "7"]]
    assert warnings == []


async def test_tags_that_a_collation_takes_for_the_same_are_two_tags(listener, connection, users, until, table):
    try:
        await connection.execute(
            f"CREATE COLLATION {table} (provider = icu, locale = 'und-u-ks-level2', deterministic = false)"
        )
    except asyncpg.FeatureNotSupportedError:
        pytest.skip("this PostgreSQL was built without ICU")
    try:
        await connection.execute(f"ALTER TABLE {users} ALTER team TYPE text COLLATE {table}")
        await listener.backplane.watch(users, ["{team}"])
        await connection.execute(f"INSERT INTO {users} VALUES (1, 'a')")
        await connection.execute(f"UPDATE {users} SET team = 'A'")
        await connection.execute(f"INSERT INTO {users} VALUES (2, 'b'), (3, 'B')")
        await until(lambda: len(listener.records) == 3)
        assert heard(listener) == [["a"], ["A", "a"], ["B", "b"]]
    finally:
        await connection.execute(f"DROP TABLE {users}; DROP COLLATION {table}")


async def test_templates_may_have_any_text_and_any_column(listener, connection, users, until):
    await connection.execute(f'ALTER TABLE {users} ADD "odd "" name\'" text')
    await listener.backplane.watch(users, ["it's {{{odd \" name'}}} \\ {note} ü", "constant"])
    await connection.execute(f"INSERT INTO {users} VALUES (1, 'a', NULL, 'x')")
    await until(lambda: listener.records)
    assert heard(listener) == [["constant", "it's {x} \\  ü"]]


async def test_the_watched_table_may_be_altered(listener, connection, users, until, warnings):
    await listener.backplane.watch(users, ["user:{id}"], coarse="all users")
    await connection.execute(f"INSERT INTO {users} VALUES (1)")
    await connection.execute(f"ALTER TABLE {users} ADD more int DEFAULT 5")
    await connection.execute(f"INSERT INTO {users} VALUES (2)")
    await connection.execute(f"ALTER TABLE {users} DROP team, ALTER id TYPE bigint")
    await connection.execute(f"UPDATE {users} SET note = 'x' WHERE id = 2")
    await connection.execute(f"ALTER TABLE {users} RENAME TO {users}_renamed")
    await connection.execute(f"ALTER TABLE {users}_renamed RENAME TO {users}")
    await connection.execute(f"DELETE FROM {users} WHERE id = 1")
    assert warnings == []
    await connection.execute(f"ALTER TABLE {users} RENAME id TO number")
    await connection.execute(f"INSERT INTO {users} (number) VALUES (3)")
    await warned(connection, warnings)
    assert "acgsperf: the tags of changed rows" in warnings[0]
    assert await connection.fetchval(f"SELECT count(*) FROM {users} WHERE number = 3") == 1
    await until(lambda: len(listener.records) == 5)
    assert heard(listener) == [["user:1"], ["user:2"], ["user:2"], ["user:1"], ["all users"]]


@pytest.mark.parametrize("tag", ["user:{id}", "users"])
@pytest.mark.parametrize(
    "damage",
    [
        "DROP TABLE {table}_v2_changes",
        "ALTER TABLE {table}_v2_changes RENAME TO {table}_renamed",
        "ALTER SCHEMA public RENAME TO {table}",
    ],
)
async def test_a_writer_does_not_fail_if_the_table_of_changes_is_gone(
    listener, connection, dsn, users, table, warnings, damage, tag
):
    await listener.backplane.watch(users, [tag])
    await listener.backplane.close()
    await connection.execute(f"INSERT INTO {users} VALUES (1)")
    await connection.execute(damage.format(table=table))
    try:
        # A new session has no plan of the trigger's function.
        writer = await asyncpg.connect(dsn)
        for one in (connection, writer):
            await one.execute(f"SET search_path = public, {table}")
        writer.add_log_listener(lambda _, message: warnings.append(str(message)))
        await writer.execute(f"INSERT INTO {users} VALUES (2)")
        await warned(writer, warnings)
        await writer.close()
        assert "caches keep old values of" in warnings[0]
        assert await connection.fetchval(f"SELECT count(*) FROM {users}") == 2
        await connection.execute(f"DROP TABLE IF EXISTS {table}_renamed")
    finally:
        if "SCHEMA" in damage:
            await connection.execute(f"ALTER SCHEMA {table} RENAME TO public")
        await connection.execute("RESET search_path")


@pytest.mark.parametrize("tag", ["user:{id}", "users"])
async def test_a_writer_does_not_fail_if_the_trigger_lacks_a_right(listener, connection, users, table, warnings, tag):
    await listener.backplane.watch(users, [tag])
    role = f"r_{secrets.token_hex(4)}"
    await connection.execute(f"CREATE ROLE {role}; GRANT ALL ON {table}_v2_changes TO {role}")
    try:
        for (function,) in await connection.fetch(FUNCTIONS, table):
            await connection.execute(f"ALTER FUNCTION {function} OWNER TO {role}")
        await connection.execute(f"INSERT INTO {users} VALUES (1)")
        assert warnings == []
        await connection.execute(f"REVOKE INSERT ON {table}_v2_changes FROM {role}")
        await connection.execute(f"INSERT INTO {users} VALUES (2)")
        await warned(connection, warnings)
        assert "caches keep old values of" in warnings[0]
    finally:
        await connection.execute(f"DROP OWNED BY {role} CASCADE; DROP ROLE {role}")


async def test_a_writer_cannot_replace_what_the_trigger_calls(listener, connection, users, table, until, warnings):
    await listener.backplane.watch(users, ["user:{id}", "team {team}"])
    await listener.backplane.watch(users, ["user:{id}", "team {team}"], coarse_on=["delete"])
    sources = await connection.fetch(
        "SELECT prosrc FROM pg_proc p JOIN pg_trigger t ON t.tgfoid = p.oid WHERE tgrelid = $1::regclass", users
    )
    assert len(sources) == 4
    for (source,) in sources:
        code = re.sub(r"'[^']*'", "", source)
        calls = set(re.findall(r"(?<![\w.\"])(\w+) ?\(", code))
        assert calls <= {
            *("AND", "ARRAY", "AS", "FROM", "IF", "OPERATOR", "SELECT", "VALUES", "coalesce", "t"),
            f"{table}_v2_changes",
        }
        code = re.sub(r"OPERATOR\(pg_catalog\.[^)]+\)|::|:=|\(\*\)", "", code)
        assert re.findall(r"[-+*/<>=~!@#%^&|`?]", code) == []
        assert set(re.findall(r"::([\w.]+)", source)) <= {*("pg_catalog.regclass", "pg_catalog.regnamespace")}
    schema = f"s_{secrets.token_hex(4)}"
    await connection.execute(f"CREATE SCHEMA {schema}; SET search_path = {schema}, pg_catalog, public")
    try:
        for name, arguments in (
            *(("sha256", "bytea"), ("convert_to", "text, name"), ("clock_timestamp", ""), ("unnest", "anyarray")),
            *(
                ("pg_notify", "text, text"),
                ("current_setting", "text"),
                ("int8send", "bigint"),
                ("textcat", "text, text"),
            ),
        ):
            await connection.execute(
                f"CREATE FUNCTION {name}({arguments}) RETURNS int LANGUAGE plpgsql AS"
                " 'BEGIN RAISE WARNING $$replaced$$; RETURN 1; END'"
            )
        await connection.execute(f"CREATE OPERATOR || (FUNCTION = {schema}.textcat, LEFTARG = text, RIGHTARG = text)")
        await connection.execute(f"INSERT INTO {users} VALUES (1, 'a')")
        await connection.execute(f"INSERT INTO {users} VALUES (2, 'a'), (3, 'b')")
        await connection.execute(f"DELETE FROM {users}")
        await until(lambda: len(listener.records) == 3)
        assert warnings == []
    finally:
        await connection.execute(f"RESET search_path; DROP SCHEMA {schema} CASCADE")


async def test_a_writer_needs_no_rights_on_the_cache(listener, connection, dsn, users, until):
    await listener.backplane.watch(users, ["user:{id}"])
    role = f"r_{secrets.token_hex(4)}"
    await connection.execute(f"CREATE ROLE {role} LOGIN; GRANT INSERT ON {users} TO {role}")
    try:
        writer = await asyncpg.connect(dsn.replace("postgres:@", f"{role}:@"))
        await writer.execute("SET search_path = pg_catalog")
        await writer.execute(f"INSERT INTO public.{users} VALUES (1)")
        await writer.close()
        await until(lambda: heard(listener) == [["user:1"]])
    finally:
        await connection.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


@pytest.fixture
async def tier(dsn, table, namespace):
    tier = PostgresTier(dsn, table=table, deadline=5)
    await tier.open(namespace)
    yield tier
    await tier.close()


def entry(*tags):
    now = time.monotonic()
    return Entry("v", now, now + 60, now + 60, tags)


async def test_what_changes_while_no_cache_is_open_is_invalid_when_one_opens(
    listener, postgres, opened, namespace, connection, users, tier, until
):
    await listener.backplane.watch(users, ["user:{id}"])
    await listener.backplane.close()
    assert await tier.set("one", entry("user:1", "other"))
    assert await tier.set("two", entry("user:2"))
    async with connection.transaction():
        await connection.execute(f"INSERT INTO {users} VALUES (1)")
    assert await tier.get("one")
    later = await opened(postgres(), namespace)
    assert await tier.get("one") is None
    assert await tier.get("two")
    # A cache drops it from L2 when it gets the record.
    await until(lambda: heard(later) == [["user:1"]])
    assert await tier.set("all", entry(f"table:{users}", "ü" * 40))
    await connection.execute(f"TRUNCATE {users}")
    await until(lambda: heard(later) == [["user:1"], [f"table:{users}"]])
    assert await tier.get("all") is None


@pytest.mark.parametrize("isolation", ["read_committed", "repeatable_read", "serializable"])
async def test_a_writer_and_the_log_do_not_wait_for_a_locked_token(
    listener, connection, dsn, users, table, tier, until, isolation
):
    await listener.backplane.watch(users, ["user:{id}"])
    assert await tier.set("one", entry("user:1"))
    other = await asyncpg.connect(dsn)
    try:
        async with connection.transaction(isolation=isolation), asyncio.timeout(5):
            await connection.execute("SELECT 1")
            # Somebody extends the tokens: before this transaction's snapshot ends, and again until the record is there.
            await other.execute(f"UPDATE {table}_v2_tags SET expires_at = expires_at + 1")
            await connection.execute(f"INSERT INTO {users} VALUES (1)")
        async with other.transaction():
            await other.execute(f"UPDATE {table}_v2_tags SET expires_at = expires_at + 1")
            await connection.execute(f"UPDATE {users} SET note = 'x'")
            await until(lambda: heard(listener)[-1:] == [["user:1"]])
    finally:
        await other.close()


async def test_a_transaction_with_many_statements_takes_one_number(listener, connection, users):
    await listener.backplane.watch(users, ["user:{id}"])
    async with connection.transaction():
        first = await connection.fetchval("SELECT pg_current_xact_id()::text::bigint")
        for number in range(50):
            await connection.execute(f"INSERT INTO {users} VALUES ({number})")
    async with connection.transaction():
        assert await connection.fetchval("SELECT pg_current_xact_id()::text::bigint") < first + 40


async def leftovers(connection, users, table):
    """The triggers and functions that are left."""
    triggers = "SELECT tgname::text FROM pg_trigger WHERE tgrelid = to_regclass($1)"
    return [*await connection.fetch(triggers, users), *await connection.fetch(FUNCTIONS, table)]


async def test_unwatching_removes_everything(listener, postgres, opened, namespace, connection, users, table, until):
    other = postgres()
    theirs = await opened(other, namespace + "2")
    assert await listener.backplane.watch(users, ["user:{id}"])
    assert await other.watch(users, ["user:{id}"])
    assert not await listener.backplane.watch(users, ["user:{id}"])
    assert await listener.backplane.unwatch(users)
    await connection.execute(f"INSERT INTO {users} VALUES (1)")
    await until(lambda: heard(theirs) == [["user:1"]])
    assert heard(listener) == []
    await connection.execute(f"ALTER TABLE {users} RENAME TO {users}_new")
    assert await other.unwatch(f"{users}_new")
    assert await leftovers(connection, f"{users}_new", table) == []
    assert not await other.unwatch(f"{users}_new")
    assert not await other.unwatch("never_there")
    await connection.execute(f"DROP TABLE {users}_new")


async def test_the_function_of_a_dropped_table_is_removed_by_the_next_unwatch(listener, connection, users, table):
    await listener.backplane.watch(users, ["user:{id}"])
    await connection.execute(f"DROP TABLE {users}")
    assert len(await leftovers(connection, users, table)) == 4
    assert not await listener.backplane.unwatch(users)
    assert await leftovers(connection, users, table) == []


NOTED = "SELECT count(*) FROM {table}_v2_changes"


async def test_a_change_is_heard_within_milliseconds_and_leaves_nothing(
    listener, postgres, opened, namespace, connection, users, table, until
):
    # It looks for records by itself every 5 s.
    other = await opened(postgres(timeout=100), namespace)
    await listener.backplane.watch(users, ["user:{id}"])
    await connection.execute(f"INSERT INTO {users} VALUES (0)")
    await until(lambda: heard(listener) == heard(other) == [["user:0"]])
    lags = []
    for number in range(1, 21):
        began = time.monotonic()
        await connection.execute(f"INSERT INTO {users} VALUES ({number})")
        await until(lambda number=number: heard(listener)[-1] == heard(other)[-1] == [f"user:{number}"])
        lags.append(time.monotonic() - began)
    assert statistics.median(lags) < 0.1
    assert await connection.fetchval(NOTED.format(table=table)) == 0
    assert listener.backplane.stats().lag.p50 < 100_000_000


WATCHING = """
import asyncio, sys
from acgsperf.backplane.postgres import PostgresBackplane

class Silent:
    def apply(self, record): print("got", flush=True)
    def extend(self, until): pass
    def missed(self): pass

async def main(dsn, table, namespace, users):
    backplane = PostgresBackplane(dsn, table=table)
    await backplane.open(namespace, Silent(), b"another.")
    await backplane.watch(users, ["user:{id}"])
    await asyncio.Event().wait()

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL])
async def test_if_the_process_that_looks_for_changes_stops_the_others_find_them(
    postgres, opened, namespace, connection, dsn, users, table, until, number
):
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", WATCHING, dsn, table, namespace, users), stdout=asyncio.subprocess.PIPE
    )
    try:
        # The other process holds the lock when its record has arrived.
        async with asyncio.timeout(20):
            while not await connection.fetchval(
                "SELECT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = $1::regclass) AND EXISTS ("
                "SELECT FROM pg_locks WHERE locktype = 'advisory' AND granted)",
                users,
            ):
                pass
            await connection.execute(f"INSERT INTO {users} VALUES (0)")
            assert await process.stdout.readline() == b"got\n"
        backplane = postgres(timeout=0.8)
        listener = await opened(backplane, namespace)
        process.send_signal(number)
        for row in range(1, 10):
            await connection.execute(f"INSERT INTO {users} VALUES ({row})")
            await until(lambda row=row: heard(listener)[-1:] == [[f"user:{row}"]], 1)
        assert [f"user:{row}" for row in range(1, 10)] == [tags[0] for tags in heard(listener)]
    finally:
        if number == signal.SIGSTOP:
            process.send_signal(signal.SIGCONT)
        if process.returncode is None:
            process.kill()
        await process.wait()
    await until(lambda: backplane._reader.logs[table].changes.leads, 5)
    await backplane.unwatch(users)


async def test_closing_the_last_cache_of_a_log_releases_the_lock(
    postgres, opened, namespace, connection, users, table, until
):
    first, second = postgres(), postgres(table=table + "_other")
    await opened(first, namespace)
    await opened(second, namespace)
    await first.watch(users, ["user:{id}"])
    reader = first._reader
    changes = reader.logs[table].changes
    await until(lambda: changes.leads)
    number = changes._lock
    # The connection stays, because another log is followed over it.
    await first.close()
    await until(lambda: not changes.leads)
    assert not reader._left
    assert await connection.fetchval("SELECT pg_try_advisory_lock($1)", number)
    await connection.fetchval("SELECT pg_advisory_unlock($1)", number)
    again = postgres()
    await opened(again, namespace)
    await again.unwatch(users)


async def test_a_full_batch_of_changes_invalidates_the_coarse_tag(
    listener, postgres, opened, namespace, connection, users, until
):
    await listener.backplane.watch(users, ["user:{id}"], coarse="all users")
    await listener.backplane.close()
    await connection.execute(f"DO $$ BEGIN FOR i IN 1..2500 LOOP INSERT INTO {users} VALUES (i); END LOOP; END $$")
    later = await opened(postgres(), namespace)
    await until(lambda: len(heard(later)) == 502)
    assert heard(later)[:2] == [["all users"]] * 2
    assert sorted(tag for (tag,) in heard(later)[2:]) == sorted(f"user:{number}" for number in range(2001, 2501))


async def test_malformed_notes_of_another_program_are_harmless(listener, connection, users, table, namespace, until):
    await listener.backplane.watch(users, ["user:{id}"])
    await connection.execute(
        f"INSERT INTO {table}_v2_changes (namespace, coarse, tags, changed_at) VALUES"
        " ('', NULL, '{}', '-infinity'), ('other', '\\xff', '{NULL}', 'infinity'), ($1, NULL, '{}', now()),"
        " ($1, NULL, array_fill(convert_to(repeat('x', 2000), 'UTF8'), ARRAY[2, 2]), '0044-03-15 BC')",
        namespace,
    )
    await connection.execute(f"INSERT INTO {users} VALUES (1)")
    await until(lambda: ["user:1"] in heard(listener))
    assert {tuple(tags) for tags in heard(listener)} == {(), ("user:1",)}
    assert await connection.fetchval(NOTED.format(table=table)) == 0


async def test_a_process_without_rights_on_the_changes_leaves_them_to_others(
    listener, connection, dsn, table, namespace, opened, users, until, caplog
):
    await listener.backplane.watch(users, ["user:{id}"])
    await listener.backplane.close()
    role = f"r_{secrets.token_hex(4)}"
    await connection.execute(f"CREATE ROLE {role} LOGIN; GRANT SELECT, INSERT, DELETE ON {table}_v2_log TO {role}")
    try:
        poor = PostgresBackplane(dsn.replace("postgres:@", f"{role}:@"), table=table, timeout=0.4)
        heard_by_poor = await opened(poor, namespace)
        await connection.execute(f"INSERT INTO {users} VALUES (1)")
        await until(lambda: "cannot carry the changes of watched tables" in caplog.text)
        await asyncio.sleep(1.5)
        assert caplog.text.count("cannot carry the changes") == 1
        assert heard(heard_by_poor) == []
        rich = PostgresBackplane(dsn, table=table)
        await opened(rich, namespace)
        await until(lambda: heard(heard_by_poor) == [["user:1"]])
        await rich.unwatch(users)
        await poor.close()
    finally:
        await connection.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


async def test_while_the_table_of_changes_is_locked_other_records_arrive(
    listener, connection, users, table, namespace, dsn, until
):
    await listener.backplane.watch(users, ["user:{id}"])
    await until(lambda: listener.backplane._reader.logs[table].changes.leads)
    other = await asyncpg.connect(dsn)
    async with other.transaction():
        await other.execute(f"LOCK TABLE {table}_v2_changes")
        misses, leases, reading = listener.misses, [], listener.backplane._reader._connection
        for number in range(15):
            await connection.execute(
                f"INSERT INTO {table}_v2_log (namespace, record) VALUES ($1, $2)", namespace, b"nothing"
            )
            await until(lambda number=number: listener.backplane.stats().malformed == number + 1, 3)
            leases.append(listener.leased)
            await asyncio.sleep(0.1)
    assert all(leases)
    assert listener.misses == misses
    assert listener.backplane._reader._connection is reading
    await connection.execute(f"INSERT INTO {users} VALUES (1)")
    await until(lambda: heard(listener) == [["user:1"]], 3)
    await other.close()


async def test_two_caches_that_close_at_the_same_time_leave_nothing(postgres, opened, namespace, users, table, until):
    first, second = postgres(), postgres()
    await opened(first, namespace)
    await opened(second, namespace + "2")
    await first.watch(users, ["user:{id}"])
    reader = first._reader
    await until(lambda: reader.logs[table].watched)
    assert reader in postgres_module._readers.values()
    await asyncio.gather(first.close(), second.close())
    assert reader not in postgres_module._readers.values()
    again = postgres()
    await opened(again, namespace)
    assert await again.unwatch(users)


async def test_unwatch_delivers_the_changes_that_are_still_noted(
    postgres, opened, namespace, connection, users, table, until
):
    backplane = postgres(timeout=0.8)
    listener = await opened(backplane, namespace)
    await backplane.watch(users, ["user:{id}"])
    await connection.execute(f"INSERT INTO {users} VALUES (1)")
    await backplane.unwatch(users)
    await until(lambda: ["user:1"] in heard(listener))
    assert await connection.fetchval("SELECT to_regclass($1)", f"{table}_v2_changes") is None
    assert await backplane.watch(users, ["user:{id}"])
    await connection.execute(f"INSERT INTO {users} VALUES (2)")
    await until(lambda: heard(listener)[-1] == ["user:2"])
    await backplane.unwatch(users)


async def test_changes_of_large_transactions_are_heard(listener, connection, users, until):
    """200 statements of 200 rows are more than can be carried one by one in time."""
    await listener.backplane.watch(users, ["user:{id}", "{note}"], coarse="all users")
    await connection.execute(
        f"DO $$ BEGIN FOR i IN 0..199 LOOP INSERT INTO {users} SELECT 200 * i + n, '', repeat(i::text, 300)"
        " FROM generate_series(1, 200) n; END LOOP; END $$"
    )
    await until(lambda: ["all users"] in heard(listener))
    await connection.execute(f"UPDATE {users} SET team = 'a' WHERE id = 1")
    await until(lambda: heard(listener)[-1][-1:] == ["user:1"])
    assert listener.backplane.stats().state.value == "following"


async def test_the_owner_of_a_table_runs_nothing_with_the_rights_of_the_watch(
    listener, connection, users, until, warnings
):
    await listener.backplane.watch(users, ["team:{team}"])
    role = f"r_{secrets.token_hex(4)}"
    await connection.execute(f"CREATE ROLE {role}; GRANT CREATE ON SCHEMA public TO {role}")
    try:
        await connection.execute(f"ALTER TABLE {users} OWNER TO {role}; SET ROLE {role}")
        await connection.execute(
            f"CREATE TYPE {role}_type AS ENUM ('a'); CREATE FUNCTION {role}_text({role}_type) RETURNS text"
            " LANGUAGE plpgsql AS $$ BEGIN RAISE WARNING 'as %', current_user; RETURN 'x'; END $$;"
            f"CREATE CAST ({role}_type AS text) WITH FUNCTION {role}_text({role}_type);"
            f"ALTER TABLE {users} ALTER team TYPE {role}_type USING 'a'"
        )
        await connection.execute(f"INSERT INTO {users} VALUES (1, 'a')")
        await connection.execute("RESET ROLE")
        await until(lambda: heard(listener) == [["team:a"]])
        assert warnings == []
    finally:
        await connection.execute("RESET ROLE")
        await connection.execute(f"DROP TABLE {users}; DROP OWNED BY {role} CASCADE; DROP ROLE {role}")


async def test_a_publication_of_all_tables_is_no_obstacle(postgres, opened, namespace, connection, users, until):
    publication = f"p_{secrets.token_hex(4)}"
    await connection.execute(f"CREATE PUBLICATION {publication} FOR ALL TABLES")
    try:
        backplane = postgres()
        listener = await opened(backplane, namespace)
        await backplane.watch(users, ["user:{id}"])
        await connection.execute(f"ALTER TABLE {users} REPLICA IDENTITY FULL; INSERT INTO {users} VALUES (1)")
        await until(lambda: heard(listener) == [["user:1"]])
        await backplane.unwatch(users)
    finally:
        await connection.execute(f"DROP PUBLICATION {publication}")


@pytest.mark.parametrize("gone", ["tags", "log"])
async def test_a_missing_table_of_the_cache_is_named(listener, connection, users, table, until, caplog, gone):
    await listener.backplane.watch(users, ["user:{id}"])
    await connection.execute(f"ALTER TABLE {table}_v2_{gone} RENAME TO {table}_renamed")
    try:
        await connection.execute(f"INSERT INTO {users} VALUES (1)")
        await until(lambda: f'"{table}_v2_{gone}" does not exist' in caplog.text)
    finally:
        await connection.execute(f"ALTER TABLE {table}_renamed RENAME TO {table}_v2_{gone}")
    await until(lambda: ["user:1"] in heard(listener) or listener.misses > 1)


@pytest.mark.parametrize("tag", ["ü{id}", "ü"])
async def test_a_writer_may_have_any_setting_of_strings(listener, connection, users, until, warnings, tag):
    await listener.backplane.watch(users, [tag], coarse="alle ü")
    await connection.execute("SET standard_conforming_strings = off")
    try:
        await connection.execute(f"INSERT INTO {users} VALUES (1)")
        await connection.execute(f"TRUNCATE {users}")
    finally:
        await connection.execute("RESET standard_conforming_strings")
    await until(lambda: len(listener.records) == 2)
    assert heard(listener)[0] == [tag.format(id=1)]
    assert "alle ü" in heard(listener)[1]
    assert warnings == []


@pytest.mark.parametrize("tag", ["user:{id}", "users"])
async def test_a_writer_does_not_fail_if_the_schema_is_closed_to_the_trigger(
    listener, connection, dsn, users, table, tag
):
    await listener.backplane.watch(users, [tag])
    role, schema = f"r_{secrets.token_hex(4)}", f"s_{secrets.token_hex(4)}"
    await connection.execute(
        f"CREATE SCHEMA {schema}; CREATE ROLE {role}; GRANT CREATE, USAGE ON SCHEMA {schema} TO {role}"
    )
    try:
        source = PostgresBackplane(f"{dsn}&search_path={schema},public", table=table + "_own")
        await source.open("own", listener, b"another.")
        await source.watch(users, [tag])
        await source.close()
        for (function,) in await connection.fetch(FUNCTIONS, table + "_own"):
            await connection.execute(f"ALTER FUNCTION {function} OWNER TO {role}")
        await connection.execute(f"REVOKE USAGE ON SCHEMA {schema} FROM {role}")
        writer = await asyncpg.connect(dsn)
        await writer.execute(f"INSERT INTO {users} VALUES (1)")
        await writer.execute(f"TRUNCATE {users}")
        await writer.close()
    finally:
        await connection.execute(f"DROP SCHEMA {schema} CASCADE; DROP OWNED BY {role}; DROP ROLE {role}")


async def test_a_serializable_writer_does_not_fail_because_its_table_is_watched(
    listener, connection, dsn, users, until, caplog
):
    database = await connection.fetchval("SELECT current_database()")
    await connection.execute(f'ALTER DATABASE "{database}" SET default_transaction_isolation = serializable')
    try:
        backplane = PostgresBackplane(dsn, table=listener.backplane._tables.table)
        await listener.backplane.close()
        await backplane.open("serializable", listener, b"another.")
        await backplane.watch(users, ["user:{id}"])
        await connection.execute(f"CREATE TABLE {users}_x AS SELECT 0 AS id")
        one, two = await asyncpg.connect(dsn), await asyncpg.connect(dsn)
        for number in range(1, 6):
            async with one.transaction():
                await one.fetch(f"SELECT FROM {users}_x")
                await two.execute(f"UPDATE {users}_x SET id = {number}")
                await asyncio.sleep(0.04)
                await one.execute(f"INSERT INTO {users} VALUES ({number})")
        await until(lambda: ["user:5"] in heard(listener))
        await backplane.unwatch(users)
        await backplane.close()
        await one.close()
        await two.close()
    finally:
        await connection.execute(f'ALTER DATABASE "{database}" RESET default_transaction_isolation')
        await connection.execute(f"DROP TABLE IF EXISTS {users}_x")


async def test_the_table_of_changes_is_where_the_log_is(
    listener, postgres, connection, dsn, users, table, namespace, until
):
    """A user's own schema comes first in the search path."""
    schema = f"s_{secrets.token_hex(4)}"
    await connection.execute(f"CREATE SCHEMA {schema}")
    try:
        other = PostgresBackplane(f"{dsn}&search_path={schema},public", table=table)
        await other.open(namespace + "2", listener, b"another.")
        await other.watch(users, ["user:{id}"])
        await other.close()
        await connection.execute(f"INSERT INTO {users} VALUES (1)")
        async with asyncio.timeout(5):
            while await connection.fetchval(NOTED.format(table=f"public.{table}")):
                pass
    finally:
        await connection.execute(f"DROP SCHEMA {schema} CASCADE")


async def test_of_two_processes_one_carries_each_change_once(
    postgres, opened, namespace, connection, dsn, users, table, until, monkeypatch
):
    backplane = postgres()
    # Another DSN has a connection of its own, as another process has.
    other = PostgresBackplane(f"{dsn}&application_name=other", table=table)
    listener, its = await opened(backplane, namespace), await opened(other, namespace)
    await backplane.watch(users, ["user:{id}"])
    ours, theirs = (one._reader.logs[table].changes for one in (backplane, other))
    await until(lambda: ours.leads != theirs.leads)
    follower = theirs if ours.leads else ours
    carried = []
    carry_rows = postgres_changes.Changes._carry_rows

    async def note(changes, connection, rows):
        carried.append((changes is follower, len(rows)))
        await carry_rows(changes, connection, rows)

    monkeypatch.setattr(postgres_changes.Changes, "_carry_rows", note)
    for number in range(50):
        await connection.execute(f"INSERT INTO {users} VALUES ({number})")
    await until(lambda: len(heard(listener)) >= 50 and len(heard(its)) >= 50)
    assert heard(listener) == heard(its) == [[f"user:{number}"] for number in range(50)]
    # It may stand in if this machine is so busy that a note is late.
    assert sum(rows for by_follower, rows in carried if by_follower) < 25
    await backplane.unwatch(users)


async def test_other_tags_replace_those_of_before(listener, connection, users, until):
    assert await listener.backplane.watch(users, ["user:{id}"])
    assert await listener.backplane.watch(users, ["person:{id}"])
    await connection.execute(f"ALTER TABLE {users} DISABLE TRIGGER USER")
    assert await listener.backplane.watch(users, ["person:{id}"])
    await connection.execute(f"INSERT INTO {users} VALUES (1)")
    await until(lambda: listener.records)
    assert heard(listener) == [["person:1"]]


async def test_processes_that_watch_at_the_same_time_do_not_disturb_each_other(dsn, table, namespace, opened, users):
    backplanes = [PostgresBackplane(dsn, table=table) for _ in range(5)]
    for backplane in backplanes:
        await opened(backplane, namespace)
    done = await asyncio.gather(*(backplane.watch(users, ["user:{id}"]) for backplane in backplanes))
    assert sorted(done) == [False] * 4 + [True]
    assert await backplanes[0].unwatch(users)


async def test_what_cannot_be_watched(listener, postgres, connection, users, dsn, table, namespace, opened):
    watch = listener.backplane.watch
    with pytest.raises(BackplaneError, match="'nothing' does not exist"):
        await watch("nothing", ["user:{id}"])
    with pytest.raises(BackplaneError, match="has no column 'nothing'"):
        await watch(users, ["user:{nothing}"])
    for tags in ([], "user:{id}", ["{}"], ["{id!r}"], ["{id:5}"], ["{id"], [""], [5], ["{id}"] * 17):
        with pytest.raises(ValueError, match=r"tags must be|a tag must"):
            await watch(users, tags)
    for coarse in ("", "x" * 1_025, "a\0b", 5):
        with pytest.raises(ValueError, match="coarse must be"):
            await watch(users, ["{id}"], coarse=coarse)
    for events in ("delete", ["DELETE"], ["truncate"], [5]):
        with pytest.raises(ValueError, match="coarse_on must contain"):
            await watch(users, ["{id}"], coarse_on=events)
    with pytest.raises(ValueError, match="NUL character"):
        await watch(users, ["a\0{id}"])
    with pytest.raises(TierError, match="is not open"):
        await postgres().watch(users, ["{id}"])
    role = f"r_{secrets.token_hex(4)}"
    await connection.execute(f"CREATE ROLE {role} LOGIN; GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}")
    await connection.execute(f"REVOKE TRIGGER ON {users} FROM {role}")
    try:
        backplane = PostgresBackplane(dsn.replace("postgres:@", f"{role}:@"), table=table)
        await opened(backplane, namespace)
        with pytest.raises(BackplaneError, match="permission denied"):
            await backplane.watch(users, ["user:{id}"])
        await backplane.close()
    finally:
        await connection.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")
    assert await leftovers(connection, users, table) == []


async def test_a_partitioned_table_is_watched(listener, connection, users, until):
    await connection.execute(f"CREATE TABLE {users}_p (id int, team text) PARTITION BY RANGE (id)")
    await connection.execute(f"CREATE TABLE {users}_p1 PARTITION OF {users}_p FOR VALUES FROM (0) TO (100)")
    await listener.backplane.watch(f"{users}_p", ["user:{id}"])
    await connection.execute(f"INSERT INTO {users}_p VALUES (1)")
    await until(lambda: heard(listener) == [["user:1"]])
    # An update that moves a row, which a trigger then drops.
    await connection.execute(f"CREATE TABLE {users}_p2 PARTITION OF {users}_p FOR VALUES FROM (100) TO (200)")
    await connection.execute(f"UPDATE {users}_p SET id = 101")
    await connection.execute(
        f"CREATE FUNCTION {users}_drop() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';"
        f"CREATE TRIGGER a BEFORE INSERT ON {users}_p1 FOR EACH ROW EXECUTE FUNCTION {users}_drop()"
    )
    await connection.execute(f"UPDATE {users}_p SET id = 1")
    await until(lambda: len(listener.records) == 3)
    assert heard(listener)[1:] == [["user:1", "user:101"], ["user:101"]]
    await connection.execute(f"DROP TABLE {users}_p; DROP FUNCTION {users}_drop")


async def test_a_table_with_inheriting_tables_is_watched(listener, connection, users, until):
    await connection.execute(f"CREATE TABLE {users}_c () INHERITS ({users})")
    await connection.execute(f"INSERT INTO {users} VALUES (1); INSERT INTO {users}_c VALUES (2)")
    await listener.backplane.watch(users, ["user:{id}"])
    await connection.execute(f"UPDATE {users} SET note = 'x'")
    await connection.execute(f"DELETE FROM {users} WHERE id = 2")
    await until(lambda: len(listener.records) == 2)
    assert heard(listener) == [["user:1", "user:2"], ["user:2"]]


@pytest.mark.parametrize("isolation", ["read_committed", "repeatable_read"])
async def test_every_tier_of_a_cache_forgets_the_rows_that_changed(
    connection, dsn, redis_url, users, table, namespace, until, isolation
):
    l2, l3 = RedisTier(redis_url, deadline=5), PostgresTier(dsn, table=table, deadline=5)
    backplane = PostgresBackplane(dsn, table=table)
    async with TieredCache(LRUCache(10), l2, l3, namespace=namespace, deadline=5, backplane=backplane) as cache:
        await backplane.watch(users, ["user:{id}"])
        assert (await cache.set("one", "old", tags=("user:1",))).everywhere
        assert (await cache.set("two", "kept", tags=("user:2",))).everywhere
        async with connection.transaction(isolation=isolation):
            await connection.execute(f"INSERT INTO {users} VALUES (1)")
        async with asyncio.timeout(5):
            while await l2.get("one") or await l3.get("one"):
                pass
        await until(lambda: cache.get_local("one") is None)
        assert await cache.get("one") is None
        assert await cache.get("two") == "kept"
        await backplane.unwatch(users)
        await cache.clear()


async def test_a_change_just_before_the_last_cache_closes_reaches_l2(
    connection, dsn, redis_url, users, table, namespace, until, caplog
):
    def cache(backplane):
        l2, l3 = RedisTier(redis_url, deadline=5), PostgresTier(dsn, table=table, deadline=5)
        return TieredCache(LRUCache(100), l2, l3, namespace=namespace, deadline=5, backplane=backplane)

    backplane = PostgresBackplane(dsn, table=table)
    async with cache(backplane):
        await backplane.watch(users, ["user:{id}"])
    for number in range(20):
        async with cache(PostgresBackplane(dsn, table=table)) as closing:
            assert (await closing.set(f"{number}", "old", tags=(f"user:{number}",))).everywhere
            await connection.execute(f"INSERT INTO {users} VALUES ({number})")
            await asyncio.sleep(number / 1_000)
    backplane = PostgresBackplane(dsn, table=table)
    async with cache(backplane) as later:
        for number in range(20):
            async with asyncio.timeout(2):
                while await later.get(f"{number}") is not None:
                    pass
        await backplane.unwatch(users)
        await later.clear()
    assert "never retrieved" not in caplog.text
