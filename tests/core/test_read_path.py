"""`ReadPath`: which reads of a lower tier are common, and what a common read counts."""

import gc
import inspect
import math
import sys
import time
import weakref

import pytest
from conftest import IMPLEMENTATIONS, imported

from acgsperf._native.entry import Entry, Packed


class Promotion:
    """The counts of hits, and the threshold."""

    def __init__(self, hits, threshold=3):
        self.hits = hits
        self.threshold = threshold


class Made:
    """A `ReadPath` that is enabled, and what it was made of."""

    def __init__(self, module, core, clock=time.monotonic, threshold=3):
        self.held = (core.LRUCache(10), core.LRUCache(10), {})
        self.started = []
        self.future = object()
        self.promotion = Promotion(core.LRUCache(10), threshold)
        self.path = module.ReadPath(self.held, self.start, self.promotion, clock)
        self.path.enabled = True

    def start(self, key):
        self.started.append(key)
        return self.future

    def hits(self, key="key"):
        return self.promotion.hits.peek(key, 0)


@pytest.fixture
def module(core):
    return imported("read_path", core.IMPLEMENTATION)


@pytest.fixture
def both():
    return [imported("read_path", name) for name in IMPLEMENTATIONS]


@pytest.fixture
def make(module, core):
    return lambda **options: Made(module, core, **options)


@pytest.fixture
def made(make):
    return make()


def entry(fresh_until=None, *, negative=False):
    return Entry("value", 0.0, fresh_until, None, negative=negative)


def test_a_common_read_is_started_and_returns_its_future(made):
    assert made.path.begin("key") is made.future
    assert made.started == ["key"]


def test_a_path_is_not_enabled_at_first(made, module):
    path = module.ReadPath(made.held, made.start, made.promotion, time.monotonic)
    assert path.enabled is False
    assert path.begin("key") is None
    assert made.started == []


def test_a_path_can_be_disabled_and_enabled(made):
    made.path.enabled = False
    assert made.path.begin("key") is None
    made.path.enabled = True
    assert made.path.begin("key") is made.future


@pytest.mark.parametrize("position", range(3))
def test_a_key_that_this_process_holds_is_not_common(made, position):
    made.held[position]["key"] = 1
    assert made.path.begin("key") is None
    assert made.path.begin("other") is made.future
    del made.held[position]["key"]
    assert made.path.begin("key") is made.future


def test_a_key_that_has_expired_in_a_collection_is_common(module, core, clock):
    held = core.LRUCache(10, clock=clock)
    path = module.ReadPath((held,), lambda key: key, Promotion(core.LRUCache(10)), clock)
    path.enabled = True
    held.set("key", 1, ttl=5)
    assert path.begin("key") is None
    clock.advance(5)
    assert path.begin("key") == "key"


def test_a_path_without_collections_starts_every_read(module, core):
    path = module.ReadPath((), lambda key: key, Promotion(core.LRUCache(10)), time.monotonic)
    path.enabled = True
    assert path.begin("key") == "key"


class Text(str):
    """Not a plain str: it may compare as it likes."""


@pytest.mark.parametrize("key", [None, 7, b"key", ("key",), Text("key"), []], ids=repr)
def test_what_is_no_plain_str_is_not_common(made, key):
    assert made.path.begin(key) is None
    assert made.started == []


@pytest.mark.parametrize("key", ["", "ä", "\udc80", "k" * 10_000])
def test_any_str_is_a_key(made, key):
    assert made.path.begin(key) is made.future


def test_the_start_of_a_read_may_decline(module, core):
    path = module.ReadPath(({},), lambda key: None, Promotion(core.LRUCache(10)), time.monotonic)
    path.enabled = True
    assert path.begin("key") is None


@pytest.mark.parametrize("error", [LookupError("down"), KeyboardInterrupt(), SystemExit(3)], ids=repr)
def test_an_error_of_the_start_reaches_the_caller(module, core, error):
    def start(key):
        raise error

    path = module.ReadPath(({},), start, Promotion(core.LRUCache(10)), time.monotonic)
    path.enabled = True
    for _ in range(2):
        with pytest.raises(type(error)) as raised:
            path.begin("key")
        assert raised.value is error


