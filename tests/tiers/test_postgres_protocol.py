"""What keeps writes right between processes in PostgreSQL: two tiers call in an order that would lose a write."""

import asyncio
import secrets
import time
from contextlib import suppress

import asyncpg
import pytest
from msgspec.structs import replace

from acgsperf.tiers import Entry, Outcome, Store, StoreKind, Write
from acgsperf.tiers.postgres import PostgresTier
from acgsperf.tiers.postgres_schema import channel_of, position_bytes, tag_hash
from acgsperf.tiers.records import RecordKind, unpacked


@pytest.fixture
def kind():
    return "postgres"


@pytest.fixture
async def connection(servers):
    connection = await asyncpg.connect(servers.database_url)
    yield connection
    await connection.close()


@pytest.fixture
async def table(connection):
    name = "cache_" + secrets.token_hex(4)
    yield name
    await connection.execute(f"DROP TABLE IF EXISTS {name}_v2, {name}_v2_tags, {name}_v2_log")


@pytest.fixture
async def open_tier(servers, table):
    """Opens tiers as several processes would."""
    tiers = []

    async def open_one(**options):
        settings = {"retention": options.pop("retention", 60.0), "writer": options.pop("writer", b"")}
        namespace = options.pop("namespace", "n")
        tier = PostgresTier(servers.database_url, **{"table": table, "deadline": 5} | options)
        for name, value in settings.items():
            setattr(tier, name, value)
        await tier.open(namespace)
        tiers.append(tier)
        return tier

    yield open_one
    for tier in tiers:
        await tier.close()


@pytest.fixture
async def one(open_tier):
    return await open_tier()


@pytest.fixture
async def other(open_tier):
    return await open_tier()


def new_id():
    return secrets.token_bytes(8)


async def write(tier, key, entry, stamp=None):
    (result,) = (await tier.write({key: Write(entry, new_id(), stamp or tier.now_us())})).values()
    return result


async def value(tier, key):
    entry = await tier.get(key)
    return None if entry is None else entry.value


async def until(connection, query, most):
    async with asyncio.timeout(10):
        while await connection.fetchval(query) > most:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def begin_load(tier, key, tags=()):
    """What a process does before it calls its loader; returns how it stores what was loaded."""
    _, seen = await tier.look_up([key], tags)
    seen = seen or await tier.observe([key], tags)

    async def end(entry):
        loaded = replace(entry, id=new_id(), stamp=seen[key].stamp, tags=tuple(tags))
        return await tier.store({key: Store(loaded, seen[key])}) == {key}

    return end


class Held:
    """Holds the row of a key locked, as a transaction in progress does."""

    def __init__(self, connection, table, key):
        self._connection, self._table, self._key = connection, table, key.encode()

    async def __aenter__(self):
        await self._connection.execute("BEGIN")
        await self._connection.execute(f"SELECT FROM {self._table}_v2 WHERE key = $1 FOR UPDATE", self._key)

    async def __aexit__(self, *error):
        with suppress(asyncpg.InterfaceError):
            await self._connection.execute("ROLLBACK")


