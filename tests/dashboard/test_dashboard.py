"""The dashboard under uvicorn: the page, the stream of events, what a proxy does to the path, and the invalidation."""

import asyncio
import json
import socket
import time
from urllib.parse import urljoin

import httpx
import pytest
import uvicorn
from msgspec.structs import replace
from serving import running
from watched import TOKEN, Application, make_app

from acgsperf import LRUCache, PerformanceService, Settings, TieredCache
from acgsperf.asgi import PerformanceMiddleware
from acgsperf.dashboard import Dashboard, Point, Snapshot, SnapshotSource, TrendState
from acgsperf.dashboard.assets import assets
from acgsperf.dashboard.viewers import Viewer, Viewers
from acgsperf.errors import CacheError

KILOBYTE = 1000


def client(url):
    return httpx.Client(base_url=url, timeout=60, trust_env=False)


def read_events(lines, count):
    """The next events, each with its name and its data."""
    found, name = [], ""
    for line in lines:
        field, _, value = line.partition(": ")
        if field == "event":
            name = value
        elif field == "data":
            found.append((name, json.loads(value)))
            if len(found) == count:
                break
    return found


async def until(condition):
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0.01)


class Stream:
    """A viewer that is part of this event loop."""

    def __init__(self, dashboard, bytes_per_s=None):
        self.sent = asyncio.Queue()
        self.left = asyncio.Event()
        self.reads = asyncio.Event()
        self.reads.set()
        self._bytes_per_s = bytes_per_s
        scope = {"type": "http", "method": "GET", "path": "/events", "root_path": "", "headers": []}
        self.task = asyncio.create_task(dashboard(scope, self._receive, self._send))

    async def _receive(self):
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message):
        await self.reads.wait()
        if self._bytes_per_s is not None:
            await asyncio.sleep(len(message.get("body", b"")) / self._bytes_per_s)
        self.sent.put_nowait(message)

    async def event(self):
        """The next event, without the header of the response."""
        body = b""
        while not body.endswith(b"\n\n"):
            body += (await asyncio.wait_for(self.sent.get(), 30)).get("body", b"")
        (found,) = read_events(body.decode().splitlines(), 1)
        return found

    async def leave(self):
        self.left.set()
        await asyncio.wait_for(self.task, 30)


class Numbered(SnapshotSource):
    """Counts its snapshots."""

    def __init__(self):
        self.taken = self.started = self.stopped = 0
        self.problem = None

    async def snapshot(self):
        self.taken += 1
        if self.problem is not None:
            raise self.problem
        return Snapshot("numbered", Point(at=float(self.taken)), 1.0, 1, self.taken, ())

    def start(self):
        self.started += 1

    def stop(self):
        self.stopped += 1


