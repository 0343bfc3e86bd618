"""Simultaneous misses of one key call the application once, unless its response cannot be shared."""

import asyncio

import pytest

from acgsperf import LRUCache, TieredCache, weigh_bytes

SHARED = [("cache-control", "max-age=60")]


@pytest.fixture
def client(connect, origin, cache):
    origin.headers = list(SHARED)
    return connect(origin, cache=cache)


@pytest.fixture
def gate(origin):
    """The application waits for it before it answers."""
    opened = asyncio.Event()
    origin.wait = opened.wait
    return opened


async def called(origin, times):
    """Wait until the application was called so many times, and fail if it is called again."""
    async with asyncio.timeout(10):
        while origin.calls < times:
            origin.called.clear()
            await origin.called.wait()
    # Nothing here waits for a server, so a task that would call it needs only some turns of the event loop.
    for _ in range(20):
        await asyncio.sleep(0)
    assert origin.calls == times


async def test_simultaneous_misses_call_the_application_once(client, origin, gate):
    tasks = [asyncio.create_task(client.get("/a")) for _ in range(50)]
    await called(origin, 1)
    gate.set()
    assert {answer.text for answer in await asyncio.gather(*tasks)} == {"answer 1"}
    counts = client.middleware.counts()
    assert (origin.calls, counts.misses, counts.hits, counts.stored) == (1, 1, 49, 1)


async def test_different_keys_do_not_wait_for_each_other(client, origin, gate):
    tasks = [asyncio.create_task(client.get(f"/{i}")) for i in range(3)]
    await called(origin, 3)
    gate.set()
    await asyncio.gather(*tasks)


async def test_variants_wait_for_each_other_once(client, origin, gate):
    origin.headers.append(("vary", "accept"))
    tasks = [asyncio.create_task(client.get("/a", headers={"accept": str(i % 3)})) for i in range(30)]
    await called(origin, 1)
    gate.set()
    await asyncio.gather(*tasks)
    assert origin.calls == 3


@pytest.mark.parametrize("cache_control", ["no-store", "private", "no-cache", "max-age=0"])
async def test_requests_do_not_wait_for_a_response_that_cannot_be_shared(client, origin, gate, cache_control):
    origin.headers = [("cache-control", cache_control), ("etag", '"v1"')]
    gate.set()
    await client.get("/a")
    gate.clear()
    tasks = [asyncio.create_task(client.get("/a")) for _ in range(5)]
    await called(origin, 6)
    gate.set()
    await asyncio.gather(*tasks)


@pytest.mark.parametrize(("status", "cache_control"), [(503, "no-store"), (200, "no-store")])
async def test_requests_wait_for_each_other_again_after_a_response_that_is_shared(
    client, origin, gate, clock, status, cache_control
):
    gate.set()
    origin.status, origin.headers = status, [("cache-control", cache_control)]
    await client.get("/a")
    origin.status, origin.headers = 200, list(SHARED)
    if status == 200:
        await client.get("/a")
        clock.advance(60)
    gate.clear()
    calls = origin.calls
    tasks = [asyncio.create_task(client.get("/a")) for _ in range(5)]
    await called(origin, calls + 1)
    gate.set()
    await asyncio.gather(*tasks)


async def test_requests_go_on_as_soon_as_the_headers_say_that_a_response_is_not_shared(connect, cache):
    started = asyncio.Barrier(3)

    async def endless(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"cache-control", b"no-store")]})
        # The first response ends only after all three requests have called the application.
        await started.wait()
        await send({"type": "http.response.body", "body": b""})

    client = connect(endless, cache=cache)
    async with asyncio.timeout(10):
        await asyncio.gather(*(client.get("/a") for _ in range(3)))


async def test_a_failure_ends_only_its_own_request(client, origin, gate):
    async def fail_first():
        is_first = origin.calls == 1
        await gate.wait()
        if is_first:
            raise RuntimeError("the first")

    origin.wait = fail_first
    tasks = [asyncio.create_task(client.get("/a")) for _ in range(3)]
    await called(origin, 1)
    gate.set()
    first, *others = await asyncio.gather(*tasks, return_exceptions=True)
    assert str(first) == "the first"
    assert [answer.status_code for answer in others] == [200, 200]


async def test_a_client_that_disconnects_does_not_cancel_the_others(client, origin, gate):
    first = asyncio.create_task(client.get("/a"))
    await called(origin, 1)
    tasks = [asyncio.create_task(client.get("/a")) for _ in range(5)]
    await called(origin, 1)
    first.cancel()
    await called(origin, 2)
    gate.set()
    assert {answer.text for answer in await asyncio.gather(*tasks)} == {"answer 2"}


async def test_a_request_after_a_write_does_not_get_the_response_from_before(client, origin, gate):
    before = asyncio.create_task(client.get("/a"))
    await called(origin, 1)
    origin.wait = None
    await client.post("/a")
    assert (await client.get("/a")).text == "answer 3"
    gate.set()
    assert (await before).status_code == 200
    assert (await client.get("/a")).text == "answer 3"