def test_an_error_of_a_collection_reaches_the_caller(module, core):
    class Broken(dict):
        def __contains__(self, key):
            raise LookupError("broken")

    path = module.ReadPath((Broken(a=1),), lambda key: key, Promotion(core.LRUCache(10)), time.monotonic)
    path.enabled = True
    with pytest.raises(LookupError, match="broken"):
        path.begin("key")


def test_a_value_that_a_codec_must_open_is_not_the_answer(module, core):
    promotion = Promotion(core.LRUCache(10))
    path = module.ReadPath((), lambda key: key, promotion, time.monotonic, Packed)
    packed = Entry(Packed(b"\x01"), 1.0, None, None)
    assert not path.end("key", packed)
    assert not path.end_opened("key", packed)
    assert path.end("key", entry())
    typed = module.ReadPath((), lambda key: key, promotion, time.monotonic, Packed, True)
    assert not typed.end("key", entry())
    assert not typed.end_opened("key", packed)
    assert promotion.hits.get("key") == 1
    assert typed.end_opened("key", entry())
    assert promotion.hits.get("key") == 2


@pytest.mark.parametrize("ahead", [10, 1e6, math.inf, None])
def test_a_fresh_entry_is_the_answer_and_counts_as_a_hit(made, ahead):
    fresh = entry(None if ahead is None else time.monotonic() + ahead)
    assert made.path.end("key", fresh) is True
    assert made.path.end("other", fresh) is True
    assert (made.hits("key"), made.hits("other")) == (1, 1)
    assert made.path.end("key", fresh) is True
    assert made.hits("key") == 2


@pytest.mark.parametrize(
    "found",
    [
        lambda now: None,
        lambda now: entry(negative=True),
        lambda now: entry(now + 10, negative=True),
        lambda now: entry(now),
        lambda now: entry(now - 1),
        lambda now: entry(0.0),
        lambda now: entry(-1.0),
        lambda now: entry(-math.inf),
    ],
    ids=["none", "negative", "fresh negative", "stale now", "stale", "zero", "before the start", "always stale"],
)
def test_what_is_no_fresh_value_is_not_the_answer_and_counts_nothing(make, clock, found):
    for made, now in ((make(), time.monotonic()), (make(clock=clock), clock.now)):
        assert made.path.end("key", found(now)) is False
        assert made.hits() == 0


def test_the_clock_of_the_user_decides_what_is_fresh(make, clock):
    made = make(clock=clock)
    fresh = entry(clock.now + 5)
    assert made.path.end("key", fresh) is True
    clock.advance(4.999)
    assert made.path.end("key", fresh) is True
    clock.advance(0.001)
    assert made.path.end("key", fresh) is False
    assert made.hits() == 2


def test_an_entry_without_limit_needs_no_clock(make):
    made = make(clock=lambda: pytest.fail("asked"))
    assert made.path.end("key", entry()) is True


def test_the_monotonic_clock_agrees_with_that_of_python(made):
    # An entry that is fresh for a moment is fresh now, and stale after that moment.
    soon = entry(time.monotonic() + 0.02)
    assert made.path.end("key", soon) is True
    while time.monotonic() < soon.fresh_until:
        pass
    # Floating point leaves a doubt of less than a microsecond.
    time.sleep(1e-5)
    assert made.path.end("key", soon) is False


@pytest.mark.parametrize("threshold", [1, 2, 5])
def test_the_hit_that_reaches_the_threshold_is_not_common_and_not_counted(make, threshold):
    made = make(threshold=threshold)
    assert [made.path.end("key", entry()) for _ in range(threshold)] == [True] * (threshold - 1) + [False]
    assert made.hits() == threshold - 1
    # Whoever counts it otherwise starts again.
    made.promotion.hits.pop("key", 0)
    assert made.path.end("key", entry()) is (threshold > 1)