def test_the_page_and_its_files_are_small_and_have_strict_headers(served):
    total = 0
    with client(served.url) as http:
        for name in ("", *assets()):
            answer = http.get(f"/dashboard/{name}")
            assert answer.status_code == 200
            policy = answer.headers["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "frame-ancestors 'none'" in policy
            assert "unsafe" not in policy
            assert answer.headers["x-content-type-options"] == "nosniff"
            total += len(answer.content) if name else 0
        assert http.get("/dashboard/", headers={"if-none-match": answer.headers["etag"]}).status_code == 200
        again = http.get(f"/dashboard/{name}", headers={"if-none-match": answer.headers["etag"]})
        assert again.status_code == 304
        assert http.get("/dashboard/nothing").status_code == 404
        assert http.post("/dashboard/").status_code == 405
    assert total < 150 * KILOBYTE


@pytest.mark.parametrize("name", sorted(assets()))
def test_the_files_name_no_address_outside_of_the_package(name):
    text = assets()[name].body.decode()
    if name.startswith("vendor/"):
        # Its licence comment names its home page, which nothing asks.
        text = text.partition("*/")[2]
    addresses = text.replace("http://www.w3.org/2000/svg", "")
    assert "http://" not in addresses
    assert "https://" not in addresses


def test_the_stream_begins_with_the_history_and_goes_on_with_snapshots(served):
    with client(served.url) as http, http.stream("GET", "/dashboard/events") as answer:
        assert answer.headers["content-type"] == "text/event-stream"
        lines = answer.iter_lines()
        names = [name for name, _ in read_events(lines, 2)]
        served.work(2000)
        found = [data for _, data in read_events(lines, 3)]
    assert names == ["history", "snapshot"]
    assert max(snapshot["point"].get("requests", 0) for snapshot in found) > 0
    last = found[-1]
    assert last["name"] == "shop"
    assert last["caches"][0]["max_entries"] == 300
    assert sum(sum(snapshot["point"].get("heat", ())) for snapshot in found) > 0
    assert {route["name"] for route in last["routes"]} == {"/work"}


def test_no_key_and_no_request_reaches_the_page(served):
    with client(served.url) as http, http.stream("GET", "/dashboard/events") as answer:
        lines = answer.iter_lines()
        read_events(lines, 2)
        served.work(2000)
        deadline = time.monotonic() + 60
        while not (data := read_events(lines, 1)[0][1])["hot_keys"]:
            assert time.monotonic() < deadline
            served.work(2000)
    assert all(len(key["key"]) == 16 and int(key["key"], 16) >= 0 for key in data["hot_keys"])
    assert TOKEN not in json.dumps(data)


@pytest.mark.parametrize("root_path", ["", "/behind/a/proxy"])
def test_every_address_of_the_page_is_relative_to_the_page(root_path):
    """A proxy that adds a prefix passes it on as the root path, or removes it before the application sees it."""
    with running(root_path) as served, client(served.url) as http:
        answer = http.get("/dashboard")
        assert answer.status_code == 307
        page = urljoin(f"{served.url}/outside/dashboard", answer.headers["location"])
        assert page == f"{served.url}/outside/dashboard/"
        text = http.get("/dashboard/").text
        assert 'src="main.js"' in text
        assert 'href="/' not in text
        assert 'src="/' not in text
        assert http.get("/dashboard/main.js").status_code == 200


async def test_it_can_be_mounted_by_a_framework():
    from starlette.applications import Starlette
    from starlette.routing import Mount

    cache = TieredCache(LRUCache(10), namespace="mounted")
    app = Starlette(routes=[Mount("/ops/live", Dashboard(cache=cache))])
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as http:
        assert "acgsperf" in (await http.get("/ops/live/")).text
        assert (await http.get("/ops/live/style.css")).headers["content-type"] == "text/css; charset=utf-8"
        assert (await http.get("/ops/live/about")).json() == {"caches": [], "can_invalidate": False}


async def test_it_shows_caches_without_a_service():
    cache = TieredCache(LRUCache(10), namespace="alone")
    async with cache:
        stream = Stream(Dashboard(cache=cache, interval=0.02))
        assert (await stream.event())[0] == "history"
        await cache.set("a", 1)
        await cache.get("a")
        name, data = await stream.event()
        await stream.leave()
    assert name == "snapshot"
    assert data["caches"][0]["name"] == "alone"
    assert data["alerts"] is None


async def test_one_task_takes_the_snapshots_for_all_viewers_and_ends_with_the_last():
    source = Numbered()
    dashboard = Dashboard(source=source, interval=0.02)
    assert source.taken == 0
    first, second = Stream(dashboard), Stream(dashboard)
    seen = [[(await viewer.event())[0] for _ in range(4)] for viewer in (first, second)]
    assert seen == [["history", "snapshot", "snapshot", "snapshot"]] * 2
    assert (source.started, source.stopped, dashboard.viewers) == (1, 0, 2)
    await first.leave()
    assert source.stopped == 0
    await second.leave()
    assert (source.started, source.stopped, dashboard.viewers) == (1, 1, 0)
    assert {task.get_name() for task in asyncio.all_tasks()} == {asyncio.current_task().get_name()}
    taken, third = source.taken, Stream(dashboard)
    name, data = await third.event()
    assert (name, len(data)) == ("history", taken)
    await third.leave()


async def test_a_slow_viewer_gets_the_latest_snapshot_only():
    source = Numbered()
    dashboard = Dashboard(source=source, interval=0.01)
    slow, quick = Stream(dashboard), Stream(dashboard)
    assert (await slow.event())[0] == "history"
    slow.reads.clear()
    # One more is being sent when it stops reading.
    for _ in range(slow.sent.qsize()):
        slow.sent.get_nowait()
    while source.taken < 20:
        await quick.event()
    slow.reads.set()
    numbers = [(await slow.event())[1]["requests"] for _ in range(2)]
    assert numbers[1] >= 20
    await slow.leave()
    await quick.leave()


async def test_a_viewer_that_never_reads_is_dropped(monkeypatch):
    monkeypatch.setattr("acgsperf.dashboard.app._SEND_TIMEOUT_S", 0.05)
    source = Numbered()
    dashboard = Dashboard(source=source, interval=0.01)
    stuck = Stream(dashboard)
    await stuck.event()
    stuck.reads.clear()
    await asyncio.wait_for(stuck.task, 30)
    assert (dashboard.viewers, source.stopped) == (0, 1)


class Long(Numbered):
    """Has a history of about 400 kB."""

    def history(self):
        return [Point(at=float(at), heat=(at,) * 80) for at in range(-900, 0)]


async def test_a_viewer_that_reads_slowly_gets_the_whole_history(monkeypatch):
    monkeypatch.setattr("acgsperf.dashboard.app._SEND_TIMEOUT_S", 3)
    viewer = Stream(Dashboard(source=Long(), interval=0.01), bytes_per_s=80_000)
    name, history = await viewer.event()
    assert name == "history"
    assert len(history) >= 900
    assert (await viewer.event())[0] == "snapshot"
    await viewer.leave()


async def test_a_history_is_not_sent_to_the_end_if_the_viewer_leaves():
    dashboard = Dashboard(source=Long(), interval=0.01)
    viewer = Stream(dashboard)
    viewer.reads.clear()
    await until(lambda: dashboard.viewers == 1)
    (one,) = dashboard._broadcast._viewers
    viewer.left.set()
    await until(lambda: one.finished)
    viewer.reads.set()
    await asyncio.wait_for(viewer.task, 30)
    assert sum(len(viewer.sent.get_nowait().get("body", b"")) for _ in range(viewer.sent.qsize())) < 100 * KILOBYTE


async def test_one_viewer_more_takes_the_place_of_the_oldest(monkeypatch):
    monkeypatch.setattr("acgsperf.dashboard.broadcast.MOST_VIEWERS", 2)
    dashboard = Dashboard(source=Numbered(), interval=0.01)
    viewers = [Stream(dashboard) for _ in range(2)]
    for viewer in viewers:
        await viewer.event()
    # It reads nothing.
    viewers[0].reads.clear()
    third = Stream(dashboard)
    assert (await third.event())[0] == "history"
    assert dashboard.viewers == 2
    viewers[0].reads.set()
    while (event := await viewers[0].event())[0] != "ended":
        pass
    assert event[1] == "more than 2 pages are open; reload this one to continue"
    await asyncio.wait_for(viewers[0].task, 30)
    assert (await viewers[1].event())[0] == "snapshot"
    for viewer in (viewers[1], third):
        await viewer.leave()
    assert dashboard.viewers == 0


@pytest.mark.parametrize("ends", [True, False], ids=["the server shuts down", "it is slow"])
async def test_a_viewer_that_has_to_leave_does_not_get_its_history_for_long(monkeypatch, ends):
    monkeypatch.setattr("acgsperf.dashboard.broadcast.MOST_VIEWERS", 1)
    monkeypatch.setattr("acgsperf.dashboard.app._SEND_TIMEOUT_S", 1000 if ends else 1.5)
    dashboard = Dashboard(source=Long(), interval=0.01)
    # A part of 16 KiB each second, of about 270 kB.
    slow = Stream(dashboard, bytes_per_s=16_000)
    await until(lambda: dashboard.viewers == 1)
    other = Stream(dashboard)
    await other.event()
    if ends:
        monkeypatch.setattr(dashboard._broadcast, "_is_ending", lambda: True)
    await asyncio.wait_for(slow.task, 8)
    await other.leave()


@pytest.mark.parametrize("name", ["snapshot", "stop"])
async def test_a_source_that_fails_in_other_ways_is_asked_again_and_closed(name, caplog):
    source, closed = Numbered(), asyncio.Event()

    async def close():
        closed.set()

    async def cancelled():
        source.taken += 1
        if source.taken == 2:
            raise asyncio.CancelledError
        return Snapshot("numbered", Point(at=float(source.taken)), 1.0, 1, source.taken, ())

    def fails():
        raise RuntimeError("stop")

    source.close = close
    setattr(source, name, cancelled if name == "snapshot" else fails)
    dashboard = Dashboard(source=source, interval=0.01)
    stream = Stream(dashboard)
    await until(lambda: source.taken >= 5)
    await stream.leave()
    await asyncio.wait_for(closed.wait(), 30)
    assert [task for task in asyncio.all_tasks() if task.get_name() == "acgsperf dashboard: snapshots"] == []
    assert ("a snapshot failed" if name == "snapshot" else "cannot be stopped") in caplog.text


async def test_viewers_of_one_address_do_not_drive_out_those_of_others():
    viewers, people = Viewers(10), [Viewer("10.0.0.1"), Viewer(None)]
    for viewer in people:
        assert viewers.add(viewer) is None
    crowd = [Viewer("10.0.0.9") for _ in range(50)]
    left = [viewers.add(viewer) for viewer in crowd]
    assert left == [None] * 8 + crowd[:42]
    assert viewers.add(Viewer("10.0.0.2")) is crowd[42]
    assert len(viewers) == 10
    assert set(people) < set(viewers)


async def test_a_snapshot_that_cannot_be_encoded_is_shown_and_asked_again(caplog):
    source = Numbered()
    take = source.snapshot

    async def strange():
        found = await take()
        if found.requests == 2:
            return replace(found, name="host-\udcff")
        if found.requests == 3:
            return None
        if found.requests == 4:
            raise CacheError("host-\udcff")
        return found

    source.snapshot = strange
    stream = Stream(Dashboard(source=source, interval=0.05))
    names = [(await stream.event())[0] for _ in range(2)]
    while names[-1] == "problem" or len(names) < 3:
        event = await stream.event()
        names.append(event[0])
    await stream.leave()
    assert "problem" in names
    assert event[1]["requests"] >= 5
    assert caplog.text.count("a snapshot failed") == 2


async def test_a_history_that_cannot_be_read_does_not_hide_the_figures(caplog):
    source = Numbered()
    source.history = lambda: [None]
    stream = Stream(Dashboard(source=source, interval=0.01))
    assert await stream.event() == ("history", [])
    assert (await stream.event())[0] == "snapshot"
    await stream.leave()
    assert "the history cannot be read" in caplog.text


async def test_what_cannot_start_leaves_no_viewer():
    source = Numbered()

    def start():
        raise RuntimeError("no")

    source.start = start
    dashboard = Dashboard(source=source, interval=0.01)
    with pytest.raises(RuntimeError, match="no"):
        await Stream(dashboard).task
    assert dashboard.viewers == 0


async def test_a_viewer_whose_request_is_cancelled_leaves_nothing():
    source = Numbered()
    dashboard = Dashboard(source=source, interval=0.01)
    stream = Stream(dashboard)
    await stream.event()
    stream.task.cancel()
    await asyncio.wait([stream.task])
    assert (dashboard.viewers, source.stopped) == (0, 1)
    assert {task.get_name() for task in asyncio.all_tasks()} == {asyncio.current_task().get_name()}


class Closing(Numbered):
    """Takes its time to close, and notes what it is asked meanwhile."""

    def __init__(self):
        super().__init__()
        self.calls = []
        self.began, self.may_end = asyncio.Event(), asyncio.Event()
        self.trends_may_end = asyncio.Event()
        self.trends_may_end.set()

    async def snapshot(self):
        self.calls.append("snapshot")
        return await super().snapshot()

    async def trends(self):
        self.calls.append("trends")
        try:
            await self.trends_may_end.wait()
        except asyncio.CancelledError:
            self.calls.append("no trends")
            raise
        return TrendState()

    async def close(self):
        self.calls.append("close")
        self.began.set()
        await self.may_end.wait()
        self.calls.append("closed")


def http_of(dashboard):
    return httpx.AsyncClient(transport=httpx.ASGITransport(dashboard), base_url="http://test", timeout=60)


async def test_a_viewer_that_comes_while_the_source_is_closed_waits_for_the_end_of_that():
    source = Closing()
    dashboard = Dashboard(source=source, interval=0.01)
    first = Stream(dashboard)
    await first.event()
    await first.event()
    leaving = asyncio.create_task(first.leave())
    await source.began.wait()
    second = Stream(dashboard)
    assert (await second.event())[0] == "history"
    async with http_of(dashboard) as http, asyncio.TaskGroup() as group:
        trends = group.create_task(http.get("/trends"))
        # Everything that could run has run.
        for _ in range(100):
            await asyncio.sleep(0)
        source.may_end.set()
    assert trends.result().status_code == 200
    assert (await second.event())[0] == "snapshot"
    await leaving
    await second.leave()
    calls = source.calls
    assert calls[calls.index("close") + 1] == "closed"
    assert calls[-2:] == ["close", "closed"]


async def test_the_last_weeks_are_not_read_any_more_when_the_source_is_closed():
    source = Closing()
    source.trends_may_end.clear()
    source.may_end.set()
    dashboard = Dashboard(source=source, interval=0.01)
    viewer = Stream(dashboard)
    await viewer.event()
    async with http_of(dashboard) as http, asyncio.TaskGroup() as group:
        trends = group.create_task(http.get("/trends"))
        await until(lambda: "trends" in source.calls)
        await viewer.leave()
    assert trends.result().status_code == 409
    assert source.calls[-3:] == ["no trends", "close", "closed"]


async def test_a_source_is_closed_to_the_end_if_the_request_of_the_last_viewer_is_cancelled():
    source = Closing()
    viewer = Stream(Dashboard(source=source, interval=0.01))
    await viewer.event()
    viewer.left.set()
    await source.began.wait()
    viewer.task.cancel()
    await asyncio.wait([viewer.task])
    assert viewer.task.cancelled()
    source.may_end.set()
    await until(lambda: source.calls[-1] == "closed")


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (CacheError("the cache is closed"), "the cache is closed"),
        (RuntimeError("secret"), "the last weeks cannot be read; see the log of the service"),
    ],
)
async def test_last_weeks_that_cannot_be_read_are_shown_and_asked_again(error, shown):
    source = Numbered()

    async def trends():
        raise error

    source.trends = trends
    dashboard = Dashboard(source=source, interval=0.01)
    viewer = Stream(dashboard)
    await viewer.event()
    async with http_of(dashboard) as http:
        found = (await http.get("/trends")).json()
    await viewer.leave()
    assert (found["missing"], found["next_s"]) == ([shown], 60)