class TestLoads:
    @pytest.mark.parametrize("before", ["nothing", "expired", "deleted", "invalidated", "cleared"])
    async def test_a_load_is_stored_if_nothing_has_come_between(self, one, other, entry, before):
        await prepare(other, before, entry)
        end = await begin_load(one, "k", ["t"])
        assert await end(entry("loaded"))
        assert await value(other, "k") == "loaded"
        assert (await one.get("k")).tags == ("t",)

    @pytest.mark.parametrize("before", ["nothing", "expired", "deleted", "invalidated", "cleared"])
    @pytest.mark.parametrize(
        "change", ["set", "delete", "delete twice", "invalidate", "expire tag", "clear", "set, invalidate"]
    )
    async def test_a_slow_load_does_not_undo_a_write(self, one, other, entry, before, change):
        await prepare(other, before, entry)
        end = await begin_load(one, "k", ["t"])
        if "set" in change:
            assert await other.set("k", entry("new", tags=("u",) if "invalidate" in change else ()))
        if "delete" in change:
            assert (await write(other, "k", None)).outcome is Outcome.STORED
        if "twice" in change:
            await other.set("k", entry())
            assert (await write(other, "k", None)).outcome is Outcome.STORED
        if change == "invalidate":
            assert (await other.invalidate("t")).outcome is Outcome.STORED
        if change == "set, invalidate":
            assert await other.invalidate_tag("u") == 1
        if change == "expire tag":
            assert (await other.expire_tag("t")).outcome is Outcome.STORED
        if change == "clear":
            assert (await other.invalidate(None)).outcome is Outcome.STORED
        assert not await end(entry("old"))
        assert await value(one, "k") == ("new" if change == "set" else None)

    async def test_a_load_is_not_stored_after_its_observation_has_expired(
        self, open_tier, connection, table, one, entry
    ):
        assert await one.set("k", entry("stale"))
        assert (await write(one, "k", None)).outcome is Outcome.STORED
        hasty = await open_tier(retention=0.3)
        end, absent = await begin_load(hasty, "k"), await begin_load(hasty, "absent")
        async with Held(connection, table, "k"):
            storing = asyncio.create_task(end(entry("loaded")))
            await asyncio.sleep(0.5)
        assert not await storing
        assert not await absent(entry("loaded"))
        assert await one.get_many(["k", "absent"]) == {}

    async def test_repeating_a_store_changes_nothing(self, one, entry):
        _, seen = await one.look_up(["new", "known"])
        loaded = replace(entry("loaded"), id=new_id())
        for _ in range(2):
            assert await one.store({"new": Store(loaded, seen["new"])}) == {"new"}

    async def test_a_copy_keeps_its_id_and_stamp(self, one, entry):
        copied = replace(entry("v", tags=("t",)), id=new_id(), stamp=5)
        _, seen = await one.look_up(["k"])
        assert await one.store({"k": Store(copied, seen["k"], StoreKind.COPY)}) == {"k"}
        found = await one.get("k")
        assert (found.id, found.stamp, found.tags) == (copied.id, 5, ("t",))

    @pytest.mark.parametrize("change", ["nothing", "invalidate"])
    async def test_a_load_may_have_tags_that_were_not_known_before(self, one, other, entry, change):
        _, seen = await one.look_up(["k"])
        if change == "invalidate":
            await other.invalidate("t")
        loaded = replace(entry("loaded", tags=("t",)), id=new_id())
        assert (await one.store({"k": Store(loaded, seen["k"])}) == {"k"}) is (change == "nothing")
        assert await value(other, "k") == ("loaded" if change == "nothing" else None)
        await other.invalidate("t")
        assert await one.get("k") is None

    async def test_a_copy_that_creates_a_token_while_its_tag_is_invalidated_is_not_stored(
        self, one, entry, connection, table
    ):
        _, seen = await one.look_up(["k"])
        copied = replace(entry("old", tags=("t",)), id=new_id())
        # As another process that is about to commit.
        await connection.execute("BEGIN")
        statement = one._statements.invalidate()
        arguments = {"namespace": "n", "tag": tag_hash("t"), "new_token": 1, "refused_below": False, "lifetime": 60.0}
        arguments |= {"deadline": time.time() + 60, "count": 2}
        await connection.fetch(statement.sql, *statement.arguments(arguments))
        storing = asyncio.create_task(one.store({"k": Store(copied, seen["k"], StoreKind.COPY)}))
        await asyncio.sleep(0.1)
        assert not storing.done()
        await connection.execute("COMMIT")
        assert await storing == frozenset()
        assert await one.get("k") is None

    async def test_a_load_is_stale_if_its_tag_expires_at_the_same_time(self, one, entry, connection, table):
        # Its token need not be extended: the store waits for nobody.
        assert await one.set("other", entry(tags=("t",), kept=600))
        end = await begin_load(one, "k", ["t"])
        await connection.execute("BEGIN")
        statement = one._statements.expire_tag()
        arguments = {"namespace": "n", "tag": tag_hash("t"), "deadline": time.time() + 60}
        await connection.fetch(statement.sql, *statement.arguments(arguments))
        # What is not committed cannot be compared.
        assert await end(entry("old"))
        await connection.execute("COMMIT")
        assert (await one.get("k")).fresh_until <= time.monotonic()

    async def test_invalidations_of_other_tags_stop_no_entry_without_tags(self, one, other, entry):
        _, seen = await one.look_up(["k"])
        await other.invalidate("t")
        copied = replace(entry(), id=new_id())
        assert await one.store({"k": Store(copied, seen["k"], StoreKind.COPY)}) == {"k"}

    @pytest.mark.parametrize("change", ["set", "delete", "invalidate", "invalidate another", "clear", "refused"])
    async def test_a_copy_does_not_undo_a_write(self, one, other, entry, change):
        assert await other.set("x", entry(tags=("t", "u")))
        if change == "refused":
            # L3 has refused the invalidation and still has the entry.
            await other.invalidate("t", refused_below=True)
        _, seen = await one.look_up(["k"])
        if change == "set":
            assert await other.set("k", entry("new"))
        elif change == "delete":
            await write(other, "k", None)
        elif change == "clear":
            await other.invalidate(None)
        elif change != "refused":
            await other.invalidate("t" if change == "invalidate" else "u")
        copied = replace(entry("old", tags=("t",)), id=new_id(), stamp=5)
        assert await one.store({"k": Store(copied, seen["k"], StoreKind.COPY)}) == frozenset()
        assert await value(one, "k") == ("new" if change == "set" else None)

    async def test_a_refusal_below_ends_with_the_next_invalidation(self, one, entry):
        await one.invalidate("t", refused_below=True)
        await one.invalidate("t")
        await one.look_up(["k"], ["t"])
        _, seen = await one.look_up(["k"])
        copied = replace(entry(tags=("t",)), id=new_id())
        assert await one.store({"k": Store(copied, seen["k"], StoreKind.COPY)}) == {"k"}

    @pytest.mark.parametrize("change", ["nothing", "set", "delete", "other key", "forgotten"])
    async def test_a_demotion_needs_an_absent_key_and_the_end_of_the_log(
        self, open_tier, one, connection, table, entry, change
    ):
        writing = await open_tier(writer=b"12345678")
        position = await connection.fetchval("SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint")
        if change == "set":
            # A write that publishes no record.
            assert await one.set("k", entry("new"))
        elif change in {"delete", "forgotten"}:
            await write(writing, "k", None)
        elif change == "other key":
            await write(writing, "other", entry())
        if change == "forgotten":
            await connection.execute(f"DELETE FROM {table}_v2")
        evicted = replace(entry("old"), id=new_id(), stamp=5)
        store = Store(evicted, None, StoreKind.DEMOTION, position_bytes(position))
        assert (await one.store({"k": store}) == {"k"}) is (change == "nothing")
        assert await value(one, "k") == {"nothing": "old", "set": "new"}.get(change)

    async def test_a_demotion_without_a_position_is_not_stored(self, one, entry):
        assert await one.store({"k": Store(replace(entry(), id=new_id()), None, StoreKind.DEMOTION)}) == frozenset()