def test_the_threshold_may_change_at_any_time(make):
    made = make(threshold=10)
    for _ in range(4):
        assert made.path.end("key", entry()) is True
    made.promotion.threshold = 5
    assert made.path.end("key", entry()) is False
    made.promotion.threshold = 6
    assert made.path.end("key", entry()) is True
    made.promotion.threshold = 1
    assert made.path.end("other", entry()) is False
    assert (made.hits(), made.hits("other")) == (5, 0)


def test_the_least_recently_hit_key_is_forgotten_first(make):
    made = make(threshold=100)
    for number in range(11):
        assert made.path.end(str(number), entry()) is True
    assert made.hits("0") == 0
    assert made.hits("10") == 1


def test_an_error_of_the_clock_reaches_the_caller_and_counts_nothing(make):
    def clock():
        raise LookupError("no time")

    made = make(clock=clock)
    with pytest.raises(LookupError, match="no time"):
        made.path.end("key", entry(5.0))
    assert made.hits() == 0


@pytest.mark.parametrize("made_with", [time.monotonic, lambda: 0.0], ids=["monotonic", "user"])
@pytest.mark.parametrize(
    ("found", "error"),
    [(7, AttributeError), ("entry", AttributeError), (object(), AttributeError), (entry("noon"), TypeError)],
    ids=["int", "str", "object", "no time"],
)
def test_what_is_no_entry_is_an_error(make, made_with, found, error):
    made = make(clock=made_with)
    with pytest.raises(error):
        made.path.end("key", found)
    assert made.hits() == 0


def test_a_key_without_a_hash_is_an_error(made):
    with pytest.raises(TypeError, match="unhashable"):
        made.path.end([], entry())


def test_a_start_that_uses_the_path_again(module, core):
    depth = 0

    def start(key):
        nonlocal depth
        depth += 1
        return [path.begin(key + "+"), path.end(key, entry())] if depth < 5 else key

    promotion = Promotion(core.LRUCache(10), 10)
    path = module.ReadPath(({},), start, promotion, time.monotonic)
    path.enabled = True
    assert path.begin("k") == [[[["k++++", True], True], True], True]
    assert len(promotion.hits) == 4


def test_a_start_that_disables_or_replaces_the_path(module, core):
    def start(key):
        path.enabled = False
        path.__init__(({key: 1},), lambda key: "other", Promotion(core.LRUCache(1)), lambda: 0.0)
        return key

    path = module.ReadPath(({},), start, Promotion(core.LRUCache(10)), time.monotonic)
    path.enabled = True
    assert path.begin("key") == "key"
    assert path.enabled is False
    path.enabled = True
    assert (path.begin("key"), path.begin("k")) == (None, "other")


def test_a_collection_that_disables_the_path_ends_no_read(module, core):
    class Held(dict):
        def __contains__(self, key):
            path.enabled = False
            path.__init__((), lambda key: "other", Promotion(core.LRUCache(1)), time.monotonic)
            gc.collect()
            return False

    path = module.ReadPath((Held(a=1), Held(a=1)), lambda key: "one", Promotion(core.LRUCache(1)), time.monotonic)
    path.enabled = True
    assert path.begin("key") == "other"


def test_a_clock_that_uses_the_path_again(module, core):
    times = iter([1.0, 1.0])

    def clock():
        now = next(times)
        if path.end("inner", entry()):
            promotion.threshold = 2
        return now

    promotion = Promotion(core.LRUCache(10), 3)
    path = module.ReadPath((), lambda key: key, promotion, clock)
    assert path.end("key", entry(5.0)) is True
    assert path.end("key", entry(5.0)) is False
    assert promotion.hits.items() == [("inner", 1), ("key", 1)]


