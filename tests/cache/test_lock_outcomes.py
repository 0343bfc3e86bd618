"""What comes of a load in one process, and how those that wait for its lock in others learn of it, on a real Redis."""

import asyncio
import math
import secrets

import pytest
from loaders import Loader
from memory_tier import MemoryTier

from acgsperf import LRUCache
from acgsperf.cache import TieredCache, process_lock
from acgsperf.cache.process_lock import ProcessLock
from acgsperf.errors import LoadCancelledError, LoadError
from acgsperf.tiers.redis import RedisTier


@pytest.fixture
def never_asks(monkeypatch):
    """Those that wait for a lock do not look again by themselves: only a record wakes them."""
    monkeypatch.setattr(process_lock, "_WAKE_INTERVAL_S", 1_000)


@pytest.fixture
def asks_soon(monkeypatch):
    monkeypatch.setattr(process_lock, "_WAKE_INTERVAL_S", 0.02)


@pytest.fixture
async def open_on(servers):
    """Open caches of one namespace, as processes do."""
    namespace = f"test-{secrets.token_hex(4)}"
    caches = []

    async def opened(number, **options):
        for _ in range(number):
            tier = RedisTier(servers.redis_url, deadline=5)
            options = {"namespace": namespace, "deadline": 10, "lock_ttl": 1_000} | options
            caches.append(await TieredCache(LRUCache(100), tier, **options).open())
        return caches[-number:]

    yield opened
    for cache in caches:
        assert cache._loading._lock._waiters == {}
        await cache.close()
    if caches:
        async with caches[0] as cache:
            await cache.clear()


async def waits(cache, *keys):
    """Wait until a cache waits for the locks of keys."""
    lock = cache._loading._lock
    async with asyncio.timeout(10):
        while not all(key in lock._waiters for key in keys):  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        # It has asked for the lock, and was refused.
        for _ in range(3):
            await cache._lower_tiers.l2.observe(["nothing"])


def many(loader):
    async def load(keys):
        return {key: await loader(key) for key in keys}

    return load


@pytest.mark.usefixtures("never_asks")
async def test_the_release_of_a_lock_wakes_those_that_wait(open_on):
    first, *others = await open_on(4)
    loader = Loader(gate_open=False)
    load = asyncio.create_task(first.get_or_load("key", loader))
    await loader.began.wait()
    waiting = [asyncio.create_task(other.get_or_load("key", loader)) for other in others]
    for other in others:
        await waits(other, "key")
    loader.gate.set()
    async with asyncio.timeout(10):
        assert await asyncio.gather(load, *waiting) == ["loaded"] * 4
    assert loader.calls == 1
    assert [other.stats().loads for other in others] == [0] * 3


@pytest.mark.usefixtures("never_asks")
@pytest.mark.parametrize("value", [None, 0, [], b""], ids=repr)
async def test_any_value_that_was_stored_is_shared(open_on, value):
    first, other = await open_on(2)
    loader = Loader(value, gate_open=False)
    load = asyncio.create_task(first.get_or_load("key", loader))
    await loader.began.wait()
    waiting = asyncio.create_task(other.get_or_load("key", loader))
    await waits(other, "key")
    loader.gate.set()
    async with asyncio.timeout(10):
        assert await asyncio.gather(load, waiting) == [value] * 2
    assert loader.calls == 1


@pytest.mark.usefixtures("never_asks")
@pytest.mark.parametrize("with_many", [False, True])
async def test_a_failure_is_shared(open_on, with_many):
    first, *others = await open_on(3)
    failing, unused = Loader(error=OSError("the source is down"), gate_open=False), Loader()
    load = asyncio.create_task(first.get_or_load("key", failing))
    await failing.began.wait()
    waiting = [
        asyncio.create_task(
            other.get_or_load_many(["key", "other"], many(unused)) if with_many else other.get_or_load("key", unused)
        )
        for other in others
    ]
    for other in others:
        await waits(other, "key")
    calls = unused.calls
    failing.gate.set()
    async with asyncio.timeout(10):
        with pytest.raises(OSError, match="the source is down"):
            await load
        for task in waiting:
            with pytest.raises(
                LoadError, match="the load of 'key' failed in another process: OSError: the source is down"
            ):
                await task
    # Of `other`, which nobody else loads, at most.
    assert unused.calls == calls == with_many
    # The next call loads.
    assert await others[0].get_or_load("key", unused) == "loaded"