async def prepare(tier, before, entry):
    """Leaves in the table what makes a load necessary."""
    if before == "expired":
        assert await tier.set("k", entry("former", kept=0.02))
        await asyncio.sleep(0.03)
    elif before == "deleted":
        assert (await write(tier, "k", None)).outcome is Outcome.STORED
    elif before == "invalidated":
        assert await tier.set("k", entry("former", tags=("t",)))
        assert (await tier.invalidate("t")).outcome is Outcome.STORED
    elif before == "cleared":
        assert await tier.set("k", entry("former"))
        assert (await tier.invalidate(None)).outcome is Outcome.STORED
    # Two processes know the time of the server to some milliseconds, and a load that may be older is refused.
    await asyncio.sleep(0.05)


class TestLookingUp:
    async def test_it_returns_live_entries_and_what_is_known_of_others(self, one, other, entry):
        now = time.monotonic()
        stale = Entry("stale", now - 9, now - 1, now + 60)
        assert await other.set_many({"fresh": entry("fresh"), "stale": stale, "tagged": entry(tags=("t",))})
        deleted = await write(other, "deleted", None, 7)
        await other.invalidate("t")
        entries, seen = await one.look_up(["fresh", "stale", "deleted", "tagged", "absent"], ["t"])
        assert deleted.outcome is Outcome.STORED
        assert {key: entry.value for key, entry in entries.items()} == {"fresh": "fresh", "stale": "stale"}
        assert set(seen) == {"stale", "deleted", "tagged", "absent"}
        assert (seen["stale"].id, seen["stale"].stamp) == (entries["stale"].id, entries["stale"].stamp)
        assert (len(seen["deleted"].id), seen["deleted"].stamp) == (8, 7)
        assert len(seen["tagged"].id) == 8
        assert (seen["absent"].id, seen["absent"].stamp) == (b"", 0)
        assert {len(token) for token in seen["absent"].tokens} == {8}
        assert len(seen["absent"].tokens) == 2
        assert now + 59 < seen["absent"].expires_at < time.monotonic() + 60
        assert (await one.observe(["fresh"]))["fresh"].id == entries["fresh"].id
        assert (one.stats().hits, one.stats().misses) == (2, 3)

    async def test_a_server_that_is_away_leaves_nothing_to_compare(self, tmp_path):
        tier = PostgresTier(f"postgresql://u@/db?host={tmp_path}")
        await tier.open("n")
        assert await tier.look_up(["k"]) == ({}, {})
        assert await tier.observe(["k"]) == {}
        await tier.close()

    async def test_calls_of_one_turn_travel_together(self, one, entry, monkeypatch):
        await one.set("1", entry())
        sent = []
        fetch = one._fetch_rows

        async def count(statement, *arguments):
            sent.append(statement)
            return await fetch(statement, *arguments)

        monkeypatch.setattr(one, "_fetch_rows", count)
        found = await asyncio.gather(*(one.look_up([str(i)]) for i in range(50)))
        assert sent == [one._statements.look_up]
        assert [set(entries) for entries, _ in found] == [{"1"} if i == 1 else set() for i in range(50)]


