"""What writes come to if a Redis server is late, loses what it had, has no memory left, or refuses."""

import asyncio
import secrets
import time

import pytest
import redis.asyncio
from msgspec.structs import replace
from proxy import Proxy

from acgsperf.testing.server_binaries import redis_program
from acgsperf.tiers import BreakerState, Outcome, Store, StoreKind, Write, WriteResult
from acgsperf.tiers.redis import RedisTier

WRITER = b"writer-1"


@pytest.fixture
def kind():
    return "redis"


@pytest.fixture
async def admin(private_server):
    async with redis.asyncio.Redis.from_url(private_server.url, protocol=2) as client:
        yield client


@pytest.fixture
async def open_tier(private_server):
    opened = []

    async def open_one(url=None, **options):
        tier = RedisTier(url or private_server.url, **{"deadline": 5, **options})
        tier.writer = WRITER
        opened.append(tier)
        await tier.open("n")
        return tier

    yield open_one
    for tier in opened:
        await tier.close()


def _id():
    return secrets.token_bytes(8)


async def _write(tier, key, entry, stamp=None):
    (result,) = (await tier.write({key: Write(entry, _id(), stamp or tier.now_us())})).values()
    return result


class TestDeadline:
    @pytest.mark.parametrize("what", ["set", "delete", "expire", "invalidate", "expire tag", "clear"])
    async def test_a_late_write_is_not_carried_out(
        self, private_server, private_tier, open_tier, admin, until_it_answers, entry, what
    ):
        other = await open_tier()
        private = await open_tier(deadline=0.25)
        await private.set("k", entry("former", tags=("t",)))
        assert await _seen(other, "k") == ("former", True)
        private_server.freeze()
        started = time.monotonic()
        match what:
            case "set":
                result = await _write(private, "k", entry("late"))
            case "delete":
                result = await _write(private, "k", None)
            case "expire":
                (result,) = (await private.expire_now({"k": Write(None, _id(), private.now_us())})).values()
            case "invalidate":
                result = await private.invalidate("t")
            case "expire tag":
                result = await private.expire_tag("t")
            case "clear":
                result = await private.invalidate(None)
        assert time.monotonic() - started > 0.24
        assert result == WriteResult(Outcome.UNKNOWN)
        private_server.thaw()
        await until_it_answers(private)
        # The server has read the late command by now.
        assert await _seen(other, "k") == ("former", True)

    @pytest.mark.parametrize("what", ["set", "invalidate"])
    async def test_a_write_whose_connection_is_lost_is_unknown_until_the_deadline_has_passed(
        self, private_server, open_tier, entry, what
    ):
        async with Proxy(f"{private_server.folder}/redis.sock") as proxy:
            tier = await open_tier(f"redis://127.0.0.1:{proxy.port}", deadline=0.5)
            await tier.set("k", entry())
            private_server.freeze()
            started = time.monotonic()
            write = asyncio.ensure_future(_write(tier, "k", entry()) if what == "set" else tier.invalidate("t"))
            await asyncio.sleep(0.05)
            for writer in proxy._writers:
                writer.transport.abort()
            proxy._server.close()
            assert (await write).outcome is Outcome.UNKNOWN
            assert time.monotonic() - started > 0.49
            private_server.thaw()

    async def test_a_write_that_was_never_sent_is_refused_at_once(self, private_server, private_tier, entry):
        private_server.kill()
        # It notices that its connection is lost.
        await private_tier.get("k")
        started = time.monotonic()
        results = [await _write(private_tier, "k", entry()), await private_tier.invalidate("t")]
        results += [await private_tier.expire_tag("t"), await _write(private_tier, "k", None)]
        assert time.monotonic() - started < 0.2
        assert {result.outcome for result in results} == {Outcome.REFUSED}
        assert private_tier.stats().breaker is BreakerState.OPEN
        assert not await private_tier.remove_written({"k": _id()})
        assert await private_tier.observe(["k"]) == {}

    async def test_a_write_survives_the_loss_of_an_idle_connection(self, open_tier, admin, entry):
        tier = await open_tier()
        for number in range(1, 4):
            await admin.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            assert (await _write(tier, "k", entry(number), number)).outcome is Outcome.STORED
        assert tier.stats().errors == {}

    async def test_an_observation_does_not_live_longer_because_the_clock_was_measured_badly(
        self, private_server, open_tier, entry
    ):
        tier = await open_tier()
        seen = (await tier.observe(["k"]))["k"]
        now = time.monotonic()
        right = tier.server_clock.now()
        # The request travelled for 2 s and the reply not at all: the offset is wrong by half of that.
        tier.server_clock.__init__()
        tier.server_clock.measured(now - 2, now, right)
        assert tier.server_clock.now() - right == pytest.approx(1, abs=0.1)
        loaded = replace(entry("late"), id=_id(), stamp=tier.now_us())
        private_server.freeze()
        store = asyncio.ensure_future(
            tier.store({"k": Store(loaded, replace(seen, expires_at=time.monotonic() + 0.05))})
        )
        await asyncio.sleep(0.1)
        private_server.thaw()
        assert not await store

    async def test_a_clock_that_is_behind_is_set_right(self, open_tier, entry):
        tier = await open_tier()
        right = tier.server_clock.offset
        for write in (
            lambda: _write(tier, "k", entry()),
            lambda: _write(tier, "k", None),
            lambda: tier.invalidate("t"),
            lambda: tier.expire_tag("t"),
        ):
            tier.server_clock.offset = right - 3_600
            assert (await write()).outcome is Outcome.STORED
            assert tier.server_clock.offset == pytest.approx(right, abs=1)

    async def test_every_write_measures_the_clock(self, open_tier, monkeypatch, entry):
        tier = await open_tier()
        right = tier.server_clock.offset
        for write in (
            lambda: _write(tier, "k", entry()),
            lambda: _write(tier, "k", None),
            lambda: tier.expire_now({"k": Write(None, _id(), tier.now_us())}),
            lambda: tier.invalidate("t"),
            lambda: tier.expire_tag("t"),
        ):
            # As if the clock of the server had been set back, so that no write is late.
            tier.server_clock.offset = right + 3_600
            await write()
            assert tier.server_clock.offset == pytest.approx(right, abs=1)

    async def test_the_time_of_the_server_counts_and_not_that_of_this_machine(self, open_tier, monkeypatch, entry):
        monkeypatch.setattr(time, "time", lambda: 1.0)
        monkeypatch.setattr(time, "time_ns", lambda: 10**9)
        tier = await open_tier()
        await tier.set("k", entry(kept=60))
        assert await tier.get("k")
        (lifetime,) = await tier._ask([("PTTL", tier.keys.entry("k"))], list)
        assert 110_000 < lifetime <= 120_000