async def test_a_source_that_fails_is_shown_and_asked_again(caplog):
    source = Numbered()
    source.problem = CacheError("the cache is closed")
    dashboard = Dashboard(source=source, interval=0.01)
    stream = Stream(dashboard)
    assert await stream.event() == ("history", [])
    assert await stream.event() == ("problem", "the cache is closed")
    source.problem = RuntimeError("secret")
    while (event := await stream.event())[1] == "the cache is closed":
        pass
    assert event == ("problem", "the figures cannot be read; see the log of the service")
    source.problem = None
    while (await stream.event())[0] == "problem":
        pass
    await stream.leave()
    assert "a snapshot failed" in caplog.text


def test_a_server_with_viewers_shuts_down_at_once():
    with running() as served, client(served.url) as http, http.stream("GET", "/dashboard/events") as answer:
        lines = answer.iter_lines()
        read_events(lines, 2)
        served.stop()
        # The response has an end.
        assert len(list(lines)) >= 0


@pytest.mark.parametrize("snapshot_hangs", [True, False])
def test_a_server_shuts_down_long_before_the_next_snapshot(snapshot_hangs):
    source = Numbered()
    take = source.snapshot

    async def slow():
        found = await take()
        if snapshot_hangs:
            await asyncio.sleep(1000)
        return found

    source.snapshot = slow
    dashboard = Dashboard(source=source, interval=1000)
    listener = socket.create_server(("127.0.0.1", 0))

    def view(server):
        with (
            client(f"http://127.0.0.1:{listener.getsockname()[1]}") as http,
            http.stream("GET", "/events") as answer,
        ):
            lines = answer.iter_lines()
            read_events(lines, 1 if snapshot_hangs else 2)
            # As a signal does.
            server.should_exit = True
            return read_events(lines, 1)

    async def main():
        server = uvicorn.Server(uvicorn.Config(dashboard, log_level="critical", ws="none", lifespan="off"))
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        await until(lambda: server.started)
        assert await asyncio.to_thread(view, server) == []
        await serving

    asyncio.run(asyncio.wait_for(main(), 60))
    assert source.stopped == 1


