"""Requests of the page that remove entries. They need a token."""

import hmac
from typing import Final, Literal

import msgspec

from acgsperf.asgi.types import Receive, Scope
from acgsperf.dashboard.sources import SnapshotSource
from acgsperf.errors import AcgsperfError

__all__ = ["Invalidation", "checked_token"]

_SHORTEST_TOKEN: Final = 16
_MAX_BODY_BYTES: Final = 16 * 1024
_SCHEME: Final = b"bearer "
Answer = tuple[int, bytes]


class _Wanted(msgspec.Struct, forbid_unknown_fields=True):
    cache: str
    kind: Literal["key", "tag"]
    name: str


def checked_token(token: str | None) -> bytes | None:
    """Return a token that is long enough not to be guessed; None for no token."""
    if token is None:
        return None
    if not isinstance(token, str):
        raise TypeError(f"token must be a str or None, got {type(token).__name__}")
    if len(token) < _SHORTEST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise ValueError(
            f"token must have at least {_SHORTEST_TOKEN} printable ASCII characters and no spaces, got {len(token)}"
        )
    return token.encode()


class Invalidation:
    """Removes a key or a tag if a request has the token.

    Another site cannot make a browser send such a request: the token is in a header and not in a cookie, and browsers
    ask before they send that header to another origin, which is not answered.

    Args:
        source: has the caches.
        token: what the requests must have in `Authorization: Bearer`.
    """

    def __init__(self, source: SnapshotSource, token: bytes) -> None:
        self._source = source
        self._token = token

    async def answer(self, scope: Scope, receive: Receive) -> Answer:
        """Return status and JSON body of the response."""
        headers: dict[bytes, bytes] = dict(scope["headers"])
        if headers.get(b"sec-fetch-site", b"same-origin") not in (b"same-origin", b"none"):
            return _problem(403, "the request comes from another site")
        if not self._is_authorized(headers.get(b"authorization", b"")):
            return _problem(401, "the token is wrong")
        if headers.get(b"content-type", b"").split(b";")[0].strip().lower() != b"application/json":
            return _problem(415, "the content type must be application/json")
        body = await _body(receive)
        if body is None:
            return _problem(413, f"the body must have at most {_MAX_BODY_BYTES} bytes")
        try:
            wanted = msgspec.json.decode(body, type=_Wanted)
            selected = {"key": wanted.name} if wanted.kind == "key" else {"tag": wanted.name}
            written = await self._source.invalidate(wanted.cache, **selected)
        except (msgspec.DecodeError, TypeError, ValueError) as error:
            return _problem(400, str(error))
        except AcgsperfError as error:
            return _problem(409, str(error))
        return 200, msgspec.json.encode(written)

    def _is_authorized(self, header: bytes) -> bool:
        scheme, given = header[: len(_SCHEME)].lower(), header[len(_SCHEME) :]
        # The comparison takes the same time wherever the first difference is.
        return hmac.compare_digest(given.strip(), self._token) and scheme == _SCHEME


async def _body(receive: Receive) -> bytes | None:
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return bytes(body)
        body += message.get("body", b"")
        if len(body) > _MAX_BODY_BYTES:
            return None
        if not message.get("more_body", False):
            return bytes(body)


def _problem(status: int, text: str) -> Answer:
    return status, msgspec.json.encode({"error": text})
