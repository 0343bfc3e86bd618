"""A transport for HTTPX that sends each request to one of several servers.

It needs the extra `httpx`.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Final

import httpx

from acgsperf.addresses import masked
from acgsperf.balance.balancer import Balancer, Choice
from acgsperf.balance.retry_budget import RetryBudget

__all__ = ["BalancedTransport"]

# A second execution of these has no other effect than the first one (RFC 9110, section 9.2.2).
_IDEMPOTENT: Final = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"})
# The server cannot answer, and says so.
_UNAVAILABLE: Final = frozenset({502, 503, 504})


class BalancedTransport(httpx.AsyncBaseTransport):
    """Sends each request of an `httpx.AsyncClient` to one of the endpoints of a `Balancer`.

        balancer = Balancer(["http://10.0.0.1:8000", "http://10.0.0.2:8000"])
        async with httpx.AsyncClient(transport=BalancedTransport(balancer), base_url="http://prices") as client:
            response = await client.get("/price")

    Scheme, host and port of the URL are replaced by those of the endpoint; the `Host` header stays. A request that
    failed is sent once more, to another endpoint, if nothing of it can have been executed (no connection), or if its
    method is idempotent and its body can be sent twice. A response with the status 502, 503 or 504 counts as a failure.
    Timeouts count as failures, and are not retried, because the caller has waited long enough.

    Args:
        balancer: its endpoints are origins, such as `https://10.0.0.1:8443`.
        transport: sends the requests; None for an `httpx.AsyncHTTPTransport`.
        key: called with a request; returns what `Balancer.pick` takes as key, or None.
        budget: limits the retries; None for `RetryBudget()`.

    Raises:
        ValueError: if an endpoint is not an origin.
    """

    def __init__(
        self,
        balancer: Balancer,
        transport: httpx.AsyncBaseTransport | None = None,
        *,
        key: Callable[[httpx.Request], str | bytes | None] | None = None,
        budget: RetryBudget | None = None,
    ) -> None:
        for endpoint in balancer.endpoints:
            _origin(endpoint)
        self._balancer = balancer
        self._transport = transport or httpx.AsyncHTTPTransport()
        self._key = key
        self._budget = budget or RetryBudget()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request; called by `httpx.AsyncClient`."""
        key = self._key(request) if self._key is not None else None
        self._budget.note_request()
        choice = self._balancer.pick(key)
        repeatable = isinstance(request.stream, httpx.ByteStream)
        idempotent = repeatable and request.method in _IDEMPOTENT
        try:
            response = await self._send(request, choice)
        except httpx.ConnectError:
            if not (repeatable and self._may_retry(choice)):
                raise
        except httpx.TimeoutException:
            raise
        except httpx.TransportError:
            if not (idempotent and self._may_retry(choice)):
                raise
        else:
            if response.status_code not in _UNAVAILABLE or not (idempotent and self._may_retry(choice)):
                return response
            await response.aclose()
        return await self._send(request, self._balancer.pick(key, avoid=(choice.endpoint,)))

    async def aclose(self) -> None:
        """Close the connections; called by `httpx.AsyncClient`."""
        await self._transport.aclose()

    def _may_retry(self, failed: Choice) -> bool:
        return self._balancer.endpoints != (failed.endpoint,) and self._budget.spend()

    async def _send(self, request: httpx.Request, choice: Choice) -> httpx.Response:
        """Send a request to an endpoint, and report the result. It is in flight until its response is closed."""
        answered = False
        try:
            sent = httpx.Request(
                request.method,
                _at(request.url, choice.endpoint),
                headers=request.headers,
                stream=request.stream,
                extensions=request.extensions,
            )
            response = await self._transport.handle_async_request(sent)
            if response.status_code in _UNAVAILABLE:
                choice.fail()
            else:
                choice.succeed()
            answered = True
        except httpx.TransportError:
            choice.fail()
            raise
        finally:
            if not answered:
                choice.end()
        assert isinstance(response.stream, httpx.AsyncByteStream)
        response.stream = _CountedStream(response.stream, choice)
        return response


class _CountedStream(httpx.AsyncByteStream):
    """The body of a response, whose end is reported."""

    def __init__(self, stream: httpx.AsyncByteStream, choice: Choice) -> None:
        self._stream = stream
        self._choice = choice

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for part in self._stream:
            yield part

    async def aclose(self) -> None:
        try:
            await self._stream.aclose()
        finally:
            self._choice.end()


def _origin(endpoint: str) -> httpx.URL:
    with suppress(httpx.InvalidURL):
        url = httpx.URL(endpoint)
        if url.scheme in ("http", "https") and url.host and url.raw_path in (b"", b"/") and not url.userinfo:
            return url
    raise ValueError(f"an endpoint must be an origin such as 'http://10.0.0.1:8000', got {masked(endpoint)!r}")


def _at(url: httpx.URL, endpoint: str) -> httpx.URL:
    origin = _origin(endpoint)
    return url.copy_with(scheme=origin.scheme, host=origin.host, port=origin.port)