@pytest.mark.usefixtures("never_asks")
async def test_a_long_failure_is_cut(open_on):
    first, other = await open_on(2)
    failing = Loader(error=OSError("ä" * 10_000), gate_open=False)
    load = asyncio.create_task(first.get_or_load("key", failing))
    await failing.began.wait()
    waiting = asyncio.create_task(other.get_or_load("key", failing))
    await waits(other, "key")
    failing.gate.set()
    async with asyncio.timeout(10):
        with pytest.raises(OSError, match="ä"):
            await load
        with pytest.raises(LoadError) as raised:
            await waiting
    assert str(raised.value).endswith(": OSError: " + "ä" * (200 - len("OSError: ")))


@pytest.mark.usefixtures("never_asks")
async def test_if_there_is_nothing_to_share_the_others_load_at_once(open_on):
    first, *others = await open_on(4)
    unstorable = Loader(object(), gate_open=False)
    load = asyncio.create_task(first.get_or_load("key", unstorable))
    await unstorable.began.wait()
    # Passes only if all of them load at the same time.
    barrier = asyncio.Barrier(3)

    async def load_together(key):
        await barrier.wait()
        return object()

    waiting = [asyncio.create_task(other.get_or_load("key", load_together)) for other in others]
    for other in others:
        await waits(other, "key")
    unstorable.gate.set()
    async with asyncio.timeout(10):
        assert await load is unstorable.value
        assert len(set(await asyncio.gather(*waiting))) == 3


@pytest.mark.usefixtures("never_asks")
async def test_a_cancelled_load_is_taken_over(open_on):
    first, other = await open_on(2)
    loader = Loader(gate_open=False)
    load = asyncio.create_task(first.get_or_load("key", loader))
    await loader.began.wait()
    waiting = asyncio.create_task(other.get_or_load("key", Loader("other")))
    await waits(other, "key")
    load.cancel()
    async with asyncio.timeout(10):
        assert await waiting == "other"
    with pytest.raises(asyncio.CancelledError):
        await load


@pytest.mark.usefixtures("never_asks")
async def test_a_waiting_caller_can_be_cancelled(open_on):
    first, other = await open_on(2)
    loader = Loader(gate_open=False)
    load = asyncio.create_task(first.get_or_load("key", loader))
    await loader.began.wait()
    waiting = asyncio.create_task(other.get_or_load("key", loader))
    await waits(other, "key")
    waiting.cancel()
    with pytest.raises((asyncio.CancelledError, LoadCancelledError)):
        await waiting
    loader.gate.set()
    assert await load == "loaded"
    assert await other.get_or_load("key", loader) == "loaded"
    assert loader.calls == 1


@pytest.mark.usefixtures("never_asks")
async def test_two_loads_that_hold_what_the_other_needs_both_end(open_on):
    one, two, third = await open_on(3)
    loaders = {key: Loader(f"value of {key}", gate_open=False) for key in "ab"}
    holder = third._lower_tiers.l2
    token = await holder.lock("b", 1_000)

    async def load(keys):
        return {key: await loaders[key](key) for key in keys}

    # The first one holds `a`, and has to wait for `b`.
    first = asyncio.create_task(one.get_or_load_many(["a", "b"], load))
    await loaders["a"].began.wait()
    assert await holder.unlock("b", token)
    # The second one holds `b`, and has to wait for `a`.
    second = asyncio.create_task(two.get_or_load_many(["b", "a"], load))
    await loaders["b"].began.wait()
    for loader in loaders.values():
        loader.gate.set()
    expected = {"a": "value of a", "b": "value of b"}
    async with asyncio.timeout(10):
        assert await asyncio.gather(first, second) == [expected] * 2
    assert [loader.calls for loader in loaders.values()] == [1, 1]