async def _seen(tier, key):
    """A value, and whether it is fresh."""
    found = await tier.get(key)
    return found and (found.value, found.fresh_until > time.monotonic())


class TestGenerations:
    @pytest.fixture
    async def start(self, tmp_path):
        """Starts a server, again and again with the same files."""
        processes = []
        socket = tmp_path / "redis.sock"

        async def start_one():
            for process in processes:
                if process.returncode is None:
                    process.kill()
                    await process.wait()
            options = ["--port", "0", "--unixsocket", str(socket), "--dir", str(tmp_path), "--save", ""]
            processes.append(
                await asyncio.create_subprocess_exec(redis_program(), *options, stdout=asyncio.subprocess.DEVNULL)
            )
            return f"unix://{socket}"

        yield start_one
        for process in processes:
            if process.returncode is None:
                process.kill()
                await process.wait()

    async def test_what_a_snapshot_brings_back_is_a_miss(self, start, open_tier, until_it_answers, entry):
        tier = await open_tier(await start())
        await until_it_answers(tier)
        await tier.set_many({"deleted": entry(), "kept": entry(tags=("t",))})
        seen = (await tier.observe(["loading"]))["loading"]
        await tier._ask([("SAVE",)], list)
        await tier.delete_many(["deleted"])
        await start()
        await until_it_answers(tier)
        assert await tier._ask([("EXISTS", tier.keys.entry("deleted"))], list) == [1]
        assert await tier.get_many(["deleted", "kept"]) == {}
        loaded = replace(entry(), id=_id(), stamp=seen.stamp)
        for kind in (StoreKind.LOAD, StoreKind.COPY):
            assert not await tier.store({"loading": Store(loaded, seen, kind)})
        assert await tier.set("new", entry())
        assert set(await tier.get_many(["deleted", "kept", "new"])) == {"new"}

    async def test_a_new_connection_to_the_same_run_changes_nothing(self, open_tier, entry):
        first = await open_tier()
        await first.set("k", entry())
        second = await open_tier()
        first.connections.close_idle()
        assert await first.get("k")
        assert await second.get("k")

    async def test_a_server_that_does_not_tell_its_run_is_used_all_the_same(
        self, open_tier, admin, private_server, entry
    ):
        await admin.execute_command("ACL", "SETUSER", "app", "on", ">pw", "~*", "+@all", "-info")
        tier = await open_tier(private_server.url.replace("//", "//app:pw@"))
        assert await tier.set("k", entry())
        assert await tier.get("k")


