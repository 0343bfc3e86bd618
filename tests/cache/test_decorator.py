"""`cached`: which calls share a result, and the calls that a decorated function has."""

import asyncio
import builtins
import copy
import dataclasses
import functools
import importlib
import inspect
import pickle
import sys
import textwrap
import types
from unittest.mock import AsyncMock

import pytest

from acgsperf import CacheError, cached


async def test_calls_with_equal_arguments_run_the_function_once(open_cache):
    cache = await open_cache()
    calls = []

    @cache.cached()
    async def add(a, b=2, *, c=3):
        """Add numbers."""
        calls.append((a, b, c))
        return a + b + c

    assert [await add(1), await add(a=1), await add(1, 2), await add(1, c=3, b=2)] == [6] * 4
    assert await add(1, 3) == 7
    assert calls == [(1, 2, 3), (1, 3, 3)]
    assert (add.__name__, add.__doc__) == ("add", "Add numbers.")
    assert inspect.iscoroutinefunction(add)


async def test_different_functions_and_argument_types_have_different_keys(open_cache):
    cache = await open_cache()

    @cache.cached()
    async def one(value):
        return f"one {value!r}"

    @cache.cached()
    async def two(value):
        return f"two {value!r}"

    assert [await one(1), await two(1), await one("1"), await one(True)] == ["one 1", "two 1", "one '1'", "one True"]


async def test_concurrent_calls_run_the_function_once(open_cache):
    cache = await open_cache()
    calls = 0

    @cache.cached()
    async def slow(key):
        nonlocal calls
        calls += 1
        await asyncio.sleep(0)
        return key

    assert await asyncio.gather(*(slow("a") for _ in range(100))) == ["a"] * 100
    assert calls == 1


async def test_a_result_of_none_is_cached(open_cache):
    cache = await open_cache()
    calls = []

    @cache.cached()
    async def nothing():
        calls.append(1)

    assert [await nothing(), await nothing()] == [None, None]
    assert calls == [1]


async def test_key_ttl_and_tags_can_be_given(open_cache, clock):
    cache = await open_cache()
    calls = []

    @cache.cached(key=lambda user, verbose: f"user:{user}", ttl=10, tags=lambda user, verbose: [f"tag:{user}"])
    async def load(user, verbose):
        calls.append(user)
        return user

    await load(1, True)
    await load(1, False)
    assert cache.get_local("user:1") == 1
    await cache.invalidate_tag("tag:1")
    await load(1, True)
    clock.advance(10)
    await load(1, True)
    await load(2, True)
    assert calls == [1, 1, 1, 2]


async def test_instances_that_are_not_equal_do_not_share_results(open_cache):
    cache = await open_cache()

    class Tenant:
        def __init__(self, name):
            self.name = name
            self.calls = 0

        @cache.cached()
        async def describe(self, item):
            self.calls += 1
            return f"{self.name} {item}"

        @classmethod
        @cache.cached()
        async def kind(cls, item):
            return f"{cls.__name__} {item}"

        @staticmethod
        @cache.cached()
        async def plain(item):
            return f"plain {item}"

    class Other(Tenant):
        pass

    a, b = Tenant("a"), Tenant("b")
    assert [await a.describe(1), await a.describe(item=1), await b.describe(1)] == ["a 1", "a 1", "b 1"]
    assert (a.calls, b.calls) == (1, 1)
    assert [await Tenant.kind(1), await Other.kind(1), await a.plain(1)] == ["Tenant 1", "Other 1", "plain 1"]


async def test_the_key_function_of_a_method_gets_self(open_cache):
    cache = await open_cache()

    class Tenant:
        def __init__(self, name):
            self.name = name

        @cache.cached(key=lambda self, item: f"{self.name}:{item}")
        async def describe(self, item):
            return f"{self.name} {item}"

    assert await Tenant("a").describe(1) == "a 1"
    assert cache.get_local("a:1") == "a 1"


