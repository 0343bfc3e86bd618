"""Chooses an endpoint for each request by latency and by requests in flight, or by the key of the request."""

import asyncio
import math
import random
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from statistics import median
from types import TracebackType
from typing import Final, Self

from xxhash import xxh3_64_intdigest

from acgsperf.balance.endpoint import Endpoint, EndpointStats
from acgsperf.balance.two_choices import two_of
from acgsperf.counting import note

__all__ = ["Balancer", "BalancerStats", "Choice"]

# A response is slow if it takes this many times the median of what others usually take, and this many seconds more.
_SLOW: Final = 3.0
_SLOW_BY_S: Final = 0.001
# With a key, no endpoint has more than this many times the mean number of requests in flight.
_BOUND: Final = 1.25
# The latency that is assumed before any endpoint has answered. Any value is right if it is the same for all.
_ASSUMED_S: Final = 0.01


@dataclass(frozen=True, slots=True)
class BalancerStats:
    """The state of a balancer.

    Attributes:
        endpoints: the state of each endpoint.
        probes: requests that tried an ejected endpoint.
    """

    endpoints: tuple[EndpointStats, ...]
    probes: int


class Choice:
    """An endpoint for one request. Use it as a context manager around the request.

    An exception that leaves the block counts as a failure of the endpoint. A cancellation is ignored. `fail` reports
    a failure that is no exception, such as a response with the status 503.

    Attributes:
        endpoint: the address of the endpoint.
    """

    __slots__ = ("_balancer", "_endpoint", "_is_probe", "_judged", "_number", "_started", "endpoint")

    def __init__(self, balancer: "Balancer", endpoint: Endpoint, now: float, is_probe: bool) -> None:
        self.endpoint: Final = endpoint.address
        self._balancer = balancer
        self._endpoint = endpoint
        self._started = now
        self._is_probe = is_probe
        self._judged = False
        self._number = endpoint.start(now)

    def succeed(self) -> None:
        """Report the response, and measure the latency until now. Later reports are ignored.

        Leaving the block without an exception does the same. Call it earlier if the time to read the response must not
        count.
        """
        self._judge(failed=False)

    def fail(self) -> None:
        """Report a failure. Later reports are ignored."""
        self._judge(failed=True)

    def end(self) -> None:
        """Stop counting the request as in flight. Leaving the block does the same."""
        self._endpoint.end(self._number)
        if self._is_probe and not self._judged:
            # Cancelled: another request may be the probe.
            self._endpoint.probing = False

    def _judge(self, failed: bool) -> None:
        if not self._judged:
            self._judged = True
            self._balancer._judge(self._endpoint, self._started, failed, self._is_probe)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not isinstance(error, asyncio.CancelledError | GeneratorExit):
            self._judge(failed=error is not None)
        self.end()