class TestWrites:
    async def test_the_greater_stamp_wins(self, one, other, entry):
        assert (await write(one, "k", entry("new"), 20)).outcome is Outcome.STORED
        older = await write(other, "k", entry("old"), 10)
        assert (older.outcome, older.stamp) == (Outcome.NEWER, 20)
        assert (await write(other, "k", None, 20)).outcome is Outcome.NEWER
        assert await value(one, "k") == "new"
        assert (await write(other, "k", None, 21)).outcome is Outcome.STORED
        assert (await write(one, "k", entry("old"), 20)).outcome is Outcome.NEWER
        assert await value(one, "k") is None

    async def test_each_write_of_a_batch_has_its_own_result(self, one, entry):
        await write(one, "newer", entry(), 20)
        results = await one.write({key: Write(entry("x"), new_id(), 10) for key in ("a", "newer", "b")})
        assert {key: result.outcome.value for key, result in results.items()} == {
            "a": "stored",
            "newer": "newer",
            "b": "stored",
        }

    async def test_a_write_that_is_repeated_counts_as_stored(self, one, other, entry):
        repeated = {"k": Write(entry("v"), new_id(), 10), "d": Write(None, new_id(), 10)}
        for tier in (one, other):
            results = await tier.write(repeated)
            assert {result.outcome for result in results.values()} == {Outcome.STORED}

    async def test_an_entry_that_cannot_be_kept_leaves_nothing_of_the_former_one(self, one, entry):
        await one.set_many({"large": entry("former"), "expired": entry("former")})
        large, expired = (
            Write(entry("x" * 2_000_000), new_id(), one.now_us()),
            Write(entry(kept=-1), new_id(), one.now_us()),
        )
        results = await one.write({"large": large, "expired": expired})
        assert {result.outcome for result in results.values()} == {Outcome.REMOVED}
        assert await one.get_many(["large", "expired"]) == {}

    async def test_a_refused_row_takes_no_other_along(self, one, connection, table, entry):
        await one.set("no7", entry("former"))
        await connection.execute(f"ALTER TABLE {table}_v2 ADD CHECK (value IS NULL OR key NOT LIKE 'no%') NOT VALID")
        results = await one.write(
            {f"{'no' if i % 7 == 0 else 'k'}{i}": Write(entry(i), new_id(), one.now_us()) for i in range(20)}
        )
        refused = {key for key, result in results.items() if result.outcome is Outcome.REMOVED}
        assert refused == {"no0", "no7", "no14"}
        assert set(await one.get_many(list(results))) == set(results) - refused

    async def test_a_write_that_waits_beyond_its_deadline_is_not_carried_out(
        self, open_tier, one, connection, table, entry
    ):
        hasty = await open_tier(deadline=0.4)
        assert await one.set("a", entry("newer"))
        writes = {key: Write(entry("late"), new_id(), one.now_us()) for key in ("a", "b")} | {
            "c": Write(None, new_id(), 5)
        }
        async with Held(connection, table, "a"):
            started = time.monotonic()
            results = await hasty.write(writes)
            assert {result.outcome for result in results.values()} == {Outcome.UNKNOWN}
            # As long as it may still be carried out, it is not reported.
            assert time.monotonic() - started >= 0.4
        # The session of the write waits for the lock no longer, and ends.
        await connection.execute(f"BEGIN; LOCK TABLE {table}_v2 IN EXCLUSIVE MODE; COMMIT")
        assert {key: e.value for key, e in (await one.get_many(["a", "b"])).items()} == {"a": "newer"}
        assert await connection.fetchval(f"SELECT count(*) FROM {table}_v2") == 1

    async def test_a_write_is_repeated_if_its_session_ends(self, open_tier, one, connection, table, entry, servers):
        assert await one.set("k", entry("former"))
        other = await asyncpg.connect(servers.database_url)
        async with Held(connection, table, "k"):
            writing = asyncio.create_task(write(one, "k", entry("new")))
            waiting = "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
            while (pid := await other.fetchval(waiting)) is None:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            await other.execute("SELECT pg_terminate_backend($1, 5000)", pid)
        assert (await writing).outcome is Outcome.STORED
        assert await value(one, "k") == "new"
        await other.close()

    @pytest.mark.parametrize("call", ["write", "store", "invalidate", "expire_now", "expire_tag"])
    async def test_what_a_frozen_server_receives_is_not_carried_out_when_it_goes_on(
        self, private_server, private_tier, until_it_answers, entry, call
    ):
        tier = private_tier
        assert await tier.set("k", entry("former", tags=("t",)))
        _, seen = await tier.look_up(["new", "other"])
        calls = {
            "write": lambda key, _: tier.write({key: Write(entry("late"), new_id(), tier.now_us())}),
            "store": lambda key, _: tier.store({key: Store(replace(entry("late"), id=new_id()), seen[key])}),
            "invalidate": lambda _, tag: tier.invalidate(tag),
            "expire_now": lambda key, _: tier.expire_now({key: Write(None, new_id(), tier.now_us())}),
            "expire_tag": lambda _, tag: tier.expire_tag(tag),
        }
        # The statement is prepared, so that the server receives all of it at once.
        await calls[call]("other", "other")
        private_server.freeze()
        result = await calls[call]("new" if call == "store" else "k", "t")
        if call in {"write", "expire_now"}:
            assert result["k"].outcome is Outcome.UNKNOWN
        elif call != "store":
            assert result.outcome is Outcome.UNKNOWN
        private_server.thaw()
        await until_it_answers(tier)
        admin = await asyncpg.connect(private_server.url)
        await until(admin, "SELECT count(*) FROM pg_stat_activity WHERE state = 'active'", 1)
        await admin.close()
        found = await tier.get_many(["k", "new"])
        assert {key: entry.value for key, entry in found.items()} == {"k": "former"}
        assert found["k"].fresh_until > time.monotonic()

    async def test_a_clock_that_was_wrong_is_measured_again(self, one, entry):
        one.server_clock.offset -= 3_600
        assert (await write(one, "k", entry())).outcome is Outcome.STORED
        assert abs(one.server_clock.now() - time.time()) < 60
        one.server_clock.offset -= 3_600
        assert (await one.invalidate("t")).outcome is Outcome.STORED

    async def test_wall_clocks_of_processes_do_not_matter(self, open_tier, one, entry, monkeypatch, table, connection):
        wall = time.time
        monkeypatch.setattr(time, "time", lambda: wall() + 86_400)
        ahead = await open_tier(expiry_interval=0.01)
        assert await ahead.set("k", entry("v", kept=0.3))
        assert await one.set("other", entry())
        assert await value(one, "k") == "v"
        assert abs(ahead.server_clock.now() - wall()) < 60
        await asyncio.sleep(0.3)
        assert await one.get("k") is None
        await asyncio.sleep(0.1)
        assert await value(one, "other") == "v"
        assert await connection.fetchval(f"SELECT count(*) FROM {table}_v2") == 2

    async def test_a_stamp_from_the_future_stops_nobody(self, one, other, entry):
        future = one.now_us() + 86_400_000_000
        assert (await write(one, "k", entry("v"), future)).outcome is Outcome.STORED
        newer = await write(other, "k", entry("w"))
        assert (newer.outcome, newer.stamp) == (Outcome.NEWER, future)
        assert (await write(other, "k", entry("w"), newer.stamp + 1)).outcome is Outcome.STORED

    async def test_writes_of_unknown_outcome_are_undone_by_id(self, one, other, entry):
        mine, theirs = Write(entry("mine"), new_id(), 10), Write(entry("theirs"), new_id(), 11)
        await one.write({"a": mine, "b": mine})
        await other.write({"b": theirs})
        end = await begin_load(other, "a")
        assert await one.remove_written({"a": mine.id, "b": mine.id, "c": mine.id})
        assert await value(one, "a") is None
        assert await value(one, "b") == "theirs"
        # A load that has begun before is superseded, and an older write is still refused.
        assert not await end(entry("old"))
        assert (await write(one, "a", entry("old"), 9)).outcome is Outcome.NEWER