async def test_requests_with_credentials_do_not_wait_for_those_without(client, origin, gate):
    tasks = [asyncio.create_task(client.get("/a", headers=headers)) for headers in ({}, {"authorization": "x"})]
    await called(origin, 2)
    gate.set()
    await asyncio.gather(*tasks)
    assert origin.calls == 2


async def test_simultaneous_validations_are_one(client, origin, clock, gate):
    origin.headers.append(("etag", '"v1"'))
    origin.validates = True
    gate.set()
    await client.get("/a")
    clock.advance(60)
    gate.clear()
    tasks = [asyncio.create_task(client.get("/a")) for _ in range(10)]
    await called(origin, 2)
    gate.set()
    assert {answer.text for answer in await asyncio.gather(*tasks)} == {"answer 1"}
    assert origin.calls == 2


async def test_simultaneous_misses_share_a_response_that_may_only_be_served_stale(client, origin, gate):
    origin.headers = [("cache-control", "max-age=0, stale-while-revalidate=60")]
    tasks = [asyncio.create_task(client.get("/a")) for _ in range(10)]
    await called(origin, 1)
    gate.set()
    assert {answer.text for answer in await asyncio.gather(*tasks)} == {"answer 1"}
    await client.middleware._serving.end_revalidations()
    assert origin.calls == 2


@pytest.mark.parametrize("failure", [500, 503, "raises", "raises late"])
async def test_an_application_that_fails_is_called_once_for_simultaneous_requests(
    client, origin, gate, clock, failure, caplog
):
    origin.headers = [("cache-control", "max-age=10, stale-if-error=600")]
    gate.set()
    await client.get("/a")
    clock.advance(10)

    async def fail():
        await gate.wait()
        if failure == "raises":
            raise RuntimeError("on purpose")

    origin.wait = fail
    if failure == "raises late":
        origin.status, origin.failure = 503, RuntimeError("on purpose")
    elif failure != "raises":
        origin.status = failure
    for calls in (2, 3):
        gate.clear()
        tasks = [asyncio.create_task(client.get("/a")) for _ in range(20)]
        await called(origin, calls)
        gate.set()
        assert {answer.text for answer in await asyncio.gather(*tasks)} == {"answer 1"}
        assert origin.calls == calls
    assert caplog.text.count("serving the stale response") >= 2


async def test_requests_go_on_as_soon_as_a_body_turns_out_to_be_too_large(connect, cache):
    started = asyncio.Barrier(3)

    async def large(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"cache-control", b"max-age=60")]})
        await send({"type": "http.response.body", "body": b"x" * 2_000, "more_body": True})
        # The first response ends only after all three requests have called the application.
        await started.wait()
        await send({"type": "http.response.body", "body": b""})

    client = connect(large, cache=cache, max_body_bytes=1_000)
    # Less than requests wait for a body that will be stored.
    async with asyncio.timeout(4):
        await asyncio.gather(*(client.get("/a") for _ in range(3)))


async def test_requests_get_a_complete_response_before_the_background_task_ends(connect, origin, cache):
    async def app(scope, receive, send):
        await origin(scope, receive, send)
        await task_may_end.wait()

    task_may_end = asyncio.Event()
    origin.headers = [("cache-control", "max-age=60"), ("vary", "accept")]
    client = connect(app, cache=cache)
    first = asyncio.create_task(client.get("/a"))
    await called(origin, 1)
    async with asyncio.timeout(10):
        assert (await client.get("/a")).text == "answer 1"
    # It is not stored yet, and does not answer a request for another variant.
    assert client.middleware.counts().stored == 0
    other = asyncio.create_task(client.get("/a", headers={"accept": "text/plain"}))
    await called(origin, 2)
    task_may_end.set()
    assert [(await task).text for task in (first, other)] == ["answer 1", "answer 2"]


@pytest.mark.parametrize(
    ("method", "headers", "status"),
    [("HEAD", {}, 200), ("GET", {"range": "bytes=9-"}, 416), ("GET", {"range": "bytes=0-1"}, 206)],
)
async def test_a_head_or_a_range_does_not_end_the_sharing(client, origin, gate, method, headers, status):
    gate.set()
    origin.status = status
    await client.request(method, "/a", headers=headers)
    origin.status, origin.calls = 200, 0
    gate.clear()
    tasks = [asyncio.create_task(client.get("/a")) for _ in range(5)]
    await called(origin, 1)
    gate.set()
    await asyncio.gather(*tasks)
    assert origin.calls == 1


async def test_a_response_that_no_tier_can_keep_is_shared_all_the_same(connect, origin, gate, clock):
    async with TieredCache(
        LRUCache(100, maxweight=2_000, weigher=weigh_bytes, clock=clock), namespace="http", clock=clock
    ) as cache:
        origin.headers, origin.body = list(SHARED), [b"x" * 10_000]
        client = connect(origin, cache=cache)
        tasks = [asyncio.create_task(client.get("/a")) for _ in range(5)]
        await called(origin, 1)
        gate.set()
        await asyncio.gather(*tasks)
        assert origin.calls == 1