async def test_ten_viewers_cost_less_than_10_ms_of_cpu_a_second():
    """The work of ten snapshots, sent to ten viewers, in the time that this thread computes."""
    service = PerformanceService(Settings(l1_cache_size=300), handler=Application)
    async with service:
        for number in range(2000):
            service.cache._parts.l1.lru.set(f"k{number}", number)
        dashboard = Dashboard(service, interval=0.05)
        viewers = [Stream(dashboard) for _ in range(10)]
        for viewer in viewers:
            await viewer.event()
            await viewer.event()
        costs = []
        for _ in range(3):
            began = time.thread_time()
            for _ in range(10):
                for viewer in viewers:
                    await asyncio.wait_for(viewer.sent.get(), 30)
            costs.append((time.thread_time() - began) / 10)
        for viewer in viewers:
            await viewer.leave()
    assert min(costs) < 0.010


def post(http, token=TOKEN, **changes):
    body = {"cache": "shop", "kind": "key", "name": "k"} | changes.pop("body", {})
    headers = {"authorization": f"Bearer {token}"} | changes.pop("headers", {})
    return http.post("/dashboard/invalidate", json=body, headers=headers, **changes)


def test_a_key_or_a_tag_is_removed_with_the_token_only(served):
    with client(served.url) as http:
        assert post(http).json() == {"l1": True, "l2": None, "l3": None, "published": None}
        assert post(http, body={"kind": "tag"}).status_code == 200
        for token in ("wrong", TOKEN[:-1], f"{TOKEN}x", TOKEN.upper()):
            assert post(http, token).status_code == 401
        assert http.post("/dashboard/invalidate", json={}).status_code == 401
        assert post(http, headers={"authorization": f"Basic {TOKEN}"}).status_code == 401
        assert post(http, headers={"sec-fetch-site": "cross-site"}).status_code == 403
        assert post(http, headers={"content-type": "text/plain"}).status_code == 415
        assert post(http, body={"name": "x" * 20_000}).status_code == 413
        assert post(http, body={"kind": "all"}).status_code == 400
        surrogate = b'{"cache": "shop", "kind": "tag", "name": "\\ud800"}'
        headers = {"authorization": f"Bearer {TOKEN}", "content-type": "application/json"}
        for body in (surrogate, b"{", b"", b"[" * 10_000):
            assert http.post("/dashboard/invalidate", content=body, headers=headers).status_code == 400
        assert post(http, body={"cache": "nothing"}).status_code == 409
        assert http.get("/dashboard/invalidate").status_code == 405


