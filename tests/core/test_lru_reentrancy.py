"""User code that runs in the middle of an operation, and uses the cache that is at work."""

import gc
import random
import sys

import pytest


class Key:
    """Compares by name, and runs an action when it is compared or hashed."""

    def __init__(self, name, on_equal=None, on_hash=None):
        self.name = name
        self.on_equal = on_equal
        self.on_hash = on_hash

    def __hash__(self):
        if self.on_hash is not None:
            self.on_hash()
        return 1

    def __eq__(self, other):
        # Which of the two is asked is the cache's affair: either may act.
        for key in (self, other):
            if isinstance(key, Key) and key.on_equal is not None:
                action, key.on_equal = key.on_equal, None
                action()
        return isinstance(other, Key) and self.name == other.name


class Value:
    """Runs an action when it is deleted."""

    def __init__(self, on_delete):
        self.on_delete = on_delete

    def __del__(self):
        self.on_delete()


def check(cache):
    """A cache that is whole finds exactly what it lists."""
    items = cache.items()
    assert len(cache) == len(items) <= cache.maxsize
    assert [cache.peek(key, "lost") for key, _ in items] == [value for _, value in items]
    assert cache.keys() == [key for key, _ in items]


def disturb(cache, step):
    """What user code may do to the cache, by number."""
    actions = [
        cache.clear,
        lambda: cache.resize(1),
        lambda: cache.resize(50),
        lambda: cache.pop("x", None),
        lambda: [cache.set(i, i) for i in range(40)],
        lambda: [cache.pop(i, None) for i in range(40)],
        cache.expire,
        lambda: cache and cache.popitem(),
        lambda: cache.update({"x": 1, "y": 2}),
        cache.keys,
    ]
    actions[step % len(actions)]()


OPERATIONS = {
    "get": lambda cache, key: cache.get(key),
    "peek": lambda cache, key: cache.peek(key),
    "contains": lambda cache, key: key in cache,
    "set": lambda cache, key: cache.set(key, "new"),
    "setdefault": lambda cache, key: cache.setdefault(key, "new"),
    "pop": lambda cache, key: cache.pop(key, None),
    "expires_in": lambda cache, key: cache.set(key, 1) or (key in cache and cache.expires_in(key)),
}


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
@pytest.mark.parametrize("step", range(10))
def test_an_equality_may_change_the_cache_that_asks(caches, operation, step):
    cache = caches.create(20)
    for i in range(10):
        cache.set(Key(f"other {i}"), i)
    cache.set(Key("wanted"), "value")
    asked = Key("wanted", on_equal=lambda: disturb(cache, step))
    try:
        operation(cache, asked)
    except KeyError:
        assert operation is OPERATIONS["expires_in"]
    check(cache)


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
@pytest.mark.parametrize("step", range(10))
def test_an_equality_of_a_stored_key_may_change_the_cache(caches, operation, step):
    cache = caches.create(20)
    stored = [Key(f"other {i}", on_equal=lambda: disturb(cache, step)) for i in range(10)]
    actions = [key.on_equal for key in stored]
    for key in stored:
        key.on_equal = None
        cache.set(key, key.name)
    for key, action in zip(stored, actions, strict=True):
        key.on_equal = action
    try:
        operation(cache, Key("other 9"))
    except KeyError:
        assert operation is OPERATIONS["expires_in"]
    check(cache)


def test_an_equality_that_removes_the_stored_key_does_not_free_it_too_early(caches):
    cache = caches.create(20)
    cache.set(Key("wanted"), "value")

    def remove():
        cache.clear()
        gc.collect()

    assert cache.get(Key("wanted", on_equal=remove)) is None
    assert len(cache) == 0


def test_an_equality_that_always_uses_the_cache_finds_its_key(caches):
    class Memoising(Key):
        __hash__ = Key.__hash__

        def __eq__(self, other):
            cache["memo"] = 1
            del cache["memo"]
            return self.name == other.name

    cache = caches.create(20)
    for i in range(5):
        cache.set(Memoising(i), i)
    assert [cache.get(Memoising(i), "lost") for i in range(6)] == [0, 1, 2, 3, 4, "lost"]


def test_setdefault_of_an_expired_key_is_whole_when_the_callback_runs(caches, clock):
    seen = []
    cache = caches.create(5, 10, clock=clock, on_evict=lambda key, value, reason: seen.append(cache.setdefault("a", 3)))
    cache.set("a", 1)
    clock.advance(10)
    assert cache.setdefault("a", 2) == 2
    assert seen == [2]
    assert cache.stats().updates == 0


@pytest.mark.parametrize("step", range(10))
def test_a_hash_may_change_the_cache_that_asks(caches, step):
    cache = caches.create(20)
    for i in range(10):
        cache.set(i, i)
    busy = False

    def once():
        nonlocal busy
        if not busy:
            busy = True
            disturb(cache, step)
            busy = False

    key = Key("wanted", on_hash=once)
    for operation in OPERATIONS.values():
        try:
            operation(cache, key)
        except KeyError:
            assert operation is OPERATIONS["expires_in"]
        busy = True
        check(cache)
        busy = False


@pytest.mark.parametrize("step", range(10))
def test_a_value_that_goes_may_change_the_cache(caches, step):
    cache = caches.create(5)
    gone = []

    def going():
        gone.append(1)
        disturb(cache, step)

    for i in range(30):
        cache.set(f"key {i % 7}", Value(going))
        if i % 5 == 0:
            cache.pop(f"key {i % 7}", None)
        if i % 11 == 0:
            cache.clear()
        check(cache)
    assert gone


