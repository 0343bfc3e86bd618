"""Single flight: one load for concurrent callers, whichever of them is cancelled and however the load ends."""

import asyncio
import contextvars
import dataclasses
import gc
import sys

import pytest
from loaders import Loader

from acgsperf.cache.single_flight import Flight
from acgsperf.errors import CacheError, LoadCancelledError, LoadError, LoadTimeoutError


async def waiters(cache, loader, number):
    tasks = [asyncio.create_task(cache.get_or_load("key", loader)) for _ in range(number)]
    await loader.began.wait()
    return tasks


async def test_ten_thousand_concurrent_callers_share_one_load(open_cache):
    cache = await open_cache()
    loader = Loader()
    assert await asyncio.gather(*(cache.get_or_load("key", loader) for _ in range(10_000))) == ["loaded"] * 10_000
    assert loader.calls == 1
    assert cache.stats().loads == 1
    assert cache.stats().joined == 9_999


async def test_ten_thousand_concurrent_callers_share_one_load_with_lower_tiers(open_cache, l2, l3):
    cache = await open_cache(l2, l3)
    loader = Loader()
    assert await asyncio.gather(*(cache.get_or_load("key", loader) for _ in range(10_000))) == ["loaded"] * 10_000
    assert loader.calls == 1


async def test_different_keys_are_loaded_concurrently(open_cache, settle):
    cache = await open_cache()
    loader = Loader(gate_open=False)
    tasks = [asyncio.create_task(cache.get_or_load(key, loader)) for key in "abc"]
    await settle()
    assert loader.calls == 3
    loader.gate.set()
    assert await asyncio.gather(*tasks) == ["loaded"] * 3


@pytest.mark.parametrize("leaving", [0, 2, 4], ids=["first", "middle", "last"])
async def test_cancelling_one_caller_does_not_affect_the_others(open_cache, leaving):
    cache = await open_cache()
    loader = Loader(gate_open=False)
    tasks = await waiters(cache, loader, 5)
    tasks[leaving].cancel()
    await asyncio.wait([tasks[leaving]])
    assert tasks[leaving].cancelled()
    loader.gate.set()
    others = [task for i, task in enumerate(tasks) if i != leaving]
    assert await asyncio.gather(*others) == ["loaded"] * 4
    assert (loader.calls, loader.cancelled) == (1, 0)
    assert cache.get_local("key") == "loaded"


async def test_the_load_is_cancelled_when_its_last_waiter_leaves(open_cache, settle):
    cache = await open_cache()
    loader = Loader(gate_open=False)
    tasks = await waiters(cache, loader, 5)
    for task in tasks[:-1]:
        task.cancel()
    await settle()
    assert loader.cancelled == 0
    tasks[-1].cancel()
    await settle()
    assert loader.cancelled == 1
    assert all(task.cancelled() for task in tasks)
    assert cache.stats().loading == 0
    assert cache.stats().load_errors == 0
    assert await cache.get_or_load("key", Loader("again")) == "again"


async def test_a_caller_of_several_loads_cancels_those_that_only_it_waits_for(open_cache, settle):
    cache = await open_cache()
    loader = Loader(gate_open=False)
    (alone,) = await waiters(cache, loader, 1)
    cancelled = asyncio.Event()

    async def load_many(keys):
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    call = asyncio.create_task(cache.get_or_load_many(["key", "other"], load_many))
    await settle()
    call.cancel()
    await asyncio.wait_for(cancelled.wait(), 5)
    loader.gate.set()
    assert await alone == "loaded"


async def test_a_caller_that_arrives_while_a_cancelled_load_still_ends_starts_a_new_load(open_cache):
    cache = await open_cache()

    async def stubborn(key):
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await asyncio.sleep(0)
            return "too late"

    task = asyncio.create_task(cache.get_or_load("key", stubborn))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    assert await asyncio.gather(task, return_exceptions=True)
    assert await cache.get_or_load("key", Loader("mine")) == "mine"
    await asyncio.sleep(0.001)
    assert cache.get_local("key") == "mine"


@pytest.mark.parametrize("iterations", range(5))
async def test_cancelling_one_caller_while_the_load_ends_does_not_affect_the_others(open_cache, iterations):
    cache = await open_cache()
    loader = Loader(gate_open=False)
    tasks = await waiters(cache, loader, 3)
    loader.gate.set()
    for _ in range(iterations):
        await asyncio.sleep(0)
    tasks[0].cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert results[1:] == ["loaded"] * 2