class TestMemory:
    @pytest.fixture
    async def full(self, open_tier, admin, entry):
        """A tier whose server has become full."""
        tier = await open_tier()
        await tier.set_many({"k": entry("former", tags=("t",)), "other": entry(tags=("t",)), "third": entry()})
        await admin.config_set("maxmemory", "1")
        return tier

    async def test_a_value_is_refused_and_leaves_nothing_of_the_former_one(self, full, entry):
        stamp = full.now_us()
        assert await _write(full, "k", entry("new"), stamp) == WriteResult(Outcome.REMOVED, published=True)
        assert await full.get("k") is None
        seen = (await full.observe(["k"]))["k"]
        assert seen.stamp == stamp
        # The tombstone keeps older writes away.
        assert (await _write(full, "k", None, stamp - 1)).outcome is Outcome.NEWER
        assert full.stats().errors == {"OutOfMemoryError": 1}
        assert full.stats().refused == 1

    async def test_removals_are_possible_and_told(self, full, entry):
        stored = WriteResult(Outcome.STORED, published=True)
        assert await _write(full, "k", None) == stored
        assert await _write(full, "absent", None) == stored
        assert await full.invalidate("t") == stored
        assert set(await full.get_many(["k", "other", "third"])) == {"third"}
        assert await full.invalidate("t", refused_below=True) == stored
        assert await full.expire_tag("unknown") == stored
        written = (await full.get("third")).id
        assert await full.remove_written({"third": written})
        assert await full.get("third") is None
        # It counts what a tag has made useless as well.
        assert await full.clear() == 1
        assert full.stats().errors == {}

    async def test_an_entry_that_cannot_be_made_stale_is_removed(self, full):
        (result,) = (await full.expire_now({"third": Write(None, _id(), full.now_us())})).values()
        assert result.outcome is Outcome.REMOVED
        assert await full.get("third") is None
        assert (await full.expire_tag("t")).outcome is Outcome.STORED
        assert await full.get("k") is None

    async def test_a_load_is_not_stored_and_what_was_observed_is_removed(self, full, entry):
        seen = (await full.observe(["k"], ["t"]))["k"]
        assert await full.observe(["absent"]) == {}
        loaded = replace(entry("loaded", tags=("t",)), id=_id(), stamp=seen.stamp)
        assert not await full.store({"k": Store(loaded, seen)})
        assert await full.get("k") is None
        # The tombstone needs no memory that was not there before.
        assert (await full.observe(["k"]))["k"].id != seen.id

    async def test_what_could_not_be_observed_is_compared_with_nothing(self, full, admin, entry):
        seen = (await full.observe(["k"], ["new"]))["k"]
        assert (seen.tokens[1], seen.invalidations) == (b"", b"")
        await admin.config_set("maxmemory", "0")
        loaded = replace(entry("loaded", tags=("new",)), id=_id(), stamp=seen.stamp)
        assert not await full.store({"k": Store(loaded, seen)})
        assert not await full.store({"k": Store(loaded, seen, StoreKind.COPY)})
        assert (await full.get("k")).value == "former"

    @pytest.mark.parametrize(
        "policy",
        [
            *("noeviction", "allkeys-lru", "allkeys-lfu", "allkeys-random"),
            *("volatile-lru", "volatile-lfu", "volatile-random", "volatile-ttl"),
        ],
    )
    async def test_no_policy_of_eviction_brings_back_an_older_value(self, open_tier, admin, policy, entry):
        first, second = await open_tier(), await open_tier()
        await admin.config_set("maxmemory-policy", policy)
        await admin.config_set("maxmemory", str((await admin.info("memory"))["used_memory"] + 300_000))
        written = {}
        stored = hits = 0
        for turn in range(40):
            keys = [f"k{(turn * 7 + i) % 100}" for i in range(30)]
            seen = await second.observe(keys, ["t"])
            slow = {
                key: Store(replace(entry("slow", tags=("t",)), id=_id(), stamp=observed.stamp), observed)
                for key, observed in seen.items()
            }
            entries = {key: entry([turn, "x" * 2_000], tags=("t",) if turn % 2 else ()) for key in keys[:15]}
            accepted = await first.set_many(entries)
            gone = await first.delete_many(keys[15:25])
            written |= {key: turn if key in accepted else None for key in entries}
            if gone is not None:
                written |= dict.fromkeys(keys[15:25])
            await second.store({key: slow[key] for key in keys[:25] if key in slow})
            found = await second.get_many(list(written))
            for key, value in found.items():
                assert value.value[0] == written[key], key
            stored += len(accepted)
            hits += len(found)
        assert stored > 50
        assert hits > 50


