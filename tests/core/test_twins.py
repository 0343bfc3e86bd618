"""Both implementations have the same signatures and attributes, and refuse the same."""

import inspect
import pickle
import weakref

import pytest

from acgsperf import CONSTITUTIONAL_HASH

CACHES = ("LRUCache", "RecordingCache", "AdaptiveCache")
MAKE = {
    "HashValidator": lambda core: core.HashValidator(["0" * 16, "1" * 16]),
    "LRUCache": lambda core: core.LRUCache(5, 60),
    "RecordingCache": lambda core: core.RecordingCache(5, 60),
    "AdaptiveCache": lambda core: core.AdaptiveCache(5, 60),
    "LatencyHistogram": lambda core: core.LatencyHistogram(1, 1_000, 2),
    "Timer": lambda core: core.LatencyHistogram().time(),
}
SIGNATURES = {
    "HashValidator": f"(expected={CONSTITUTIONAL_HASH!r}, *, on_reject=None)",
    "LRUCache": "(maxsize=None, ttl=None, *, maxweight=None, weigher=None, clock=None, on_evict=None)",
    "RecordingCache": "(maxsize=None, ttl=None, *, maxweight=None, weigher=None, clock=None, on_evict=None)",
    "AdaptiveCache": "(maxsize=None, ttl=None, *, policy='adaptive', maxweight=None, weigher=None, "
    "clock=None, on_evict=None, seed=None, sizing=False)",
    "LatencyHistogram": "(lowest_ns=1, highest_ns=3600000000000, significant_figures=3)",
    "Timer": "(histogram)",
}
PROPERTIES = {
    "HashValidator": ["expected"],
    "LRUCache": ["maxsize", "maxweight", "ttl", "weigher"],
    "RecordingCache": ["maxsize", "maxweight", "ttl", "weigher"],
    "AdaptiveCache": ["maxsize", "maxweight", "ttl", "weigher"],
    "LatencyHistogram": ["lowest_ns", "highest_ns", "significant_figures", "count", "min", "max", "mean", "stddev"],
    "Timer": [],
}


def qualified(kind):
    return f"{kind.__module__}.{kind.__name__}"


def described(function):
    """A signature without the name of an operand."""
    signature = inspect.signature(function)
    parameters = [
        item.replace(name="other" if item.name == "value" else item.name) for item in signature.parameters.values()
    ]
    return signature.replace(parameters=parameters)


@pytest.mark.parametrize("name", SIGNATURES)
def test_a_class_has_a_signature(core, name):
    assert str(inspect.signature(getattr(core, name))) == SIGNATURES[name]
    assert not (inspect.getdoc(getattr(core, name)) or "").startswith(name)


@pytest.mark.parametrize("name", MAKE)
def test_public_methods_have_the_same_signatures(twins, name):
    objects = [MAKE[name](core) for core in twins]
    public = [{item for item in dir(thing) if not item.startswith("_")} for thing in objects]
    assert public[0] == public[-1]
    operators = {f"__{item}__" for item in ("eq", "enter", "exit", "contains", "getitem", "setitem", "delitem", "len")}
    for method in (public[0] | operators) & set(dir(objects[0])):
        if callable(getattr(type(objects[0]), method)):
            signatures = [described(getattr(thing, method)) for thing in objects]
            assert signatures[0] == signatures[-1], method


@pytest.mark.parametrize("name", MAKE)
def test_calling_init_again_changes_nothing(core, name):
    thing = MAKE[name](core)
    if name in CACHES:
        thing.set("a", 1)
    if name == "LatencyHistogram":
        thing.record(7)
    before = repr(thing)
    thing.__init__()
    thing.__init__(*{"HashValidator": [["f" * 16]], "Timer": [core.LatencyHistogram()]}.get(name, [7]))
    thing.__init__(1, 2, 3, x=4)
    assert repr(thing) == before
    if name in CACHES:
        assert thing.items() == [("a", 1)]
        assert thing.maxsize == 5