async def test_every_waiter_gets_the_error_and_it_is_not_cached(open_cache):
    cache = await open_cache()
    loader = Loader(error=KeyError("gone"), gate_open=False)
    tasks = await waiters(cache, loader, 100)
    loader.gate.set()
    errors = await asyncio.gather(*tasks, return_exceptions=True)
    assert [repr(error) for error in errors] == ["KeyError('gone')"] * 100
    assert await cache.get_or_load("key", Loader()) == "loaded"
    assert cache.stats().load_errors == 1


async def test_each_waiter_raises_its_own_copy_of_the_error_with_the_loaders_traceback(open_cache):
    cache = await open_cache()
    loader = Loader(error=KeyError("gone"), gate_open=False)
    tasks = await waiters(cache, loader, 100)
    loader.gate.set()
    errors = await asyncio.gather(*tasks, return_exceptions=True)
    assert len({id(error) for error in errors}) == 100
    depths = set()
    for error in errors:
        names, trace = [], error.__traceback__
        while trace is not None:
            names.append(trace.tb_frame.f_code.co_name)
            trace = trace.tb_next
        assert names[-1] == "__call__"
        depths.add(len(names))
    assert len(depths) == 1


class CodeError(Exception):
    """Its `__init__` takes other arguments than its base class."""

    def __init__(self, code):
        super().__init__(f"failed with {code}")
        self.code = code


class PickyError(Exception):
    """It cannot be made from its `args`."""

    def __new__(cls, one, two):
        return super().__new__(cls, one)

    def __init__(self, one, two):
        super().__init__(one)


@dataclasses.dataclass(frozen=True)
class FrozenError(Exception):
    """Its attributes cannot be set."""

    code: int


class SlottedError(Exception):
    """Its `code` is not in its `__dict__`."""

    __slots__ = ("code",)

    def __init__(self, code, words):
        super().__init__(words)
        self.code = code


class MissingError(ImportError):
    """Its `name` is not in its `__dict__`."""

    def __init__(self, name):
        super().__init__(f"no {name}", name=name)


@pytest.mark.parametrize(
    ("error", "held"),
    [
        (FrozenError(3), {"code": 3}),
        (SlottedError(4, "words"), {"code": 4}),
        (MissingError("foo"), {"name": "foo", "msg": "no foo"}),
        (OSError(2, "no file", "here"), {"errno": 2, "filename": "here"}),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), {"reason": "bad", "end": 1}),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
async def test_an_error_keeps_its_attributes(open_cache, error, held):
    cache = await open_cache()
    message = str(error)
    with pytest.raises(type(error)) as caught:
        await cache.get_or_load("key", Loader(error=error))
    assert str(caught.value) == message
    assert {name: getattr(caught.value, name) for name in held} == held


async def test_a_copied_error_has_the_same_message(open_cache):
    cache = await open_cache()
    error = CodeError(5)
    with pytest.raises(CodeError, match=r"^failed with 5$") as caught:
        await cache.get_or_load("key", Loader(error=error))
    assert (caught.value.code, caught.value.args) == (5, error.args)
    assert caught.value is not error


async def test_an_error_that_cannot_be_copied_is_raised_as_it_is(open_cache):
    cache = await open_cache()
    error = PickyError(1, 2)
    tasks = [asyncio.create_task(cache.get_or_load("key", Loader(error=error))) for _ in range(3)]
    assert await asyncio.gather(*tasks, return_exceptions=True) == [error] * 3


async def test_a_loader_that_waits_for_its_own_load_gets_an_error(open_cache):
    cache, other = await open_cache(), await open_cache()

    async def own(key):
        return await cache.get_or_load(key, own)

    with pytest.raises(LoadError, match="the load of 'key' would wait for itself: a loader must not call the cache"):
        await cache.get_or_load("key", own)

    async def there(key):
        return await other.get_or_load(key, back)

    async def back(key):
        return await cache.get_or_load(key, there)

    with pytest.raises(LoadError, match="would wait for itself"):
        await cache.get_or_load("around", there)
    assert len(cache._loading.flights) == len(other._loading.flights) == 0
    assert await cache.get_or_load("key", Loader()) == "loaded"


async def in_gather(call):
    return (await asyncio.gather(call))[0]


async def in_group(call):
    async with asyncio.TaskGroup() as group:
        task = group.create_task(call)
    return task.result()


async def in_task(call):
    return await asyncio.create_task(call)


async def in_wait(call):
    (done,), _ = await asyncio.wait([asyncio.create_task(call)])
    return done.result()