async def test_functions_and_arguments_that_cannot_be_cached_raise_a_type_error(open_cache):
    cache = await open_cache()
    with pytest.raises(TypeError, match="coroutine function"):
        cache.cached()(lambda: 1)
    for decorator, written in (cache.cached, "cache.cached"), (cached, "cached"):
        with pytest.raises(TypeError, match=rf"^{written} must be called before .*<function .*: write @{written}\(\)$"):

            @decorator
            async def bare(value):
                return value

    @cache.cached()
    async def load(value):
        return value

    with pytest.raises(TypeError, match=r"\$\.value must be a JSON-like value"):
        await load(object())
    with pytest.raises(TypeError, match="missing a required argument"):
        await load()


async def test_functions_with_the_same_decorator_have_different_keys(open_cache):
    cache = await open_cache()

    def decorated(function):
        @functools.wraps(function)
        async def call(value):
            return await function(value)

        return call

    @cache.cached()
    @decorated
    async def one(value):
        return f"one {value}"

    @cache.cached()
    @decorated
    async def two(value):
        return f"two {value}" if value else await two(1)

    assert [await one(1), await two(1), await two(0)] == ["one 1", "two 1", "two 1"]


async def plus(a, b):
    return a + b


class Adder:
    async def __call__(self, a, b=1):
        return a + b


class Client:
    def __init__(self, cache, tenant):
        self.tenant = tenant
        self.fetch = cache.cached()(self.fetch)

    async def fetch(self, number):
        return f"{self.tenant}:{number}"


async def test_every_kind_of_callable_can_be_cached(open_cache):
    cache = await open_cache()
    mock = AsyncMock(return_value=7)
    partial = cache.cached()(functools.partial(plus, 1))
    other = cache.cached(key=lambda b: f"other:{b}")(functools.partial(plus, 2))
    assert [await partial(5), await partial(b=5), await other(5)] == [6, 6, 7]
    adder = cache.cached()(Adder())
    assert [await adder(1), await adder(1, b=1), await adder(1, 2)] == [2, 2, 3]
    mocked = cache.cached()(mock)
    assert [await mocked(1), await mocked(1), await mocked(x=1)] == [7, 7, 7]
    assert mock.await_count == 2
    clients = [Client(cache, tenant) for tenant in ("acme", "evil")]
    assert [await client.fetch(7) for client in clients] == ["acme:7", "evil:7"]


async def test_a_partial_counts_with_its_arguments(open_cache):
    cache = await open_cache()
    one, two = functools.partial(plus, 1), functools.partial(plus, b=2)
    assert cache.cached()(one).key(2) != cache.cached()(two).key(2)
    assert cache.cached()(functools.partial(functools.partial(plus, 1), 2)).key() == cache.cached()(one).key(2)
    assert cache.cached()(two).key(1) == cache.cached()(one).key(2)


async def test_the_arguments_of_the_wrapper_count_and_not_those_that_it_injects(open_cache):
    cache = await open_cache()

    def with_session(function):
        @functools.wraps(function)
        async def call(*args, **kwargs):
            return await function("session", *args, **kwargs)

        return call

    @cache.cached()
    @with_session
    async def load(session, first=1, second=2):
        return first, second

    assert [await load(5), await load(5, 1), await load(second=5)] == [(5, 2), (5, 1), (1, 5)]


async def test_owners_of_every_kind_can_be_told_apart(open_cache):
    cache = await open_cache()
    calls = []

    @dataclasses.dataclass
    class Unhashable:
        tenant: str

        @cache.cached()
        async def get(self, number):
            return self.tenant, number

    @dataclasses.dataclass(frozen=True)
    class ByValue:
        tenant: str

        @cache.cached()
        async def get(this, number):  # noqa: N805
            calls.append(number)
            return this.tenant, number

    class Slots:
        __slots__ = ("tenant",)

        @cache.cached()
        async def get(self, number):
            return number

    first, second = Unhashable("a"), Unhashable("a")
    assert first.get.key(1) == first.get.key(number=1) != second.get.key(1)
    assert await first.get(1) == ("a", 1)
    first.tenant = "b"
    assert await first.get(1) == ("a", 1)
    kept = ByValue("a")
    assert [await kept.get(1), await ByValue("a").get(1), await ByValue("b").get(1)] == [("a", 1), ("a", 1), ("b", 1)]
    assert calls == [1, 1]
    with pytest.raises(TypeError, match=r"Slots\.get belongs to a Slots, which has no weak references.*pass `key`"):
        await Slots().get(1)