class TestExpiringNow:
    async def test_an_entry_becomes_stale_and_stays(self, one, other, entry):
        assert await one.set("k", entry({"a": 1}, tags=("t",)))
        before = await one.get("k")
        id_, stamp = new_id(), one.now_us()
        assert (await other.expire_now({"k": Write(None, id_, stamp)}))["k"].outcome is Outcome.STORED
        after = await one.get("k")
        assert (after.value, after.tags, after.id, after.stamp) == ({"a": 1}, ("t",), id_, stamp)
        # A cache serves it for its stale_ttl from then on, if the load fails.
        assert time.monotonic() - 1 < after.fresh_until <= time.monotonic()
        assert after.kept_until == pytest.approx(before.kept_until, abs=0.01)
        await one.invalidate("t")
        assert await one.get("k") is None

    async def test_a_load_that_began_before_is_superseded(self, one, other, entry):
        now = time.monotonic()
        assert await one.set("stale", Entry("stale", now - 9, now - 1, now + 60))
        loads = [await begin_load(one, key) for key in ("absent", "stale")]
        await other.expire_now({key: Write(None, new_id(), other.now_us()) for key in ("absent", "stale")})
        assert [await end(entry("old")) for end in loads] == [False, False]
        assert await value(one, "absent") is None
        found = await one.get("stale")
        assert (found.value, found.fresh_until) == ("stale", pytest.approx(now - 1, abs=0.1))

    async def test_something_newer_is_left_alone(self, one, entry):
        await write(one, "k", entry(), 20)
        result = (await one.expire_now({"k": Write(None, new_id(), 10)}))["k"]
        assert (result.outcome, result.stamp) == (Outcome.NEWER, 20)
        assert (await one.get("k")).fresh_until > time.monotonic()

    async def test_a_tag_expires_with_its_entries(self, one, other, entry):
        now = time.monotonic()
        stale = Entry("stale", now - 9, now - 2, now + 60, ("t",))
        forever = Entry("forever", now, None, None, ("t",))
        await one.set_many({"a": entry(tags=("t", "u")), "b": entry(tags=("u",)), "c": entry()})
        await one.set_many({"stale": stale, "forever": forever})
        assert (await other.expire_tag("t")).outcome is Outcome.STORED
        assert (await other.expire_tag("unknown")).outcome is Outcome.STORED
        ended = await one.get_many(["a", "stale", "forever"])
        assert now - 0.1 < ended["a"].fresh_until <= time.monotonic()
        assert now - 0.1 < ended["forever"].fresh_until <= time.monotonic()
        assert ended["stale"].fresh_until == pytest.approx(now - 2, abs=0.1)
        found = await one.get_many(["a", "b", "c"])
        assert {key: entry.fresh_until > time.monotonic() for key, entry in found.items()} == {
            "a": False,
            "b": True,
            "c": True,
        }
        _, seen = await one.look_up(["a"], ["t"])
        assert [len(token) for token in seen["a"].tokens] == [8, 16]
        assert await one.set("a", entry("new", tags=("t",)))
        assert (await one.get("a")).fresh_until > time.monotonic()

    async def test_an_entry_of_a_clock_that_is_ahead_expires_as_well(self, one, other, entry):
        one.server_clock.offset += 60
        assert await one.set("k", entry(tags=("t",), kept=600))
        await other.expire_tag("t")
        assert (await other.get("k")).fresh_until <= time.monotonic()