@pytest.mark.parametrize("wait", [in_gather, in_group, in_task, in_wait, lambda call: asyncio.wait_for(call, 60)])
async def test_a_loader_that_waits_for_its_own_load_through_a_task_gets_an_error(open_cache, wait):
    cache, other = await open_cache(), await open_cache()

    async def own(key):
        return await wait(cache.get_or_load(key, own))

    async def there(key):
        return await wait(other.get_or_load(key, back))

    async def back(key):
        return await wait(cache.get_or_load(key, there))

    for loader in (own, there):
        with pytest.raises((LoadError, ExceptionGroup)) as caught:
            await asyncio.wait_for(cache.get_or_load("key", loader), 10)
        error = caught.value
        while isinstance(error, ExceptionGroup):
            (error,) = error.exceptions
        assert isinstance(error, LoadError)
        assert "would wait for itself" in str(error)
    assert len(cache._loading.flights) == len(other._loading.flights) == 0


async def test_a_task_outside_of_the_loaders_context_may_wait_for_the_load(open_cache):
    cache = await open_cache()
    started = []

    async def child(key):
        return f"child of {await cache.get_or_load('parent', parent)}"

    async def parent(key):
        call = cache.get_or_load("child", child)
        started.append(asyncio.create_task(call, context=contextvars.Context()))
        await asyncio.sleep(0.01)
        return "parent"

    assert await cache.get_or_load("parent", parent) == "parent"
    assert await started[0] == "child of parent"


async def test_a_task_that_outlives_its_load_may_load_the_key_again(open_cache):
    cache = await open_cache()
    started = []

    async def later():
        await asyncio.sleep(0.01)
        await cache.delete("key")
        return await cache.get_or_load("key", loader)

    async def loader(key):
        if not started:
            started.append(asyncio.create_task(later()))
        return "loaded"

    assert await cache.get_or_load("key", loader) == "loaded"
    assert await started[0] == "loaded"


async def test_two_loaders_that_wait_for_each_other_get_an_error(open_cache):
    cache = await open_cache()

    async def crosswise(key):
        await asyncio.sleep(0)
        return await cache.get_or_load({"a": "b", "b": "a"}[key], crosswise)

    tasks = [asyncio.create_task(cache.get_or_load(key, crosswise)) for key in "ab"]
    errors = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 5)
    assert {type(error) for error in errors} == {LoadError}


async def test_a_load_is_cancelled_when_its_last_waiter_leaves_although_another_load_would_have_waited_for_it(
    open_cache, settle
):
    cache = await open_cache()

    async def outer(key):
        with pytest.raises(LoadError, match="would wait for itself"):
            await cache.get_or_load("inner", inner)
        await asyncio.Event().wait()

    async def inner(key):
        return await cache.get_or_load("outer", outer)

    call = asyncio.create_task(cache.get_or_load("outer", outer))
    await settle()
    call.cancel()
    await settle()
    assert len(cache._loading.flights) == 0


async def test_a_loader_that_has_stopped_waiting_for_a_load_may_be_waited_for_by_it(open_cache):
    cache = await open_cache()
    stopped = asyncio.Event()

    async def impatient(key):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(cache.get_or_load("slow", slow), 0.01)
        stopped.set()
        await asyncio.sleep(0.01)
        return "a value"

    async def slow(key):
        await stopped.wait()
        return await cache.get_or_load("impatient", impatient)

    calls = cache.get_or_load("impatient", impatient), cache.get_or_load("slow", slow)
    assert await asyncio.wait_for(asyncio.gather(*calls), 5) == ["a value"] * 2


async def test_a_loader_may_load_another_key_several_times_concurrently(open_cache):
    cache = await open_cache()

    async def sum_of(key):
        return sum(await asyncio.gather(*(cache.get_or_load("part", Loader(2)) for _ in range(3))))

    assert await asyncio.gather(*(cache.get_or_load(f"sum {i % 2}", sum_of) for i in range(4))) == [6] * 4


async def test_a_loader_that_cancels_itself_does_not_cancel_its_callers(open_cache):
    cache = await open_cache()
    loader = Loader(error=asyncio.CancelledError(), gate_open=False)
    tasks = await waiters(cache, loader, 3)
    loader.gate.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results] == [LoadCancelledError] * 3
    assert str(results[0]) == "the loader cancelled the load of 'key'"
    assert not any(task.cancelled() for task in tasks)


class Halt(BaseException):
    """An error that is no Exception, such as a library may define for its own use."""


async def test_an_error_that_is_no_exception_reaches_every_caller_and_nothing_else(open_cache, settle, caplog):
    cache = await open_cache()
    loader = Loader(error=Halt("now"), gate_open=False)
    tasks = await waiters(cache, loader, 3)
    loader.gate.set()
    results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 5)
    assert [(type(result), str(result)) for result in results] == [(Halt, "now")] * 3
    del tasks, results
    await settle()
    gc.collect()
    assert "never retrieved" not in caplog.text
    assert await cache.get_or_load("key", Loader()) == "loaded"


