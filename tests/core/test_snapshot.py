"""A cache can be saved to a file and loaded in another process, where it continues as it was."""

import dataclasses
import os
import random
import stat
import threading
import time

import pytest
from conftest import IMPLEMENTATIONS, imported
from msgspec import msgpack

from acgsperf import LoadResult, SaveResult, SnapshotError, weigh_bytes
from acgsperf._native import snapshot


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def path(tmp_path):
    return tmp_path / "cache.warm"


@pytest.fixture
def wall(monkeypatch):
    """The time of day."""
    clock = Clock()
    monkeypatch.setattr(snapshot.time, "time", clock)
    return clock


def use(cache, requests, keys=1_000, seed=1):
    """Request some keys more often than others."""
    chooser = random.Random(seed)
    for _ in range(requests):
        key = int(chooser.paretovariate(0.4)) % keys
        if cache.get(key) is None:
            cache.set(key, f"value of {key}")


def test_a_loaded_cache_has_the_same_entries_in_the_same_order(caches, path):
    cache, loaded = caches.create(200), caches.create(200)
    use(cache, 5_000)
    assert cache.save(path) == SaveResult(200, 0)
    assert loaded.load(path) == LoadResult(200, 0, 0)
    assert loaded.items() == cache.items()
    assert loaded._dump() == cache._dump()
    assert loaded.stats().insertions == 200


@pytest.mark.order_of_use
def test_a_loaded_cache_evicts_the_same_entries(caches, path):
    cache, loaded = caches.create(200), caches.create(200)
    use(cache, 5_000)
    cache.save(path)
    loaded.load(path)
    for key in range(10_000, 10_100):
        cache.set(key, key)
        loaded.set(key, key)
    assert loaded.items() == cache.items()


def test_a_file_of_one_implementation_can_be_loaded_by_the_other(caches, path):
    cache = caches.create(200)
    use(cache, 5_000)
    cache.save(path)
    for implementation in IMPLEMENTATIONS:
        other = getattr(imported("core", implementation), caches.kind.__name__)
        loaded = other(200, **caches._arguments)
        loaded.load(path)
        assert loaded._dump() == cache._dump()


def test_it_continues_with_the_setting_that_was_learned(core, path):
    cache = core.AdaptiveCache(512, seed=1)
    for request in range(60_000):
        if cache.get(request % 1_100) is None:
            cache.set(request % 1_100, "value")
    assert cache.stats().policy.setting == "scan"
    cache.save(path)
    loaded = core.AdaptiveCache(512)
    loaded.load(path)
    assert loaded.stats().policy.setting == "scan"
    assert loaded.stats().policy.switches == 0
    assert loaded.keys() == cache.keys()


@pytest.mark.parametrize("away", [0.0, 7.0, -5.0])
def test_the_time_between_saving_and_loading_counts(caches, path, wall, away):
    cache = caches.create(10, 60, clock=Clock())
    cache.set("a", 1)
    cache.set("b", 2, ttl=5)
    cache.set("c", 3, ttl=None)
    cache.set("d", 4, ttl=1_000)
    cache.save(path)
    wall.now += away
    clock = Clock()
    clock.now = -3e6
    loaded = caches.create(10, clock=clock)
    passed = max(0.0, away)
    gone = passed >= 5
    assert loaded.load(path) == LoadResult(4 - gone, gone, 0)
    assert loaded.expires_in("a") == pytest.approx(60 - passed)
    assert loaded.expires_in("c") is None
    assert loaded.expires_in("d") == pytest.approx(1_000 - passed)
    assert ("b" in loaded) == (not gone)


def test_expired_entries_are_not_saved(caches, path):
    clock = Clock()
    cache = caches.create(10, 5, clock=clock)
    cache.set("a", 1)
    clock.now += 3
    cache.set("b", 2)
    clock.now += 3
    assert cache.save(path) == SaveResult(1, 0)