async def test_an_owner_that_is_deleted_loses_its_results(open_cache):
    cache = await open_cache()

    class Unhashable:
        __hash__ = None

        @cache.cached()
        async def get(self):
            return 1

    keys = set()
    for _ in range(100):
        keys.add(Unhashable().get.key())
    assert len(keys) == 100
    assert not Unhashable.__dict__["get"]._keys._owners._by_identity


async def test_a_function_is_no_method_because_of_the_names_of_its_parameters(open_cache):
    cache = await open_cache()

    @cache.cached()
    async def price(cls, self):
        return f"{cls} {self}"

    assert [await price("gold", 1), await price("lead", 1), await price(cls="gold", self=1)] == [
        "gold 1",
        "lead 1",
        "gold 1",
    ]


async def test_results_of_an_instance_stay_in_l1(open_cache, l2, l3):
    cache = await open_cache(l2, l3, size=10)

    class Service:
        @cache.cached()
        async def rates(self):
            return 1

        @cache.cached()
        @classmethod
        async def names(cls):
            return 2

        @cache.cached(key=lambda self: "shared")
        async def shared(self):
            return 3

    services = [Service() for _ in range(50)]
    for service in services:
        assert [await service.rates(), await service.rates()] == [1, 1]
    assert await Service.names() == await services[0].names() == 2
    assert await services[0].shared() == 3
    await cache.close()
    assert {key for _, key in l2.data} == {key for _, key in l3.data} == {Service.names.key(), "shared"}


async def test_the_decorated_function_has_the_calls_of_its_cache(open_cache, l2, settle):
    cache = await open_cache(l2)
    versions = iter(range(100))

    class Shop:
        @cache.cached(tags=lambda self, number: [f"tag:{number}"])
        async def price(self, number):
            return next(versions)

    @cache.cached(key=lambda number: f"n:{number}")
    async def load(number):
        if (version := next(versions)) == 3:
            raise KeyError(number)
        return version

    assert load.key(7) == load.key(number=7) == "n:7"
    assert await load.peek(7) is None
    assert [await load(7), await load(7), await load.peek(7)] == [0, 0, 0]
    assert await load.refresh(7) == 1
    await settle()
    assert [await load(7), await cache.get("n:7"), l2["n:7"].value] == [1, 1, 1]
    assert (await load.invalidate(7)).everywhere
    assert await load.peek(7) is None
    assert await load(7) == 2
    with pytest.raises(KeyError):
        await load.refresh(7)
    assert await load(7) == 2
    shop = Shop()
    assert [await shop.price(1), await shop.price.refresh(1), await shop.price.peek(1)] == [4, 5, 5]
    assert shop.price.key(1) == Shop.price.key(shop, 1) != Shop().price.key(1)
    assert await Shop.price(shop, 1) == 5
    await cache.invalidate_tag("tag:1")
    assert await shop.price.peek(1) is None
    await shop.price(1)
    await shop.price.invalidate(1)
    assert await shop.price.peek(1) is None
    assert str(inspect.signature(shop.price)) == "(number)"
    assert inspect.iscoroutinefunction(shop.price)
    assert (shop.price.__name__, repr(load)) == ("price", f"<cached {__name__}.{load.__qualname__}>")


async def test_concurrent_refreshes_and_calls_get_values_of_their_time(open_cache, l2):
    cache = await open_cache(l2, lock_ttl=5)
    gate, calls = asyncio.Event(), []

    @cache.cached()
    async def load():
        calls.append(1)
        number = len(calls)
        await gate.wait()
        return number

    first = asyncio.create_task(load())
    await asyncio.sleep(0.01)
    refreshed = asyncio.create_task(load.refresh())
    await asyncio.sleep(0.01)
    joined = asyncio.create_task(load())
    await asyncio.sleep(0.01)
    gate.set()
    assert await asyncio.gather(first, refreshed, joined) == [1, 2, 2]
    assert await load() == 2