async def failing(key):
    raise ValueError(key)


async def halting(key):
    raise Halt(key)


@pytest.mark.parametrize("loader", [Loader(), failing, halting])
async def test_a_load_is_freed_when_it_has_ended(open_cache, clock, settle, loader):
    cache = await open_cache(ttl=1, stale_ttl=60, soft_timeout=0, hard_timeout=60)
    await cache.set("key", "old")
    clock.advance(2)
    gc.collect()
    gc.disable()
    try:
        # Nobody waits for it, and nobody takes its error.
        assert await cache.get_or_load("key", loader) == "old"
        await settle()
        assert cache.stats().loads == 1
        assert not [found for found in gc.get_objects() if type(found) is Flight]
    finally:
        gc.enable()


async def test_a_load_that_began_before_the_backplane_fell_silent_is_not_joined_and_not_kept(
    open_cache, l2, clock, settle
):
    cache = await open_cache(l2)
    old = Loader("old", gate_open=False)
    task = asyncio.create_task(cache.get_or_load("key", old))
    await old.began.wait()
    clock.advance(1)
    cache._l1.answer_until(clock())
    clock.advance(1)
    assert await cache.get_or_load("key", Loader("new")) == "new"
    cache._l1.answer_until(float("inf"))
    old.gate.set()
    assert await asyncio.wait_for(task, 5) == "old"
    await settle()
    assert await cache.get("key") == "new"
    assert l2.data["test", "key"].value == "new"


async def test_a_hanging_load_ends_at_the_hard_timeout(open_cache):
    cache = await open_cache(hard_timeout=0.02)
    loader = Loader(gate_open=False)
    results = await asyncio.gather(*(cache.get_or_load("key", loader) for _ in range(3)), return_exceptions=True)
    assert [type(result) for result in results] == [LoadTimeoutError] * 3
    assert str(results[0]) == "the load of 'key' took longer than hard_timeout (0.02 s)"
    assert isinstance(results[0], TimeoutError)
    assert (loader.calls, loader.cancelled) == (1, 1)
    assert cache.stats().load_timeouts == 1
    assert await cache.get_or_load("key", Loader()) == "loaded"


async def test_a_load_that_ignores_its_cancellation_does_not_block_its_waiters(open_cache):
    cache = await open_cache(hard_timeout=0.01)
    release = asyncio.Event()

    async def ignoring(key):
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue
        return "late"

    with pytest.raises(LoadTimeoutError):
        await cache.get_or_load("key", ignoring)
    release.set()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert cache.get_local("key") is None


async def test_closing_the_cache_cancels_its_loads_and_its_callers_get_an_error(open_cache):
    cache = await open_cache()
    loader = Loader(gate_open=False)
    tasks = await waiters(cache, loader, 2)
    await cache.close()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results] == [CacheError] * 2
    assert loader.cancelled == 1


async def test_closing_the_cache_logs_the_loads_that_ignore_their_cancellation(open_cache, monkeypatch, caplog):
    monkeypatch.setattr("acgsperf.cache.parts._CLOSE_GRACE_S", 0.01)
    cache = await open_cache()
    release, ended = asyncio.Event(), asyncio.Event()

    async def ignoring(key):
        try:
            await release.wait()
        except asyncio.CancelledError:
            await release.wait()
        ended.set()

    task = asyncio.create_task(cache.get_or_load("key", ignoring))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await cache.close()
    with pytest.raises(CacheError, match=r"^cache 'test' was closed during the load of 'key'$"):
        await task
    assert caplog.messages == [
        "cache 'test': 1 loads ignored their cancellation for 0.01 s; closing without waiting for them"
    ]
    release.set()
    await ended.wait()
    await asyncio.sleep(0)


async def test_a_cache_that_is_closed_while_a_caller_reads_the_tiers_starts_no_load(open_cache, l2, settle):
    cache = await open_cache(l2)
    l2.gate.clear()
    loader = Loader()
    task = asyncio.create_task(cache.get_or_load("key", loader))
    await settle()
    closing = asyncio.create_task(cache.close())
    await settle()
    l2.gate.set()
    with pytest.raises(CacheError, match="closed"):
        await task
    await closing
    assert loader.calls == 0


async def test_a_load_runs_in_the_context_of_the_caller_that_started_it(open_cache):
    who = contextvars.ContextVar("who")
    cache = await open_cache()

    async def loader(key):
        await asyncio.sleep(0.001)
        return who.get()

    who.set("first")
    task = asyncio.create_task(cache.get_or_load("key", loader))
    await asyncio.sleep(0)
    who.set("second")
    assert await cache.get_or_load("key", loader) == "first"
    assert await task == "first"