@pytest.mark.parametrize(
    "key",
    ["text", "\N{SNOWMAN}", "", 7, -(2**63), 2**64 - 1, 1.5, None, True, b"bytes", (), ("a", (1, b"b")), ((), "x")],
)
def test_keys_are_loaded_as_they_were(core, path, key):
    cache, loaded = core.LRUCache(5), core.LRUCache(5)
    cache.set(key, "value")
    assert cache.save(path) == SaveResult(1, 0)
    loaded.load(path)
    assert [(type(found), found) for found in loaded] == [(type(key), key)]


@dataclasses.dataclass
class User:
    name: str


class Strange:
    def __eq__(self, other):
        raise RuntimeError("no comparison")

    __hash__ = object.__hash__


def test_what_cannot_be_carried_is_left_out_and_counted(core, path):
    recursive = []
    recursive.append(recursive)
    values = [(1, 2), {3}, User("Ada"), object(), 2**70, "\ud800", recursive, Strange(), {"deep": [(1,)]}, float("nan")]
    cache, loaded = core.LRUCache(5_000), core.LRUCache(5_000)
    for number in range(1_000):
        cache.set(number, {"number": number})
    for number, value in enumerate(values):
        cache.set(f"bad {number}", value)
        cache.set(f"good {number}", [number, {"a": None}])
    cache.set(frozenset("a"), 1)
    assert cache.save(path) == SaveResult(1_010, 11)
    assert loaded.load(path) == LoadResult(1_010, 0, 0)
    assert loaded.keys() == [key for key in cache if not str(key).startswith(("bad", "frozenset"))]
    assert loaded["good 3"] == [3, {"a": None}]


def test_values_of_a_type_are_loaded_as_that_type(core, path):
    cache, loaded = core.LRUCache(5), core.LRUCache(5)
    cache.set("a", User("Ada"))
    cache.set("b", "no user")
    assert cache.save(path, value_type=User) == SaveResult(1, 1)
    assert loaded.load(path, value_type=User) == LoadResult(1, 0, 0)
    assert loaded["a"] == User("Ada")
    with pytest.raises(SnapshotError, match="values of the type <class 'int'>, got others"):
        core.LRUCache(5).load(path, value_type=int)


def test_what_the_cache_has_stays_and_is_newer(caches, path):
    cache, loaded = caches.create(10), caches.create(10)
    for key in "abc":
        cache.set(key, f"old {key}")
    cache.save(path)
    loaded.set("b", "new")
    loaded.set("d", "new")
    assert loaded.load(path) == LoadResult(2, 0, 1)
    assert loaded.items() == [("a", "old a"), ("c", "old c"), ("b", "new"), ("d", "new")]


@pytest.mark.order_of_use
def test_a_smaller_cache_loads_the_newest_entries(caches, path):
    cache, loaded = caches.create(100), caches.create(30)
    use(cache, 1_000)
    cache.save(path)
    assert loaded.load(path) == LoadResult(30, 0, 70)
    assert loaded.keys() == cache.keys()[-30:]
    assert loaded.stats().evictions == 0


def test_a_smaller_cache_loads_the_most_used_entries(core, path):
    cache, loaded = core.AdaptiveCache(100, policy="s3fifo"), core.AdaptiveCache(30, policy="s3fifo")
    for key in range(100):
        cache.set(key, key)
    for key in range(10, 40):
        cache.get(key)
    cache.save(path)
    assert loaded.load(path) == LoadResult(30, 0, 70)
    assert sorted(loaded) == list(range(10, 40))


def test_weights_are_kept(caches, path):
    cache, loaded = (caches.create(maxweight=20_000, weigher=weigh_bytes) for _ in range(2))
    for key in range(500):
        cache.set(key, "x" * (key % 100))
    cache.save(path)
    loaded.load(path)
    assert loaded.items() == cache.items()
    assert loaded.stats().weight == cache.stats().weight
    smaller = caches.create(maxweight=5_000, weigher=weigh_bytes)
    assert smaller.load(path).left_out > 0
    assert 4_500 < smaller.stats().weight <= 5_000


def damaged(content, place):
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def refused(cache, path, **options):
    """Return why a file is refused, after checking that the cache is as it was."""
    before = cache.items(), cache.stats()
    with pytest.raises(SnapshotError) as raised:
        cache.load(path, **options)
    assert (cache.items(), cache.stats()) == before
    assert raised.value.path == str(path)
    return str(raised.value).removeprefix(f"cannot load {path}: ")