class Balancer:
    """Chooses one of several endpoints for each request.

        balancer = Balancer(["http://10.0.0.1:8000", "http://10.0.0.2:8000"])
        with balancer.pick() as choice:
            response = await client.get(choice.endpoint + "/price")
            if response.status_code == 503:
                choice.fail()

    - **Without a key** it compares two random endpoints, and chooses the one with the lower expected wait: recent
      latency times requests in flight ("power of two choices": Mitzenmacher, "The power of two choices in randomized
      load balancing", 2001). Because the pair is random, clients do not all choose the same endpoint at once.
    - **With a key** the same key goes to the same endpoint unless that is overloaded: rendezvous hashing (Thaler and
      Ravishankar, 1998) with bounded loads (Mirrokni et al., "Consistent hashing with bounded loads", 2018). If an
      endpoint is added or removed, only its own keys move.
    - **An endpoint is ejected** after 5 failures or slow responses in a row. It is slow if it takes 3 times the median
      latency of the others. After 1 s one request probes it; a bad probe doubles the time, up to 30 s. At most half of
      the endpoints are ejected because they are slow. If all are ejected because they fail, requests go to any of
      them.

    A balancer is for one event loop. `pick` is O(1) without a key if no endpoint is ejected and all have answered, and
    O(endpoints) otherwise.

    Args:
        endpoints: their addresses, different strings that mean something to you; at least one.
        load: called with an address; returns requests that others have in flight there, 0 or more. For example what
            the endpoint itself reports.
        decay_s: seconds after which the weight of a measured latency is 1/e.
        clock: returns seconds and never goes back.
        seed: makes the random choices repeatable; None for a random seed.

    Raises:
        TypeError, ValueError: if an argument is of the wrong type, or out of range.
    """

    def __init__(
        self,
        endpoints: Iterable[str],
        *,
        load: Callable[[str], float] | None = None,
        decay_s: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
        seed: int | None = None,
    ) -> None:
        if not 0 < decay_s < math.inf:
            raise ValueError(f"decay_s must be greater than 0, got {decay_s}")
        self._load = load
        self._decay_s: Final = decay_s
        self._clock = clock
        self._random = random.Random(seed)
        self._endpoints: dict[str, Endpoint] = {}
        self._active: list[Endpoint] = []
        self._probes = 0
        self.replace(endpoints)
        note(self)

    @property
    def endpoints(self) -> tuple[str, ...]:
        """The addresses of all endpoints."""
        return tuple(self._endpoints)

    def replace(self, endpoints: Iterable[str]) -> None:
        """Use other endpoints from now on; those that stay keep their measurements.

        Raises:
            TypeError, ValueError: if `endpoints` is not of different strings, or empty. The old ones stay in use.
        """
        if isinstance(endpoints, str):
            raise TypeError(f"endpoints must be a collection of str, got the str {endpoints!r}")
        addresses = list(endpoints)
        for address in addresses:
            if not isinstance(address, str):
                raise TypeError(f"an endpoint must be a str, got {address!r}")
        if not addresses:
            raise ValueError("endpoints must have at least one address, got none")
        if len(set(addresses)) < len(addresses):
            twice = next(address for address in addresses if addresses.count(address) > 1)
            raise ValueError(f"endpoints must be different, got {twice!r} twice")
        old = self._endpoints
        self._endpoints = {address: old.get(address) or Endpoint(address, self._decay_s) for address in addresses}
        self._active = [endpoint for endpoint in self._endpoints.values() if endpoint.ejection.until is None]

    def pick(self, key: str | bytes | None = None, *, avoid: Collection[str] = ()) -> Choice:
        """Choose an endpoint.

        Args:
            key: requests with the same key go to the same endpoint; None to choose by load.
            avoid: addresses that are chosen only if there are no others, for a retry.

        Raises:
            TypeError: if the key is neither a str nor bytes.
        """
        if not (key is None or isinstance(key, str | bytes)):
            raise TypeError(f"key must be a str, bytes or None, got {key!r:.100}")
        now = self._clock()
        if key is not None:
            endpoint = self._of_key(key, avoid, now)
        else:
            endpoint = (None if avoid else self._due_for_probe(now)) or self._of_two(avoid, now)
        is_probe = endpoint.ejection.until is not None and not endpoint.probing
        if is_probe:
            endpoint.probing = True
            self._probes += 1
        return Choice(self, endpoint, now, is_probe)

    def stats(self) -> BalancerStats:
        """Return the state of all endpoints."""
        now = self._clock()
        return BalancerStats(tuple(endpoint.stats(now) for endpoint in self._endpoints.values()), self._probes)

    def _due_for_probe(self, now: float) -> Endpoint | None:
        if len(self._active) == len(self._endpoints):
            return None
        return next((endpoint for endpoint in self._endpoints.values() if _is_due(endpoint, now)), None)

    def _of_two(self, avoid: Collection[str], now: float) -> Endpoint:
        # If all are ejected, each of them is as good as the others.
        among = self._active or list(self._endpoints.values())
        if avoid:
            among = [endpoint for endpoint in among if endpoint.address not in avoid] or among
        if len(among) == 1:
            return among[0]
        one, other = two_of(among, self._random.random)
        one_cost, other_cost = self._cost(one, now), self._cost(other, now)
        return one if one_cost <= other_cost else other

    def _cost(self, endpoint: Endpoint, now: float) -> float:
        """Return the expected wait of a new request, in seconds."""
        latency_s = endpoint.latency_s(now)
        if latency_s is None:
            # An endpoint that has not answered yet is assumed to be as fast as the best one.
            known = [found for other in self._active if (found := other.latency_s(now)) is not None]
            latency_s = min(known, default=_ASSUMED_S)
        return latency_s * (self._requests(endpoint) + 1)

    def _requests(self, endpoint: Endpoint) -> float:
        if self._load is None:
            return endpoint.in_flight
        reported = self._load(endpoint.address)
        # An invalid result of `load` must not attract requests.
        return endpoint.in_flight + (reported if 0 <= reported < math.inf else 0)

    def _of_key(self, key: str | bytes, avoid: Collection[str], now: float) -> Endpoint:
        requests = {endpoint: self._requests(endpoint) for endpoint in self._endpoints.values()}
        most = math.ceil(_BOUND * (sum(requests.values()) + 1) / max(1, len(self._active)))
        ranked = sorted(requests, key=lambda endpoint: _weight(endpoint.address, key), reverse=True)
        usable = [
            endpoint
            for endpoint in ranked
            if endpoint.address not in avoid and (endpoint.ejection.until is None or _is_due(endpoint, now))
        ]
        for endpoint in usable:
            if requests[endpoint] < most:
                return endpoint
        return next(iter(usable), None) or self._of_two(avoid, now)

    def _judge(self, endpoint: Endpoint, started: float, failed: bool, is_probe: bool) -> None:
        """Note the result of a request."""
        now = self._clock()
        took_s = now - started
        if is_probe:
            endpoint.probing = False
        elif endpoint.ejection.until is not None:
            # It was sent before the ejection.
            return
        if failed or self._is_slow(endpoint, took_s, now):
            if endpoint.note_bad(failed):
                self._eject(endpoint, failed, now)
        elif endpoint.note_good():
            self._active = [known for known in self._endpoints.values() if known.ejection.until is None]
        if not failed:
            endpoint.measure(took_s, now)

    def _is_slow(self, endpoint: Endpoint, took_s: float, now: float) -> bool:
        # If all are slow, the cause is not this endpoint.
        others = [
            found for other in self._active if other is not endpoint and (found := other.usual_s(now)) is not None
        ]
        if not others:
            return False
        usual_s = median(others)
        return took_s > _SLOW * usual_s and took_s > usual_s + _SLOW_BY_S

    def _eject(self, endpoint: Endpoint, failed: bool, now: float) -> None:
        if self._endpoints.get(endpoint.address) is not endpoint:
            return
        if endpoint.ejection.until is None:
            ejected = len(self._endpoints) - len(self._active)
            if not failed and ejected + 1 > len(self._endpoints) // 2:
                return
            self._active.remove(endpoint)
        endpoint.ejection.begin(now)


def _is_due(endpoint: Endpoint, now: float) -> bool:
    """Whether an ejected endpoint is due for a probe."""
    return endpoint.ejection.is_due(now) and not endpoint.probing


def _weight(address: str, key: str | bytes) -> int:
    text = key.encode("utf-8", "surrogatepass") if isinstance(key, str) else key
    return xxh3_64_intdigest(text, seed=xxh3_64_intdigest(address.encode("utf-8", "surrogatepass")))