async def test_a_load_may_load_other_keys(open_cache):
    cache = await open_cache()

    async def outer(key):
        return "outer " + await cache.get_or_load("inner", Loader("inner"))

    assert await cache.get_or_load("outer", outer) == "outer inner"
    assert cache.get_local("inner") == "inner"


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with Python 3.12")
async def test_loads_work_with_eager_tasks(open_cache, clock, l2, l3, settle):
    asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
    cache = await open_cache(l2, l3, hard_timeout=60, ttl=60, stale_ttl=60)
    assert await cache.get_or_load("key", Loader()) == "loaded"
    alone = await open_cache(ttl=60, stale_ttl=60)
    assert await alone.get_or_load("key", Loader()) == "loaded"
    assert await asyncio.gather(*(alone.get_or_load("many", Loader()) for _ in range(10))) == ["loaded"] * 10
    clock.advance(60)
    assert await alone.get_or_load("key", Loader("new")) == "loaded"
    assert await alone.get("key") == "new"
    with pytest.raises(OSError, match="down"):
        await alone.get_or_load("other", Loader(error=OSError("down")))


async def test_a_set_during_a_load_wins(open_cache, l2, l3, settle):
    cache = await open_cache(l2, l3)
    loader = Loader("old", gate_open=False)
    (task,) = await waiters(cache, loader, 1)
    await cache.set("key", "new")
    loader.gate.set()
    assert await task == "old"
    await settle()
    assert await cache.get("key") == "new"
    assert (l2["key"].value, l3["key"].value) == ("new", "new")


@pytest.mark.parametrize("how", ["delete", "tag", "clear"])
async def test_a_removal_during_a_load_wins_and_later_callers_start_a_new_load(open_cache, l2, l3, settle, how):
    cache = await open_cache(l2, l3)
    loader = Loader("old", gate_open=False)
    task = asyncio.create_task(cache.get_or_load("key", loader, tags=["t"]))
    await loader.began.wait()
    await {"delete": lambda: cache.delete("key"), "tag": lambda: cache.invalidate_tag("t"), "clear": cache.clear}[how]()
    later = asyncio.create_task(cache.get_or_load("key", Loader("new")))
    await settle()
    loader.gate.set()
    assert await task == "old"
    assert await later == "new"
    await settle()
    assert await cache.get("key") == "new"
    assert (l2["key"].value, l3["key"].value) == ("new", "new")


async def test_a_loader_that_returns_no_awaitable_raises_a_type_error(open_cache):
    cache = await open_cache()
    with pytest.raises(TypeError):
        await cache.get_or_load("key", lambda key: "plain")


CHANGES = {
    "nothing": lambda cache: asyncio.sleep(0),
    "delete": lambda cache: cache.delete("key"),
    "invalidate_tag": lambda cache: cache.invalidate_tag("tag"),
    "clear": lambda cache: cache.clear(),
}


@pytest.mark.parametrize("change", CHANGES)
async def test_a_load_that_ends_during_a_callers_read_is_shared(open_cache, l2, settle, change):
    cache = await open_cache(l2, size=1)
    loader = Loader()
    slow_gate, fast_gate = asyncio.Event(), l2.gate
    l2.gate = slow_gate
    slow = asyncio.create_task(cache.get_or_load("key", loader, tags=["tag"]))
    await settle()
    l2.gate = fast_gate
    assert await cache.get_or_load("key", loader, tags=["tag"]) == "loaded"
    await CHANGES[change](cache)
    # This evicts the key from L1.
    await cache.set("other", 1)
    assert cache.get_local("key") is None
    slow_gate.set()
    assert await slow == "loaded"
    assert loader.calls == (1 if change == "nothing" else 2)
    assert not cache._parts.loading._recent._reads
    assert not cache._parts.loading._recent._entries


@pytest.mark.parametrize("change", CHANGES)
async def test_a_loaded_value_that_is_queued_for_the_tiers_is_found(open_cache, l2, change):
    cache = await open_cache(l2, size=1)
    loader = Loader()
    assert await cache.get_or_load("key", loader, tags=["tag"]) == "loaded"
    assert "key" not in l2
    # This evicts the key before the queue has been written.
    cache._parts.l1.lru.set("other", 1)
    await CHANGES[change](cache)
    assert await cache.get_or_load("key", loader, tags=["tag"]) == "loaded"
    assert loader.calls == (1 if change == "nothing" else 2)