class TestTags:
    async def test_invalidating_takes_effect_at_once_and_removes_the_rows_afterwards(
        self, one, other, entry, connection, table
    ):
        await one.set_many({f"k{i}": entry(i, tags=("t",)) for i in range(1_500)} | {"other": entry(tags=("u",))})
        assert (await one.invalidate("t")).outcome is Outcome.STORED
        assert list(await other.get_many([*(f"k{i}" for i in range(1_500)), "other"])) == ["other"]
        assert await other.set("k1", entry("new", tags=("t",)))
        await until(connection, f"SELECT count(*) FROM {table}_v2 WHERE value IS NOT NULL", 2)
        assert await value(one, "k1") == "new"
        # Ids and stamps are remembered.
        assert await connection.fetchval(f"SELECT count(*) FROM {table}_v2") == 1_501

    async def test_clearing_takes_effect_at_once_and_removes_the_rows_afterwards(
        self, one, other, entry, connection, table
    ):
        await one.set_many({f"k{i}": entry(i) for i in range(1_500)})
        assert (await one.invalidate(None)).outcome is Outcome.STORED
        assert await other.get_many([f"k{i}" for i in range(1_500)]) == {}
        assert await other.set("k1", entry("new"))
        await until(connection, f"SELECT count(*) FROM {table}_v2", 1)
        assert await value(one, "k1") == "new"

    async def test_what_a_clearing_has_left_is_removed_by_the_next(self, one, other, entry, connection, table):
        assert await one.set("k", entry(kept=None))
        async with Held(connection, table, "k"):
            assert await other.clear() == 0
        assert await value(one, "k") is None
        assert await other.clear() == 1
        assert await connection.fetchval(f"SELECT count(*) FROM {table}_v2") == 0

    async def test_tokens_live_as_long_as_their_entries_and_no_longer(self, open_tier, entry, connection, table):
        tier = await open_tier(retention=0.2)
        await tier.set_many({f"k{i}": entry(tags=(f"t{i}",), kept=0.1) for i in range(50)})
        await tier.look_up(["k"], ["loaded"])
        assert await tier.set("stays", entry(tags=("stays",)))
        assert await tier.set("ever", entry(tags=("ever",), kept=None))
        for i in range(50):
            await tier.invalidate(f"never {i}")
        assert await connection.fetchval(f"SELECT count(*) FROM {table}_v2_tags") > 50
        await open_tier(expiry_interval=0.01)
        # Of the namespace there are two.
        await until(connection, f"SELECT count(*) FROM {table}_v2_tags", 4)
        await asyncio.sleep(0.1)
        assert set(await tier.get_many(["stays", "ever"])) == {"stays", "ever"}

    async def test_a_token_is_extended_for_an_entry_that_lives_longer(self, open_tier, entry, connection, table):
        tier = await open_tier(retention=1, expiry_interval=0.01)
        assert await tier.set("short", entry(tags=("t",), kept=0.1))
        assert await tier.set("long", entry(tags=("t",)))
        end = await begin_load(tier, "loaded", ["u"])
        assert await end(entry("v"))
        await until(connection, f"SELECT count(*) FROM {table}_v2", 2)
        await asyncio.sleep(1)
        assert set(await tier.get_many(["short", "long", "loaded"])) == {"long", "loaded"}

    async def test_an_observed_token_lives_as_long_as_a_load_may_take(self, one, connection, table):
        left = f"SELECT expires_at - extract(epoch FROM now()) FROM {table}_v2_tags WHERE tag = $1"
        for _ in range(2):
            await one.look_up(["k"], ["t"])
            assert 60 < await connection.fetchval(left, tag_hash("t")) < 80
            await connection.execute(
                f"UPDATE {table}_v2_tags SET expires_at = expires_at - 50 WHERE tag > 2 OR tag < 1"
            )

    async def test_a_tagged_write_takes_one_round_trip(self, one, entry, connection, table):
        assert await one.set("a", entry(tags=("t",)))
        sent = []
        async with one._connection() as borrowed:
            log = lambda record: sent.append(record.query)  # noqa: E731
            borrowed.add_query_logger(log)
        assert await one.set("b", entry(tags=("t", "u")))
        assert len(sent) == 1

    async def test_processes_that_write_the_same_tags_crosswise_do_not_deadlock(self, one, other, entry):
        async def write_and_invalidate(tier, tags):
            for i in range(30):
                assert await tier.set_many({f"{tier.now_us()} {tag}": entry(i, tags=(tag, *tags)) for tag in tags})
                assert (await tier.invalidate(tags[i % 3])).outcome is Outcome.STORED

        await asyncio.gather(write_and_invalidate(one, ("a", "b", "c")), write_and_invalidate(other, ("c", "b", "a")))
        assert one.stats().errors == other.stats().errors == {}