@pytest.mark.parametrize("name", MAKE)
def test_an_object_is_never_half_created(core, name):
    kind = getattr(core, name)
    if name in (*CACHES, "Timer"):
        with pytest.raises(TypeError):
            kind.__new__(kind)
    else:
        assert repr(kind.__new__(kind)) == repr(kind())


@pytest.mark.parametrize("name", MAKE)
def test_attributes_of_a_class_cannot_be_set_or_deleted(core, name):
    kind = getattr(core, name)
    for change in (
        lambda: setattr(kind, "anything", 1),
        lambda: setattr(kind, "__repr__", object.__repr__),
        lambda: delattr(kind, "__repr__"),
        lambda: setattr(kind, "__module__", "elsewhere"),
    ):
        with pytest.raises(TypeError, match=rf"^cannot set '\w+' attribute of immutable type '{qualified(kind)}'$"):
            change()


@pytest.mark.parametrize("name", MAKE)
def test_a_class_has_no_subclasses(core, name):
    kind = getattr(core, name)
    with pytest.raises(TypeError, match=f"^type '{qualified(kind)}' is not an acceptable base type$"):
        type("Subclass", (kind,), {})


def test_what_is_no_histogram_is_named(core):
    for use in (core.LatencyHistogram().merge, core.Timer):
        for other in (7, None, core.HashValidator()):
            with pytest.raises(TypeError) as raised:
                use(other)
            got = type(other).__name__ if type(other).__module__ == "builtins" else qualified(type(other))
            assert str(raised.value).endswith(
                f" has incorrect type (expected {qualified(core.LatencyHistogram)}, got {got})"
            )


@pytest.mark.parametrize("name", MAKE)
def test_attributes_cannot_be_set_or_deleted(core, name):
    thing = MAKE[name](core)
    for attribute in [*PROPERTIES[name], "anything"]:
        with pytest.raises(AttributeError):
            setattr(thing, attribute, 1)
        with pytest.raises(AttributeError):
            delattr(thing, attribute)


@pytest.mark.parametrize(("attribute", "value"), [("on_evict", print), ("answers_until", 7.0)])
def test_an_attribute_of_a_cache_that_may_be_changed_cannot_be_deleted(core, attribute, value):
    cache = core.LRUCache(1)
    setattr(cache, attribute, value)
    with pytest.raises(AttributeError, match=f"property '{attribute}' of 'LRUCache' object has no deleter"):
        delattr(cache, attribute)
    assert getattr(cache, attribute) == value


@pytest.mark.parametrize("name", MAKE)
def test_an_object_cannot_be_pickled(core, name):
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(TypeError, match=f"cannot pickle '{name}' object"):
            pickle.dumps(MAKE[name](core), protocol)


def test_everything_but_a_timer_takes_weak_references(core):
    for name in ("HashValidator", *CACHES, "LatencyHistogram"):
        thing = MAKE[name](core)
        assert weakref.ref(thing)() is thing
    with pytest.raises(TypeError, match="weak reference"):
        weakref.ref(MAKE["Timer"](core))


def test_comparing_with_something_else_is_left_to_it(core):
    histogram = core.LatencyHistogram()
    assert histogram.__eq__(7) is NotImplemented
    assert histogram.__ne__(7) is NotImplemented
    for operation in ("__lt__", "__le__", "__gt__", "__ge__"):
        assert getattr(histogram, operation)(histogram) is NotImplemented


def test_comparisons_that_change_the_bucket_every_time_end(core):
    class Key:
        def __init__(self, name):
            self.name = name

        def __hash__(self):
            return 1

        def __eq__(self, other):
            nonlocal busy
            if not busy:
                busy = True
                cache.pop(fixed, None)
                cache[fixed] = 1
                busy = False
            return self.name == other.name

    busy = False
    fixed = Key("fixed")
    cache = core.LRUCache(20)
    for i in range(5):
        cache.set(Key(i), i)
    assert [cache.get(Key(i), "lost") for i in range(6)] == [0, 1, 2, 3, 4, "lost"]