@pytest.mark.usefixtures("never_asks")
async def test_many_overlapping_loads_load_each_key_once(open_on):
    caches = await open_on(4)
    for turn in range(10):
        keys = [f"{turn} {number}" for number in range(4)]
        calls = []

        async def load(keys, calls=calls):
            calls.extend(keys)
            await asyncio.sleep(0)
            return {key: key.upper() for key in keys}

        wanted = [keys[at:] + keys[:at][::-1] for at in range(4)]
        async with asyncio.timeout(10):
            found = await asyncio.gather(
                *(cache.get_or_load_many(some, load) for cache, some in zip(caches, wanted, strict=True))
            )
        assert found == [{key: key.upper() for key in keys}] * 4
        assert sorted(calls) == keys


@pytest.mark.parametrize("lost", ["record", "long key", "no backplane"])
@pytest.mark.usefixtures("asks_soon")
async def test_a_release_without_a_record_is_noticed_by_asking_again(open_on, lost):
    key = "k" * 2_000 if lost == "long key" else "key"
    first, other = await open_on(2, **({"backplane": None} if lost == "no backplane" else {}))
    if lost == "record":
        other._parts.listener._unlocked = None
    loader = Loader(gate_open=False)
    load = asyncio.create_task(first.get_or_load(key, loader))
    await loader.began.wait()
    waiting = asyncio.create_task(other.get_or_load(key, loader))
    if lost == "no backplane":
        await asyncio.sleep(0.05)
    else:
        await waits(other, key)
    loader.gate.set()
    async with asyncio.timeout(10):
        assert await asyncio.gather(load, waiting) == ["loaded"] * 2
    assert loader.calls == 1


@pytest.fixture
def lock():
    lock = ProcessLock(MemoryTier("l2"), 30)
    lock.wakes = True
    return lock


async def test_a_release_before_the_wait_is_not_missed(lock):
    with lock.waiting(["a", "b"]) as waiting:
        lock.released("b", b"")
        async with asyncio.timeout(0.1):
            assert await waiting.wait(["a", "b"], math.inf) is False
    assert lock._waiters == {}


async def test_the_release_of_another_lock_wakes_nobody(lock, monkeypatch):
    monkeypatch.setattr(process_lock, "_WAKE_INTERVAL_S", 0.03)
    with lock.waiting(["a", "b"]) as waiting:
        lock.released("c", b"-")
        # This one has been acquired since.
        lock.released("b", b"-")
        began = asyncio.get_running_loop().time()
        assert await waiting.wait(["a"], math.inf) is False
        assert asyncio.get_running_loop().time() - began >= 0.02


async def test_a_lock_that_is_released_twice_has_its_first_outcome(lock):
    with lock.waiting(["a"]) as waiting:
        lock.released("a", b"-")
        lock.released("a", b"!OSError: down")
        assert await waiting.wait(["a"], math.inf) is True


async def test_all_that_wait_for_a_lock_are_woken(lock):
    with lock.waiting(["a"]) as one, lock.waiting(["a"]) as two:
        lock.released("a", b"-")
        assert await asyncio.gather(one.wait(["a"], math.inf), two.wait(["a"], math.inf)) == [True, True]
    assert lock._waiters == {}


@pytest.mark.parametrize(
    ("outcome", "message"), [(b"!", ""), (b"!\xff\xfe", "\ufffd\ufffd"), ("!ValueError: ä".encode(), "ValueError: ä")]
)
async def test_any_failure_can_be_shown(lock, outcome, message):
    with lock.waiting(["a"]) as waiting:
        lock.released("a", outcome)
        with pytest.raises(LoadError) as raised:
            await waiting.wait(["a"], math.inf)
    assert str(raised.value) == f"the load of 'a' failed in another process: {message}"


@pytest.mark.parametrize("outcome", [b"", b"?", b"\x00", b"a later version"])
async def test_an_unknown_outcome_counts_as_stored(lock, outcome):
    with lock.waiting(["a"]) as waiting:
        lock.released("a", outcome)
        assert await waiting.wait(["a"], math.inf) is False


async def test_a_wait_ends_when_the_lock_is_given_up(lock, monkeypatch):
    monkeypatch.setattr(process_lock, "_WAKE_INTERVAL_S", 1_000)
    with lock.waiting(["a"]) as waiting:
        async with asyncio.timeout(5):
            assert await waiting.wait(["a"], asyncio.get_running_loop().time() + 0.02) is False
            assert await waiting.wait(["a"], 0) is False