class TestRemoval:
    async def test_tombstones_and_expired_rows_stay_for_the_retention(self, open_tier, entry, connection, table):
        tier = await open_tier(retention=0.5, expiry_interval=0.01)
        written = time.monotonic()
        assert await tier.set_many(
            {"deleted": entry(), "expired": entry(kept=0.05), "stays": entry(), "ever": entry(kept=None)}
        )
        assert await tier.delete_many(["deleted"]) == 1
        counts = set()
        while (rows := await connection.fetchval(f"SELECT count(*) FROM {table}_v2")) > 2:
            counts.add(rows)
            assert time.monotonic() - written < 10
            await asyncio.sleep(0.01)
        assert time.monotonic() - written >= 0.5
        assert set(await tier.get_many(["stays", "ever"])) == {"stays", "ever"}

    async def test_rows_of_other_namespaces_are_removed_a_day_later(self, open_tier, entry, connection, table):
        tier = await open_tier(namespace="gone")
        await tier.set_many({"young": entry(kept=0.05), "old": entry(kept=0.05)})
        await connection.execute(f"UPDATE {table}_v2 SET kept_until = kept_until - 90000 WHERE key = 'old'")
        await open_tier(retention=0.05, expiry_interval=0.01)
        await until(connection, f"SELECT count(*) FROM {table}_v2", 1)
        await asyncio.sleep(0.2)
        assert await connection.fetchval(f"SELECT count(*) FROM {table}_v2") == 1


