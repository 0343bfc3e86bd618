"""Selects the answer to a request from a stored response: the whole, a part (206), or no body (304, 416)."""

from acgsperf.asgi.fields import http_date, joined
from acgsperf.asgi.ranges import UNSATISFIABLE, part_of
from acgsperf.asgi.request import CacheableRequest
from acgsperf.asgi.stored import Stored
from acgsperf.asgi.types import RawHeaders
from acgsperf.asgi.validators import is_not_modified, is_same_representation, not_modified_headers

__all__ = ["selected"]


def selected(request: CacheableRequest, stored: Stored) -> tuple[int, RawHeaders, bytes]:
    """Return status, headers and body of the answer to a request."""
    if stored.part is not None and request.range is not None:
        covered = stored.part.covers(request.range, len(stored.body))
        assert covered is not None
        return _partial(stored, covered, stored.part.first, stored.part.length)
    if request.wants_all or stored.status != 200:
        return stored.status, stored.headers, stored.body
    if is_not_modified(
        request.if_none_match, request.if_modified_since, stored.etag, stored.last_modified, stored.stored_at
    ):
        return 304, not_modified_headers(stored.headers), b""
    if request.range is not None and (
        request.if_range is None
        or is_same_representation(request.if_range, stored.etag, stored.last_modified, _dated_at(stored))
    ):
        length = len(stored.body)
        part = part_of(request.range, length)
        if part is UNSATISFIABLE:
            return 416, _described(stored, b"bytes */%d" % length, 0), b""
        if part is not None:
            return _partial(stored, part, 0, length)
    return 200, stored.headers, stored.body


def _dated_at(stored: Stored) -> float:
    date = http_date(joined(stored.headers, b"date"))
    return stored.stored_at if date is None else date


def _partial(stored: Stored, part: slice, offset: int, length: int) -> tuple[int, RawHeaders, bytes]:
    body = stored.body[part]
    extent = b"bytes %d-%d/%d" % (part.start + offset, part.stop + offset - 1, length)
    return 206, _described(stored, extent, len(body)), body


def _described(stored: Stored, content_range: bytes, length: int) -> RawHeaders:
    """Return the headers of a response, with `Content-Range` and `Content-Length` for a part."""
    replaced = {b"content-length", b"content-range"}
    headers = [pair for pair in stored.headers if pair[0].lower() not in replaced]
    return [*headers, (b"content-range", content_range), (b"content-length", b"%d" % length)]
