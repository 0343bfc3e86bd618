"""`TieredCache.cached`."""

import asyncio
import functools
import inspect

import pytest


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