def scope_of(path):
    raw = path.encode()
    scope = {"type": "http", "method": "GET", "scheme": "http", "path": path, "raw_path": raw, "query_string": b""}
    return {**scope, "headers": [(b"host", b"test")]}


class LeavingClient:
    """A client that leaves when a test says so. A server has a message for that, and does not cancel."""

    def __init__(self, middleware, path="/a"):
        self.leaves = asyncio.Event()
        self.sent = []
        self.has_two = asyncio.Event()
        self._messages = [{"type": "http.request", "body": b"", "more_body": False}]
        self.task = asyncio.create_task(middleware(scope_of(path), self.receive, self.send))

    async def receive(self):
        if self._messages:
            return self._messages.pop()
        await self.leaves.wait()
        return {"type": "http.disconnect"}

    async def send(self, message):
        self.sent.append(message)
        if len(self.sent) == 2:
            self.has_two.set()


async def test_a_call_whose_client_has_left_keeps_nobody_waiting(client, origin, gate):
    first = LeavingClient(client.middleware)
    await called(origin, 1)
    others = [asyncio.create_task(client.get("/a")) for _ in range(5)]
    await called(origin, 1)
    first.leaves.set()
    await called(origin, 2)
    gate.set()
    assert {answer.text for answer in await asyncio.gather(*others)} == {"answer 2"}
    await first.task
    assert origin.calls == 2


async def test_clients_that_leave_cause_no_stampede(client, origin, gate):
    middleware = client.middleware
    leaving = [LeavingClient(middleware)]
    await called(origin, 1)
    leaving += [LeavingClient(middleware) for _ in range(3)]
    await called(origin, 1)
    others = [asyncio.create_task(client.get("/a")) for _ in range(20)]
    await called(origin, 1)
    for one in reversed(leaving):
        one.leaves.set()
        for _ in range(5):
            await asyncio.sleep(0)
    await called(origin, 2)
    gate.set()
    assert {answer.text for answer in await asyncio.gather(*others)} == {"answer 2"}
    await asyncio.gather(*(one.task for one in leaving))
    assert [one.sent for one in leaving[1:]] == [[], [], []]


async def test_nobody_gets_what_an_application_sends_after_its_client_has_left(connect, cache):
    async def app(scope, receive, send):
        calls.append(scope)
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"cache-control", b"max-age=60")]})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        if len(calls) == 1:
            assert (await receive())["type"] == "http.disconnect"
            await send({"type": "http.response.body", "body": b""})
            return
        await send({"type": "http.response.body", "body": b" and half"})

    calls = []
    client = connect(app, cache=cache)
    first = LeavingClient(client.middleware)
    async with asyncio.timeout(10):
        await first.has_two.wait()
    other = asyncio.create_task(client.get("/a"))
    for _ in range(20):
        await asyncio.sleep(0)
    first.leaves.set()
    assert (await other).text == "half and half"
    await first.task


@pytest.mark.parametrize("extra", [("set-cookie", "a=1"), ("cache-control", "private"), ("cache-control", "no-store")])
async def test_a_304_for_one_client_does_not_answer_others(client, origin, gate, clock, extra):
    gate.set()
    origin.validates = True
    origin.headers = [("cache-control", "max-age=10"), ("etag", '"v1"'), ("vary", "accept")]
    await client.get("/a")
    clock.advance(10)
    gate.clear()
    first = asyncio.create_task(client.get("/a"))
    await called(origin, 2)
    other = asyncio.create_task(client.get("/a", headers={"cache-control": "max-stale=1"}))
    clock.advance(5)
    for _ in range(20):
        await asyncio.sleep(0)
    origin.headers.append(extra)
    gate.set()
    await first
    assert "set-cookie" not in (await other).headers


@pytest.mark.parametrize("when", ["in flight", "before storage"])
@pytest.mark.parametrize("how", ["path", "tag"])
async def test_a_request_after_a_purge_does_not_get_what_was_computed_before(connect, origin, cache, when, how):
    async def app(scope, receive, send):
        await origin(scope, receive, send)
        await task_may_end.wait()

    task_may_end, go_on = asyncio.Event(), asyncio.Event()
    if when == "in flight":
        origin.wait = go_on.wait
    origin.headers = [*SHARED, ("cache-tag", "a")]
    client = connect(app, cache=cache)
    first = asyncio.create_task(client.get("/a"))
    await called(origin, 1)
    await client.middleware.purge(**{how: "/a" if how == "path" else "a"})
    second = asyncio.create_task(client.get("/a"))
    for _ in range(20):
        await asyncio.sleep(0)
    go_on.set()
    task_may_end.set()
    await asyncio.gather(first, second)
    assert origin.calls == 2