async def test_a_function_can_be_decorated_before_its_cache_exists(open_cache):
    @cached(ttl=60)
    async def load(number):
        return number

    with pytest.raises(CacheError, match=r"load has no cache: call its bind\(cache\) first"):
        await load(1)
    assert load.cache is None
    cache = await open_cache()
    load.bind(cache)
    assert await load(1) == 1
    assert cache.get_local(load.key(1)) == 1


async def test_two_functions_of_one_name_need_a_key(open_cache):
    cache, other = await open_cache(), await open_cache()

    def make(tenant):
        async def load(number):
            return tenant, number

        return load

    first = cache.cached()(make("a"))
    with pytest.raises(
        ValueError, match=r"two functions named .*load are cached in 'test', and would share their results"
    ):
        cache.cached()(make("b"))
    assert await other.cached()(make("b"))(1) == ("b", 1)
    assert await cache.cached(key=lambda n: f"b:{n}")(make("b"))(1) == ("b", 1)
    assert await first(1) == ("a", 1)
    # The function is gone, and so is its claim on the name.
    del first
    assert await cache.cached()(make("c"))(2) == ("c", 2)


async def test_a_reloaded_module_does_not_get_the_results_of_the_former_body(open_cache, tmp_path, monkeypatch):
    cache = await open_cache()
    text = """
        @decorate
        async def load(number): return "%s"
    """
    file = tmp_path / "reloaded_example.py"
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setattr(builtins, "decorate", cache.cached(), raising=False)
    file.write_text(textwrap.dedent(text % "former"))
    module = importlib.import_module("reloaded_example")
    monkeypatch.delitem(sys.modules, "reloaded_example")
    monkeypatch.setitem(sys.modules, "reloaded_example", module)
    former = module.load
    assert await former(1) == "former"
    for _ in range(2):
        file.write_text(textwrap.dedent(text % "later"))
        importlib.reload(module)
        assert await module.load(1) == "later"
    # Nothing is left of the version before, but the results of the first one are.
    del module.load
    importlib.reload(module)
    assert await module.load(1) == "later"
    assert await former(1) == "former"
    # The new body has no results to share with other processes.
    assert former.key(1) == f"reloaded_example.load:{module.load.key(1).rpartition(':')[2]}" != module.load.key(1)
    with pytest.raises(ValueError, match=r"two functions named reloaded_example\.load are cached"):
        exec(compile(textwrap.dedent(text % "duplicate"), file, "exec"), vars(module))


async def test_a_changed_cell_of_a_notebook_does_not_get_the_results_of_the_former_one(open_cache):
    cache = await open_cache()
    notebook = {"__name__": "__main__", "cache": cache}

    def run(file, body):
        exec(compile(f"@cache.cached()\nasync def load(number): return {body!r}", file, "exec"), notebook)
        return notebook["load"](1)

    assert await run("/tmp/ipykernel_1/1.py", "a") == "a"
    for _ in range(2):
        assert await run("/tmp/ipykernel_1/2.py", "b") == "b"
    assert await run("/tmp/ipykernel_1/1.py", "a") == "a"
    with pytest.raises(ValueError, match=r"two functions named __main__\.load are cached"):
        await run("/tmp/ipykernel_1/1.py", "c")
    assert [await run("<stdin>", body) for body in "de"] == ["d", "e"]


async def test_an_application_can_be_made_twice(open_cache):
    cache = await open_cache()

    def create_app():
        @cache.cached()
        async def load(number):
            return number

        return load

    first, second = create_app(), create_app()
    assert [await first(1), await second(1)] == [1, 1]


def test_a_decorated_function_is_pickled_by_its_name():
    assert pickle.loads(pickle.dumps(of_module)) is of_module
    assert copy.deepcopy(of_module) is of_module


@cached()
async def of_module():
    return 1