class TestRights:
    async def test_a_user_who_may_not_call_scripts_is_named_once(
        self, open_tier, admin, private_server, private_tier, caplog, entry
    ):
        await admin.execute_command("ACL", "SETUSER", "app", "on", ">pw", "~*", "+@all", "-evalsha", "-eval")
        tier = await open_tier(private_server.url.replace("//", "//app:pw@"))
        for _ in range(3):
            assert not await tier.set("k", entry())
            assert await tier.delete_many(["k"]) is None
            assert await tier.get("k") is None
            assert (await tier.invalidate("t")).outcome is Outcome.REFUSED
            assert await tier.observe(["k"]) == {}
        (record,) = (record for record in caplog.records if record.name == "acgsperf.tiers")
        assert "the server refuses a call" in record.message
        assert "evalsha" in record.message.lower()
        assert "+@scripting" in record.message
        assert "~n:* ~n%*" in record.message
        assert tier.stats().breaker is BreakerState.CLOSED

    async def test_the_rights_that_are_named_suffice(self, open_tier, admin, private_server, caplog, entry):
        rights = ["+@read", "+@write", "+@scripting", "+@connection", "+info", "+time"]
        await admin.execute_command("ACL", "SETUSER", "app", "on", ">pw", "~n:*", "~n%*", "-@all", *rights)
        tier = await open_tier(private_server.url.replace("//", "//app:pw@"))
        assert await tier.set("k", entry(tags=("t",)))
        assert await tier.get("k")
        assert await tier.unlock("k", await tier.lock("k", 5))
        assert (await tier.observe(["k"], ["t"]))["k"].tokens
        assert await tier.invalidate_tag("t") == 0
        assert await tier.clear() is not None
        assert (await tier.health()).ok
        assert tier.stats().errors == {}
        assert caplog.records == []

    async def test_scripts_that_the_server_has_forgotten_are_sent_again(self, open_tier, admin, entry):
        tier = await open_tier()
        await tier.set("k", entry())
        await admin.script_flush()
        assert await tier.set_many({f"k{i}": entry(i) for i in range(120)}) == {f"k{i}" for i in range(120)}
        assert await tier.delete_many(["k"]) == 1
        assert tier.stats().errors == {}