@pytest.mark.parametrize("step", range(10))
def test_a_callback_may_change_the_cache(caches, clock, step):
    calls = depth = 0

    def evicted(key, value, reason):
        nonlocal calls, depth
        calls += 1
        depth += 1
        if depth < 3:
            disturb(cache, step)
        depth -= 1

    cache = caches.create(5, 10, clock=clock, on_evict=evicted)
    for i in range(100):
        cache.set(f"key {i}", i)
        if i % 20 == 0:
            clock.advance(10)
            cache.expire()
        if i % 31 == 0:
            cache.resize(5)
    check(cache)
    assert calls > 10


@pytest.mark.parametrize("read", [lambda cache, key: cache.get(key), lambda cache, key: key in cache])
def test_user_code_that_runs_in_a_read_may_end_the_answers(caches, read):
    def end():
        cache.answers_until = -1.0

    def now():
        action()
        return 0.0

    action = int
    cache = caches.create(2, clock=now)
    stored = Key("a")
    cache.set(stored, 1)
    for key in (Key("a", on_equal=end), Key("a", on_hash=end)):
        cache.answers_until = None
        assert not read(cache, key)
        assert cache.peek(stored) == 1
    cache.answers_until = None
    assert read(cache, stored)
    action = end
    assert not read(cache, stored)


def test_a_time_may_change_the_cache_when_it_is_asked_for_its_number(caches):
    class Time:
        def __float__(self):
            cache.clear()
            cache.answers_until = 5.0
            return 7.0

    cache = caches.create(2, clock=lambda: 6.0)
    cache.set("a", 1)
    cache.answers_until = Time()
    assert cache.answers_until == 7.0
    assert len(cache) == 0


@pytest.mark.order_of_use
def test_a_callback_may_store_what_was_evicted_elsewhere_and_back(caches):
    spilled = {}
    cache = caches.create(2, on_evict=lambda key, value, reason: spilled.update({key: value}))
    for i in range(10):
        cache.set(i, i)
    assert spilled == {i: i for i in range(8)}
    assert cache.items() == [(8, 8), (9, 9)]


def test_a_callback_that_puts_back_what_was_evicted_ends(caches):
    depth = 0
    deepest = 0

    def again(key, value, reason):
        nonlocal depth, deepest
        depth += 1
        deepest = max(deepest, depth)
        if depth < 10:
            cache.set(key, value)
        depth -= 1

    cache = caches.create(2, on_evict=again)
    for i in range(5):
        cache.set(i, i)
    check(cache)
    assert deepest == 10


@pytest.mark.parametrize("step", range(10))
def test_a_clock_may_change_the_cache_that_asks_the_time(caches, step):
    busy = False

    def now():
        nonlocal busy
        if not busy:
            busy = True
            disturb(cache, step)
            busy = False
        return 0.0

    cache = caches.create(20, 10, clock=now)
    for i in range(30):
        cache.set(i, i)
        cache.get(i - 3)
        cache.pop(i - 5, None)
        cache.keys()
    check(cache)


def test_a_garbage_collection_may_change_the_cache_while_it_is_listed(caches):
    cache = caches.create(1_000)
    for i in range(500):
        cache.set(i, i)

    class Cycle:
        def __init__(self):
            self.me = self

        def __del__(self):
            cache.set(object(), 1)
            cache.pop(next(numbers), None)

    numbers = iter(range(500))
    threshold = gc.get_threshold()
    gc.set_threshold(1)
    try:
        for _ in range(50):
            Cycle()
            items = cache.items()
            assert all(len(item) == 2 for item in items)
    finally:
        gc.set_threshold(*threshold)
    check(cache)


def test_a_garbage_collection_may_change_the_cache_while_it_expires(caches, clock):
    cache = caches.create(1_000, 1, clock=clock)
    for i in range(500):
        cache.set(i, i)
    clock.advance(2)

    class Cycle:
        def __init__(self):
            self.me = self

        def __del__(self):
            cache.pop(next(numbers), None)

    numbers = iter(range(499, -1, -1))
    threshold = gc.get_threshold()
    gc.set_threshold(1)
    try:
        for _ in range(50):
            Cycle()
        cache.expire()
    finally:
        gc.set_threshold(*threshold)
    assert len(cache) == 0
    assert cache.stats().expirations == 500


def test_a_callback_that_ends_when_it_is_replaced_sees_its_successor(caches):
    seen = []

    class Callback:
        def __call__(self, key, value, reason):
            pass

        def __del__(self):
            seen.append(cache.on_evict)

    cache = caches.create(1, on_evict=Callback())
    cache.on_evict = print
    assert seen == [print]


def test_chaos_leaves_a_cache_that_is_whole(caches, monkeypatch):
    raised = []
    monkeypatch.setattr(sys, "unraisablehook", lambda args: raised.append(args.exc_type))
    source = random.Random(7)
    depth = 0

    def disturb_at_random():
        nonlocal depth
        if depth < 3:
            depth += 1
            try:
                disturb(cache, source.randrange(10))
                if source.random() < 0.1:
                    raise LookupError
            finally:
                depth -= 1

    cache = caches.create(20, on_evict=lambda *evicted: disturb_at_random())
    operations = list(OPERATIONS.values())
    for _ in range(3_000):
        key = Key(source.randrange(40), disturb_at_random if source.random() < 0.5 else None)
        try:
            if source.random() < 0.3:
                cache.set(key, Value(disturb_at_random))
            else:
                source.choice(operations)(cache, key)
        except LookupError:
            pass
    depth = 3
    check(cache)
    assert LookupError in raised