async def test_class_methods_and_static_methods_can_be_called_on_classes_and_instances(open_cache):
    cache = await open_cache()

    class Shelf:
        @cache.cached()
        @classmethod
        async def of_class(cls, number=1):
            return cls.__name__, number

        @classmethod
        @cache.cached()
        async def of_class_below(cls, number=1):
            return cls.__name__, number

        @cache.cached()
        @staticmethod
        async def plain(number=1):
            return number

        @staticmethod
        @cache.cached()
        async def plain_below(number=1):
            return number

    class Drawer(Shelf):
        pass

    for of_class in ("of_class", "of_class_below"):
        for owner, name in ((Shelf, "Shelf"), (Shelf(), "Shelf"), (Drawer, "Drawer"), (Drawer(), "Drawer")):
            assert await getattr(owner, of_class)(7) == (name, 7)
    for plain in ("plain", "plain_below"):
        for owner in (Shelf, Shelf(), Drawer, Drawer()):
            function = getattr(owner, plain)
            assert [await function(7), await function.peek(number=7)] == [7, 7]
    assert Shelf.of_class.key(7) == Shelf().of_class.key(number=7) != Drawer.of_class.key(7)
    assert await Shelf.of_class.peek(7) == ("Shelf", 7)
    await Drawer.of_class.invalidate(7)
    assert [await Shelf.of_class.peek(7), await Drawer.of_class.peek(7)] == [("Shelf", 7), None]


async def test_a_class_method_below_another_decorator_does_not_take_an_argument_for_its_class(open_cache):
    cache = await open_cache()

    class Shelf:
        @cache.cached()
        async def below(cls, number=1):  # noqa: N805 - as in a classmethod
            return number

        @cache.cached(key=lambda *args: str(args))
        async def keyed(cls, number=1):  # noqa: N805
            return number

    # From Python 3.13 on, `classmethod` makes such a method of it.
    for function in (Shelf.__dict__["below"], Shelf.__dict__["keyed"]):
        bound = types.MethodType(function, Shelf)
        assert await bound(7) == 7
        with pytest.raises(TypeError, match=r"needs its class: put @cached\(\) above @classmethod"):
            bound.key(7)
        for call in (bound.invalidate, bound.refresh, bound.peek):
            with pytest.raises(TypeError, match="needs its class"):
                await call(7)


async def test_classes_of_one_name_do_not_share_the_results_of_their_class_methods(open_cache):
    cache, other = await open_cache(), await open_cache()

    class Table:
        name: str

        @cached()
        @classmethod
        async def rows(cls, number):
            return cls.name, number

        @cached(key=lambda cls, number: f"{cls.name}:{number}")
        @classmethod
        async def keyed(cls, number):
            return cls.name, number

    Table.rows.bind(cache)
    Table.keyed.bind(cache)
    first, second, again = (type("Tenant", (Table,), {"name": name}) for name in ("a", "b", "a"))
    assert [await first.rows(1), await again.rows(1), await again.rows(number=1)] == [("a", 1)] * 3
    with pytest.raises(ValueError, match=r"two classes named .*Tenant have a class method rows in 'test'.*pass `key`"):
        await second.rows(1)
    assert [await first.keyed(1), await second.keyed(1)] == [("a", 1), ("b", 1)]
    Table.rows.bind(other)
    assert await second.rows(1) == ("b", 1)


async def test_an_application_with_a_class_can_be_made_twice(open_cache):
    cache = await open_cache()

    def create_app(prefix):
        class Base:
            limit = (1,)

            @property
            def name(self):
                return prefix

        class Handlers(Base):
            @cache.cached()
            @classmethod
            async def load(cls, number):
                return prefix, number

        return Handlers

    applications = [create_app("a"), create_app("a")]
    assert [await one.load(1) for one in applications] == [("a", 1)] * 2
    with pytest.raises(ValueError, match="two functions named"):
        create_app("b")


async def test_arguments_of_the_decorator_are_checked_at_once(open_cache):
    cache = await open_cache()

    async def load(number):
        return number

    for arguments, message in (
        ({"ttl": 0}, "ttl must be greater than 0, got 0"),
        ({"ttl": "1"}, "ttl must be a number"),
        ({"options": {"ttl": 1}}, "options must be EntryOptions or None, got dict"),
        ({"key": "user"}, "key must be a function that returns a str, got 'user'"),
        ({"tags": None}, "tags must be a sequence of str, got None"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            cache.cached(**arguments)(load)
    for wrong in ("cache", 3):
        with pytest.raises(TypeError, match="cache must be a TieredCache, got "):
            cached(wrong)(load)
    with pytest.raises(TypeError, match="cache must be a TieredCache, got None"):
        cached()(load).bind(None)