class TestLog:
    @pytest.fixture
    async def listened(self, connection, table):
        heard = asyncio.Queue()
        await connection.add_listener(channel_of(table, "n"), lambda *notice: heard.put_nowait(notice[2:]))
        return heard

    @pytest.fixture
    def log(self, connection, table):
        async def read(position=0):
            rows = await connection.fetch(
                f"SELECT record FROM {table}_v2_log WHERE namespace = 'n' AND xid >= $1::text::xid8 ORDER BY xid",
                str(position),
            )
            return [unpacked(row[0]) for row in rows]

        return read

    async def test_every_kind_of_write_is_recorded_and_notified(self, open_tier, entry, log, listened):
        tier = await open_tier(writer=b"writer 1")
        long, a, b, d, x = "k" * 2_000, new_id(), new_id(), new_id(), new_id()
        stamp = tier.now_us()
        results = await tier.write(
            {"a": Write(entry(), a, stamp), long: Write(entry(), b, stamp), "d": Write(None, d, stamp)}
        )
        assert all(result.published for result in results.values())
        assert (await tier.expire_now({"a": Write(None, x, stamp + 1)}))["a"].published
        assert (await tier.invalidate("t")).published
        assert (await tier.expire_tag("t")).published
        assert (await tier.invalidate(None)).published
        found = [(record.kind, record.items) for record in await log()]
        # A batch is one transaction.
        assert sorted(found[:2], key=str) == [
            (RecordKind.KEYS, ((b"a", a), (b"d", d))),
            (RecordKind.LONG_KEYS, ()),
        ]
        assert found[2:] == [
            (RecordKind.EXPIRED_KEYS, ((b"a", x),)),
            (RecordKind.TAG, ((b"t", b""),)),
            (RecordKind.EXPIRED_TAG, ((b"t", b""),)),
            (RecordKind.CLEAR, ()),
        ]
        for record in await log():
            assert record.writer == b"writer 1"
            assert abs(record.sent_us - stamp) < 60_000_000
        for _ in range(5):
            assert (await asyncio.wait_for(listened.get(), 5))[0] == channel_of(tier._tables.table, "n")

    async def test_an_undone_write_is_recorded_without_its_id(self, open_tier, entry, log):
        tier = await open_tier(writer=b"writer 1")
        id_ = new_id()
        await tier.write({"k": Write(entry(), id_, 5)})
        assert await tier.remove_written({"k": id_, "absent": id_})
        assert (await log())[-1].items == ((b"k", b""), (b"absent", b""))

    async def test_what_was_not_carried_out_is_not_recorded(self, open_tier, entry, log):
        tier = await open_tier(writer=b"writer 1")
        await write(tier, "k", entry(), 20)
        before = await log()
        older = await write(tier, "k", entry(), 10)
        assert (older.outcome, older.published) == (Outcome.NEWER, False)
        assert await log() == before

    async def test_loads_and_tiers_without_a_writer_record_nothing(self, open_tier, one, entry, log):
        await one.set("k", entry())
        await one.invalidate("t")
        tier = await open_tier(writer=b"writer 1")
        assert await (await begin_load(tier, "loaded"))(entry())
        assert await log() == []

    async def test_a_reader_misses_no_transaction_that_commits_late(
        self, open_tier, one, entry, connection, table, log
    ):
        tier = await open_tier(writer=b"writer 1")
        position = "SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint"
        async with one._connection() as late:
            await late.execute("BEGIN")
            await late.execute(f"INSERT INTO {table}_v2_log (namespace, record) VALUES ('n', 'late')")
            await write(tier, "k", entry())
            start = await connection.fetchval(position)
            await late.execute("COMMIT")
        count = f"SELECT count(*) FROM {table}_v2_log WHERE namespace = 'n' AND xid >= $1::text::xid8"
        assert await connection.fetchval(count, str(start)) == 2
        assert await connection.fetchval(count, str(await connection.fetchval(position))) == 0

    async def test_old_rows_are_removed(self, open_tier, entry, log, connection, table):
        tier = await open_tier(writer=b"writer 1", retention=0.2, expiry_interval=0.01)
        await write(tier, "k", entry())
        await asyncio.sleep(0.3)
        assert await log()
        await connection.execute(f"UPDATE {table}_v2_log SET logged_at = logged_at - 3600")
        await until(connection, f"SELECT count(*) FROM {table}_v2_log", 0)

    def test_a_channel_has_at_most_63_bytes_and_is_of_one_namespace(self):
        names = {channel_of(table, namespace) for table in ("t", "u") for namespace in ("n", "é" * 100)}
        assert len(names) == 4
        assert max(len(name.encode()) for name in names) <= 63


class TestTables:
    async def test_the_table_of_the_former_version_is_left_alone(self, open_tier, connection, table, entry):
        await connection.execute(f"CREATE TABLE {table} (a int); INSERT INTO {table} VALUES (1)")
        try:
            tier = await open_tier(expiry_interval=0.01)
            assert await tier.set("k", entry())
            assert await tier.clear() == 1
            assert await connection.fetchval(f"SELECT a FROM {table}") == 1
        finally:
            await connection.execute(f"DROP TABLE {table}")

    @pytest.mark.parametrize("lost", ["tags", "log", "tags log"])
    async def test_a_table_that_was_dropped_or_emptied_is_made_again(self, open_tier, connection, table, entry, lost):
        tier = await open_tier(writer=b"writer 1")
        assert await tier.set("k", entry("old"))
        for name in lost.split():
            await connection.execute(f"DROP TABLE {table}_v2_{name}")
        assert not await tier.set("k", entry("new", tags=("t",)))
        assert await tier.set("k", entry("new", tags=("t",)))
        assert await value(tier, "k") == "new"

    async def test_a_generation_that_was_lost_makes_all_entries_misses(self, one, connection, table, entry):
        assert await one.set("k", entry("old"))
        await connection.execute(f"DELETE FROM {table}_v2_tags")
        assert await one.get("k") is None
        assert (await one.look_up(["k"]))[0] == {}
        await connection.execute(f"DELETE FROM {table}_v2_tags")
        assert await one.set("k", entry("new"))
        assert await value(one, "k") == "new"
