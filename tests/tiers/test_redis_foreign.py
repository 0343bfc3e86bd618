"""Values that something else has written under the tier's keys: misses, never an exception, replaced by writes."""

import secrets
import struct

import pytest
import redis.asyncio
from msgspec.structs import replace

from acgsperf.tiers import Outcome, Store, StoreKind, Write
from acgsperf.tiers.records import unpacked
from acgsperf.tiers.redis import RedisTier

LAST = f"{(1 << 64) - 1}-{(1 << 64) - 1}"
DAY_US = 86_400_000_000


@pytest.fixture
async def client(servers):
    async with redis.asyncio.Redis.from_url(servers.redis_url, protocol=2) as client:
        yield client


@pytest.fixture
async def tier(servers, namespace):
    tier = RedisTier(servers.redis_url, deadline=5)
    tier.writer = b"writer-1"
    await tier.open(namespace)
    yield tier
    await tier.clear()
    await tier.close()


@pytest.fixture
def put(client):
    """Puts something foreign in the place of a key."""

    async def put(key, what):
        if what != "last position":
            await client.delete(key)
        match what:
            case "last position":
                await client.xadd(key, {"foreign": "field"}, id=LAST)
            case "list":
                await client.rpush(key, "a")
            case "hash":
                await client.hset(key, "a", "b")
            case "stream":
                await client.xadd(key, {"a": "b"})
            case "short string":
                await client.set(key, b"x")
            case "long string":
                await client.set(key, b"x" * 300)
            case "number":
                await client.set(key, b"1e300")

    return put


KINDS = ["list", "hash", "stream", "short string", "long string", "number"]


def new_id():
    return secrets.token_bytes(8)


async def use_all(tier, entry):
    """Call everything; nothing may raise. What is stored must be found afterwards."""
    tagged = entry(tags=("t",))
    await tier.get_many(["k", "absent"])
    _, seen = await tier.look_up(["loaded"], ["t"])
    await tier.store({key: Store(replace(tagged, id=new_id(), stamp=tier.now_us()), it) for key, it in seen.items()})
    demoted = Store(replace(tagged, id=new_id(), stamp=tier.now_us()), None, StoreKind.DEMOTION, b"1-1")
    await tier.store({"demoted": demoted})
    await tier.expire_now({"k": Write(None, new_id(), tier.now_us())})
    await tier.expire_tag("t")
    await tier.remove_written({"k": new_id()})
    await tier.unlock("k", await tier.lock("k", 5) or 0)
    await tier.delete_many(["k"])


async def works(tier, entry):
    """Whether everything is as if nothing had been there."""
    assert await tier.set("k", entry("new", tags=("t",)))
    assert (await tier.get("k")).value == "new"
    _, seen = await tier.look_up(["loaded"], ["t"])
    loaded = replace(entry("loaded", tags=("t",)), id=new_id(), stamp=tier.now_us())
    assert await tier.store({"loaded": Store(loaded, seen["loaded"])})
    assert (await tier.get("loaded")).value == "loaded"
    assert (await tier.invalidate("t")).outcome is Outcome.STORED
    assert await tier.get("k") is None
    assert await tier.unlock("k", await tier.lock("k", 5))
    return True


@pytest.mark.parametrize("what", KINDS)
@pytest.mark.parametrize("place", ["token", "tag", "invalidations", "log", "entry", "fence", "lock"])
async def test_a_foreign_value_is_a_miss_and_is_replaced(tier, put, entry, place, what):
    keys = tier.keys
    key = {"tag": keys.tag("t"), "entry": keys.entry("k"), "lock": keys.lock("k")}.get(place)
    await tier.set("k", entry("former", tags=("t",)))
    await put(key or getattr(keys, place), what)
    if place in {"token", "tag", "entry"}:
        assert await tier.get("k") is None
    await use_all(tier, entry)
    await put(key or getattr(keys, place), what)
    assert await works(tier, entry)
    assert tier.stats().errors == {}


@pytest.mark.parametrize("what", ["last position", "list", "long string"])
@pytest.mark.parametrize("call", ["set", "delete", "expire", "invalidate", "expire tag", "clear", "undo"])
async def test_a_record_reaches_a_log_that_was_unusable(tier, client, put, entry, what, call):
    written = Write(entry("former"), new_id(), tier.now_us())
    await tier.write({"k": written})
    await put(tier.keys.log, what)
    write = Write(entry("new"), new_id(), tier.now_us())
    match call:
        case "set":
            (result,) = (await tier.write({"k": write})).values()
        case "delete":
            (result,) = (await tier.write({"k": replace(write, entry=None)})).values()
        case "expire":
            (result,) = (await tier.expire_now({"k": replace(write, entry=None)})).values()
        case "invalidate":
            result = await tier.invalidate("t")
        case "expire tag":
            result = await tier.expire_tag("t")
        case "clear":
            result = await tier.invalidate(None)
        case "undo":
            assert await tier.remove_written({"k": written.id})
            result = None
    if result is not None:
        assert (result.outcome, result.published) == (Outcome.STORED, True)
    ((_, fields),) = await client.xrange(tier.keys.log)
    assert unpacked(fields[b"r"]).writer == b"writer-1"


@pytest.mark.parametrize("ahead_s", [-10, 23 * 3600, 25 * 3600, 30 * 86_400])
@pytest.mark.parametrize("call", ["set", "delete", "expire"])
async def test_a_stamp_of_another_day_supersedes_nothing(tier, client, entry, ahead_s, call):
    # An envelope of version 1 may look like this by chance.
    stamp = tier.server_clock.now_us() + ahead_s * 1_000_000
    await client.set(tier.keys.entry("k"), b"id-of-v1" + struct.pack(">Q", stamp) + b"E\x02" + b"\0" * 60)
    write = Write(None if call != "set" else entry("new"), new_id(), tier.now_us())
    (result,) = (await (tier.expire_now if call == "expire" else tier.write)({"k": write})).values()
    newer = 0 < ahead_s * 1_000_000 < DAY_US
    assert result.outcome is (Outcome.NEWER if newer else Outcome.STORED)
    if call == "set":
        assert (await tier.get("k") is None) is newer
