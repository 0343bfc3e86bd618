"""Compares hits of the response cache with a bare ASGI application that sends the same bytes, both under uvicorn.

    python bench/http_hits.py                   requests/s and CPU time
    python bench/http_hits.py --instructions    instructions per request, also on a busy machine; needs valgrind

Both servers have httptools, uvloop and one process. A client in a process of its own keeps 32 connections busy. The
servers take turns, and the ratio of two turns that follow each other is compared. Needs `acgsperf[bench]` and Linux.
"""

import argparse
import asyncio
import contextlib
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import uvloop

HERE = Path(__file__).parent
CONNECTIONS = 32
BODY = b"x" * 1_000
HEADERS = [
    (b"content-type", b"application/json"),
    (b"cache-control", b"max-age=86400"),
    (b"content-length", b"%d" % len(BODY)),
]
REQUEST = b"GET /items/7?page=1 HTTP/1.1\r\nHost: 127.0.0.1\r\nUser-Agent: bench\r\nAccept: */*\r\n\r\n"
COLLECTED = re.compile(r"Collected : (\d+)")


async def bare(scope, receive, send):
    """Sends the bytes that the cache sends."""
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": [*HEADERS, (b"age", b"0")]})
        await send({"type": "http.response.body", "body": BODY})


def cached():
    """Makes an application behind the middleware."""
    from acgsperf import LRUCache, TieredCache
    from acgsperf.asgi import PerformanceMiddleware

    cache = TieredCache(LRUCache(1_000), namespace="bench")

    async def app(scope, receive, send):
        if scope["type"] == "lifespan":
            await receive()
            async with cache:
                await send({"type": "lifespan.startup.complete"})
                await receive()
            await send({"type": "lifespan.shutdown.complete"})
        else:
            await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
            await send({"type": "http.response.body", "body": BODY})

    return PerformanceMiddleware(app, cache=cache)


SERVERS = {"bare": ["http_hits:bare", "--lifespan", "off"], "cached": ["http_hits:cached", "--factory"]}


class Client(asyncio.Protocol):
    """One connection: sends the next request when a response has ended."""

    def __init__(self, turn):
        self.turn = turn
        self.missing = 0
        self.head = b""

    def connection_made(self, transport):
        self.transport = transport
        transport.write(REQUEST)

    def connection_lost(self, error):
        self.turn.ended()

    def data_received(self, data):
        if self.missing == 0:
            head, end, body = (self.head + data).partition(b"\r\n\r\n")
            if not end:
                self.head = head
                return
            assert head.startswith(b"HTTP/1.1 200"), head
            self.head, self.missing, data = b"", len(BODY), body
        self.missing -= len(data)
        assert self.missing >= 0, "a response is longer than expected"
        if self.missing == 0:
            if self.turn.next():
                self.transport.write(REQUEST)
            else:
                self.transport.close()


class Turn:
    """The requests of all connections, for some seconds or up to a number."""

    def __init__(self, seconds, most):
        self.started = time.monotonic()
        self.until = self.started + seconds
        self.most = most
        self.done = 0
        self.open = CONNECTIONS
        self.closed = asyncio.get_running_loop().create_future()

    def next(self):
        self.done += 1
        return self.done + self.open <= self.most and time.monotonic() < self.until

    def ended(self):
        self.open -= 1
        if not self.open:
            self.closed.set_result(time.monotonic() - self.started)


def asked(port, seconds=float("inf"), most=float("inf")):
    """The number of requests that a server has answered, and the seconds that they took."""

    async def ask():
        turn = Turn(seconds, most)
        loop = asyncio.get_running_loop()
        for _ in range(CONNECTIONS):
            await loop.create_connection(lambda: Client(turn), "127.0.0.1", port)
        took = await turn.closed
        return turn.done, took

    return uvloop.run(ask())


@contextlib.contextmanager
def served(name, prefix=()):
    """A server: its process and its port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [*prefix, sys.executable, "-m", "uvicorn", *SERVERS[name], "--port", str(port), "--log-level", "warning"]
    command += ["--http", "httptools", "--loop", "uvloop", "--no-access-log"]
    process = subprocess.Popen(command, cwd=HERE)
    try:
        while True:
            with socket.socket() as client:
                if client.connect_ex(("127.0.0.1", port)) == 0:
                    break
            if process.poll() is not None:
                sys.exit(f"{command} has ended")
            time.sleep(0.1)
        yield process, port
    finally:
        process.terminate()
        process.wait()


def cpu_ns(process):
    return int(Path(f"/proc/{process.pid}/schedstat").read_text().split()[0])


def compare_times(turns, seconds):
    """Print the figures of both servers, and their ratios."""
    rates, costs = {name: [] for name in SERVERS}, {name: [] for name in SERVERS}
    with contextlib.ExitStack() as stack:
        servers = {name: stack.enter_context(served(name)) for name in SERVERS}
        for _, port in servers.values():
            asked(port, seconds=1)
        for turn in range(turns):
            for name in SERVERS if turn % 2 else reversed(SERVERS):
                process, port = servers[name]
                before = cpu_ns(process)
                done, took = asked(port, seconds=seconds)
                rates[name].append(done / took)
                costs[name].append((cpu_ns(process) - before) / done)
    for name in SERVERS:
        rate, cost = statistics.median(rates[name]), statistics.median(costs[name])
        print(f"{name:8} {rate:8,.0f} requests/s  {cost / 1_000:6.2f} us of CPU time per request")
    pairs = [cached / bare for bare, cached in zip(rates["bare"], rates["cached"], strict=True)]
    print(f"cached / bare: {statistics.median(pairs):.3f} of the requests/s ({min(pairs):.3f} to {max(pairs):.3f})")
    pairs = [bare / cached for bare, cached in zip(costs["bare"], costs["cached"], strict=True)]
    print(f"bare / cached: {statistics.median(pairs):.3f} of the CPU time ({min(pairs):.3f} to {max(pairs):.3f})")


def compare_instructions():
    """Print the instructions per request of both servers, without those of their start."""
    found = {}
    for name in SERVERS:
        totals = []
        for most in (1_000, 3_000):
            with tempfile.TemporaryDirectory() as scratch:
                log = Path(scratch) / "log"
                prefix = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={scratch}/out", f"--log-file={log}"]
                with served(name, prefix) as (_, port):
                    done, _ = asked(port, most=most)
                    assert done == most
                totals.append(int(COLLECTED.search(log.read_text())[1]))
        found[name] = (totals[1] - totals[0]) / 2_000
        print(f"{name:8} {found[name]:9,.0f} instructions per request")
    print(f"bare / cached: {found['bare'] / found['cached']:.3f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--instructions", action="store_true", help="count instructions by valgrind")
    parser.add_argument("--turns", type=int, default=20, help="of each server (20)")
    parser.add_argument("--seconds", type=float, default=2, help="of a turn (2)")
    given = parser.parse_args()
    if given.instructions:
        compare_instructions()
    else:
        compare_times(given.turns, given.seconds)


if __name__ == "__main__":
    main()