@pytest.mark.parametrize("operation", ["begin", "end"])
def test_repeating_an_operation_does_not_take_more_and_more_memory(make, clock, operation):
    made = make(clock=clock)
    made.start = None
    found, stale = entry(clock.now + 5), entry(clock.now - 5)
    future, key = made.future, "key of this test"
    made.held[0].set("held", 1)

    def repeat():
        for _ in range(1_000):
            if operation == "begin":
                made.path.begin(key), made.path.begin("held"), made.path.begin(7)
                made.started.clear()
            else:
                made.path.end(key, found), made.path.end(key, stale), made.path.end(key, None)

    repeat()
    references = [sys.getrefcount(thing) for thing in (key, found, stale, future, made, made.promotion)]
    blocks = sys.getallocatedblocks()
    repeat()
    assert [sys.getrefcount(thing) for thing in (key, found, stale, future, made, made.promotion)] == references
    assert sys.getallocatedblocks() - blocks < 500


def test_errors_do_not_take_more_and_more_memory(module, core):
    class BrokenError(Exception):
        pass

    def start(key):
        raise BrokenError

    path = module.ReadPath(({},), start, Promotion(core.LRUCache(10)), time.monotonic)
    path.enabled = True

    def repeat():
        for _ in range(500):
            for call in (lambda: path.begin("key"), lambda: path.end("key", 7), lambda: path.end("key", entry("x"))):
                with pytest.raises((BrokenError, AttributeError, TypeError)):
                    call()
        gc.collect()

    repeat()
    blocks = sys.getallocatedblocks()
    repeat()
    assert sys.getallocatedblocks() - blocks < 250


def test_a_cycle_through_a_path_is_collected(module, core):
    class Cache:
        def start(self, key):
            return key

    cache = Cache()
    cache.path = module.ReadPath(({},), cache.start, Promotion(core.LRUCache(10)), time.monotonic)
    gone = weakref.ref(cache)
    del cache
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("held", [None, [], {}, "ab"], ids=repr)
def test_the_compiled_path_refuses_collections_that_are_in_no_tuple(both, twins, held):
    for found, twin in zip(both, twins, strict=True):
        if found.IMPLEMENTATION == "c":
            with pytest.raises(TypeError, match="held"):
                found.ReadPath(held, print, Promotion(twin.LRUCache(1)), time.monotonic)


def test_a_promotion_needs_counts(module):
    with pytest.raises(AttributeError):
        module.ReadPath((), print, object(), time.monotonic)


@pytest.mark.parametrize(
    "arguments",
    [(), ((),), ((), print, None), ((), print, None, time.monotonic, None, False, 7)],
    ids=lambda found: str(len(found)),
)
def test_a_path_takes_four_to_six_arguments(module, arguments):
    with pytest.raises(TypeError):
        module.ReadPath(*arguments)


def test_keys_and_entries_are_positional(made):
    for call in (
        lambda: made.path.begin(),
        lambda: made.path.begin("a", "b"),
        lambda: made.path.begin(key="a"),
        lambda: made.path.end("a"),
        lambda: made.path.end(key="a", entry=None),
    ):
        with pytest.raises(TypeError):
            call()


def test_a_path_that_was_never_initialized_breaks_nothing(module):
    path = module.ReadPath.__new__(module.ReadPath)
    path.enabled = True
    for call in (lambda: path.begin("key"), lambda: path.end("key", entry()), lambda: path.end("key", entry(1.0))):
        with pytest.raises((TypeError, AttributeError)):
            call()


def test_a_path_has_no_other_attributes(made):
    with pytest.raises(AttributeError):
        made.path.anything = 1
    with pytest.raises(TypeError, match="weak reference"):
        weakref.ref(made.path)


def test_both_have_the_same_signatures_and_public_names(both):
    for found in both:
        names = ["held", "start", "promotion", "clock", "packed", "typed"]
        assert list(inspect.signature(found.ReadPath).parameters) == names
    public = [{name for name in dir(found.ReadPath) if not name.startswith("_")} for found in both]
    assert public == [{"begin", "enabled", "end", "end_opened"}] * len(both)
    for name in ("begin", "end", "end_opened"):
        signatures = {
            tuple((one.name, one.kind) for one in inspect.signature(getattr(found.ReadPath, name)).parameters.values())
            for found in both
        }
        assert len(signatures) == 1, name
        assert len({inspect.getdoc(getattr(found.ReadPath, name)) for found in both}) == 1, name