def test_a_damaged_file_is_refused(caches, path):
    cache = caches.create(50)
    use(cache, 500)
    cache.save(path)
    content = path.read_bytes()
    for place in range(10, len(content), 97):
        path.write_bytes(damaged(content, place))
        assert refused(cache, path) == "expected the checksum of its content, got another one: the file is damaged"
    for length in (26, 100, len(content) - 1):
        path.write_bytes(content[:length])
        assert "the file is damaged" in refused(cache, path)
    for other in (b"", b"ACGSWARM", b"another file, long enough to have a header"):
        path.write_bytes(other)
        assert refused(cache, path) == "expected the file of a saved cache, got another file"


def test_a_file_of_another_version_is_refused(core, path):
    cache = core.LRUCache(5)
    cache.save(path)
    path.write_bytes(damaged(path.read_bytes(), 8))
    assert refused(cache, path) == "expected version 1, got version 0"


def test_a_file_of_another_namespace_is_refused(core, path):
    cache = core.LRUCache(5)
    cache.set("a", 1)
    cache.save(path, namespace="orders")
    assert refused(cache, path, namespace="users") == "expected namespace 'users', got 'orders'"
    assert refused(cache, path) == "expected namespace '', got 'orders'"
    assert core.LRUCache(5).load(path, namespace="orders").entries == 1


def test_a_file_of_another_kind_of_cache_is_refused(core, path):
    core.LRUCache(5).save(path)
    assert refused(core.AdaptiveCache(5), path) == "expected the entries of AdaptiveCache (adaptive), got LRUCache"
    core.AdaptiveCache(5, policy="s3fifo").save(path)
    assert "AdaptiveCache (lru), got AdaptiveCache (s3fifo)" in refused(core.AdaptiveCache(5, policy="lru"), path)


def test_a_missing_file_is_no_damage(core, path):
    with pytest.raises(FileNotFoundError):
        core.LRUCache(5).load(path)


def test_a_save_that_fails_leaves_the_former_file(core, path, monkeypatch):
    cache, loaded = core.LRUCache(5), core.LRUCache(5)
    cache.set("a", 1)
    cache.save(path)

    def fail(descriptor):
        raise OSError("disk full")

    cache.set("b", 2)
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        cache.save(path)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    loaded.load(path)
    assert loaded.keys() == ["a"]


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_only_the_user_can_read_the_file(core, path):
    core.LRUCache(5).save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_threads_use_the_cache_while_it_is_saved_and_loaded(caches, path):
    cache, loaded, stop = caches.create(2_000), caches.create(2_000), threading.Event()

    def work(seed):
        while not stop.is_set():
            for one in (cache, loaded):
                use(one, 50, keys=4_000, seed=seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    try:
        until = time.monotonic() + 1
        while time.monotonic() < until:
            cache.save(path)
            assert loaded.load(path).expired == 0
            loaded.clear()
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert len(loaded) <= 2_000
    assert all(value == f"value of {key}" for key, value in loaded.items())


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "expected a header and blocks, got other data: list index out of range"),
        (b"\x01\0\0\0\0\0\0\0", "expected a header and blocks, got other data: Input data was truncated"),
        (b"short", "expected a header and blocks, got other data: unpack_from requires a buffer"),
        (b"\x01\0\0\0\0\0\0\0\x90", "expected a header and blocks, got other data: Expected `object`, got `array`"),
        (None, "expected values of the type None, got others: expected a hashable key, got {}"),
    ],
)
def test_a_file_with_other_content_and_the_right_checksum_is_refused(caches, path, content, problem):
    cache = caches.create(5)
    cache.set("a", 1)
    cache.save(path)
    whole = path.read_bytes()[:-16]
    if content is None:
        row = msgpack.encode([[{}, 1, None, 0]])
        # After the header, whose size comes first.
        end = 18 + int.from_bytes(whole[10:18], "little")
        content = whole[10:end] + len(row).to_bytes(8, "little") + row
    whole = whole[:10] + content
    path.write_bytes(whole + snapshot.xxh3_128(whole).digest())
    assert refused(cache, path).startswith(problem)
