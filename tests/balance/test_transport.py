"""An HTTPX client in front of servers in processes of their own."""

import asyncio
import subprocess
import sys
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from acgsperf.balance import Balancer, RetryBudget
from acgsperf.balance.transport import BalancedTransport

BACKEND = Path(__file__).with_name("backend.py")


@contextmanager
def backends(*seconds):
    """The processes by their origin; each answers after the time given."""
    processes = [subprocess.Popen([sys.executable, BACKEND, str(pause)], stdout=subprocess.PIPE) for pause in seconds]
    try:
        yield {f"http://127.0.0.1:{int(process.stdout.readline())}": process for process in processes}
    finally:
        for process in processes:
            process.kill()
            process.communicate()


@pytest.fixture(scope="module")
def three():
    with backends(0, 0, 0) as found:
        yield list(found)


def client_of(balancer, **options):
    return httpx.AsyncClient(transport=BalancedTransport(balancer, **options), base_url="http://prices", timeout=10)


def in_flight(balancer):
    return sum(stats.in_flight for stats in balancer.stats().endpoints)


async def test_all_endpoints_get_requests_and_the_host_header_stays(three):
    balancer = Balancer(three)
    async with client_of(balancer) as client:
        responses = [await client.post("/price", content=b"body") for _ in range(30)]
    assert {response.text for response in responses} == {"prices body"}
    assert all(stats.picks > 0 for stats in balancer.stats().endpoints)
    assert in_flight(balancer) == 0


async def test_a_request_is_in_flight_until_its_response_is_closed(three):
    balancer = Balancer(three)
    async with client_of(balancer) as client:
        async with client.stream("GET", "/price") as response:
            assert in_flight(balancer) == 1
            await response.aread()
        assert in_flight(balancer) == 0


async def test_a_key_keeps_requests_together(three):
    balancer = Balancer(three)
    async with client_of(balancer, key=lambda request: request.url.raw_path) as client:
        for _ in range(10):
            assert (await client.get("/price/7")).status_code == 200
    assert Counter(stats.picks for stats in balancer.stats().endpoints) == {10: 1, 0: 2}


@pytest.mark.parametrize(("method", "attempts"), [("GET", 2), ("PUT", 2), ("POST", 1)])
async def test_an_idempotent_request_is_sent_once_more_if_the_server_is_unavailable(three, method, attempts):
    balancer = Balancer(three)
    async with client_of(balancer) as client:
        assert (await client.request(method, "/status/503")).status_code == 503
    assert sum(stats.picks for stats in balancer.stats().endpoints) == attempts
    assert sum(stats.failures for stats in balancer.stats().endpoints) == attempts
    assert in_flight(balancer) == 0


async def test_other_statuses_are_no_failures(three):
    balancer = Balancer(three)
    async with client_of(balancer) as client:
        assert (await client.get("/status/500")).status_code == 500
    assert sum(stats.failures for stats in balancer.stats().endpoints) == 0


async def test_nothing_is_sent_again_without_a_budget(three):
    balancer = Balancer(three)
    async with client_of(balancer, budget=RetryBudget(0, 0)) as client:
        assert (await client.get("/status/503")).status_code == 503
    assert sum(stats.picks for stats in balancer.stats().endpoints) == 1


async def test_a_body_that_cannot_be_repeated_is_sent_once():
    async def body():
        yield b"part"

    balancer = Balancer(["http://127.0.0.1:9", "http://127.0.0.1:10"])
    async with client_of(balancer) as client:
        with pytest.raises(httpx.ConnectError):
            await client.put("/price", content=body())
    assert sum(stats.picks for stats in balancer.stats().endpoints) == 1
    assert in_flight(balancer) == 0


async def test_a_timeout_is_a_failure_and_is_not_retried():
    with backends(5, 5) as servers:
        balancer = Balancer(servers)
        async with client_of(balancer) as client:
            with pytest.raises(httpx.ReadTimeout):
                await client.get("/price", timeout=0.05)
        assert sum(stats.failures for stats in balancer.stats().endpoints) == 1
        assert sum(stats.picks for stats in balancer.stats().endpoints) == 1


async def test_no_caller_notices_that_one_of_three_is_killed():
    with backends(0.002, 0.002, 0.002) as servers:
        balancer = Balancer(servers)
        attempts = Counter()

        async def caller(client, number):
            for request in range(40):
                if (number, request) == (0, 10):
                    next(iter(servers.values())).kill()
                assert (await client.get(f"/price/{number}/{request}")).status_code == 200

        class Counting(httpx.AsyncHTTPTransport):
            async def handle_async_request(self, request):
                attempts[request.url.raw_path] += 1
                return await super().handle_async_request(request)

        async with client_of(balancer, transport=Counting()) as client:
            await asyncio.gather(*(caller(client, number) for number in range(20)))
        assert len(attempts) == 800
        assert max(attempts.values()) == 2
        assert next(stats.ejected for stats in balancer.stats().endpoints if stats.failures)
        assert in_flight(balancer) == 0


@pytest.mark.parametrize(
    "endpoint", ["10.0.0.1:8000", "ftp://a", "http://", "http://a/path", "http://u:secret@a", "http://[::"]
)
def test_an_endpoint_that_is_no_origin_is_refused(endpoint):
    with pytest.raises(ValueError, match="an endpoint must be an origin such as") as raised:
        BalancedTransport(Balancer([endpoint]))
    assert "secret" not in str(raised.value)