async def test_without_a_token_nobody_can_remove_anything():
    cache = TieredCache(LRUCache(10), namespace="read-only")
    app = Dashboard(cache=cache)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as http:
        assert (await http.post("/invalidate", json={})).status_code == 405


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"token": "short"}, ValueError, "token must have at least 16 printable ASCII characters and no spaces, got 5"),
        ({"token": 1}, TypeError, "token must be a str or None, got int"),
        ({"interval": 0}, ValueError, "interval must be"),
        ({"source": 1}, TypeError, "source must be a SnapshotSource or None, got 1"),
        ({"source": Numbered(), "name": "x"}, TypeError, "source excludes"),
        ({"show_keys": 1}, TypeError, "show_keys"),
    ],
)
def test_arguments_are_checked(options, error, message):
    with pytest.raises(error, match=message):
        Dashboard(**options)


def test_the_middleware_checks_the_path():
    with pytest.raises(ValueError, match=r"dashboard_path must begin with /, got 'live'"):
        PerformanceMiddleware(make_app(), dashboard=Dashboard(source=Numbered()), dashboard_path="live")


def test_a_viewer_over_a_socket_that_never_reads_is_dropped(monkeypatch):
    """uvicorn stops reading from the application when the buffers of the connection are full."""
    monkeypatch.setattr("acgsperf.dashboard.app._SEND_TIMEOUT_S", 0.2)
    source = Numbered()
    # 100 kB for each snapshot fill the buffers soon.
    source.history = lambda: ()
    take = source.snapshot

    async def large():
        return replace(await take(), name="x" * 100_000)

    source.snapshot = large
    dashboard = Dashboard(source=source, interval=0.01)
    listener = socket.create_server(("127.0.0.1", 0))

    async def main():
        server = uvicorn.Server(uvicorn.Config(dashboard, log_level="critical", ws="none"))
        running = asyncio.create_task(server.serve(sockets=[listener]))
        await until(lambda: server.started)
        with socket.create_connection(listener.getsockname()) as stuck:
            stuck.sendall(b"GET /events HTTP/1.1\r\nhost: test\r\n\r\n")
            await until(lambda: source.started == 1)
            await until(lambda: dashboard.viewers == 0)
        server.should_exit = True
        await running

    asyncio.run(asyncio.wait_for(main(), 60))
    assert source.stopped == 1
