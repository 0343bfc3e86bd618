"""The behaviours of the suite that the middleware does not have, and the reason for each."""

AGE = "an `Age` that is not a single number makes a response stale, also `0,7200`; the suite expects this of `0, 0`"
CLOSED = (
    "the suite expects the body and the request count of a server that closes the connection instead of an answer; "
    "no cache can have them, and none in its results passes"
)
BODY = "the suite's server sends a body that is shorter than its `Content-Range` says"
COOKIE = "a response with `Set-Cookie` is not stored: the cookie of one client would reach all others"

ANOTHER = (
    "a 304 with another strong `ETag` must not update the stored response (RFC 9111, 4.3.4); "
    "the suite expects an update"
)

GAPS = {
    "304-etag-update-response-ETag": ANOTHER,
    "age-parse-prefix": AGE,
    "conditional-lm-fresh-no-lm": "without `Last-Modified`, `Date` is compared (RFC 9111, 4.3.2), and it is newer here",
    "headers-store-Set-Cookie": COOKIE,
    "304-etag-update-response-Set-Cookie": COOKIE,
    "method-POST": "responses to POST are not stored: a later write may change the resource before the response ends",
    "other-set-cookie": COOKIE,
    "partial-store-partial-complete": "stored parts are not completed",
    "partial-store-partial-reuse-partial-absent": BODY,
    "partial-store-partial-reuse-partial-suffix": BODY,
    "stale-close-must-revalidate": CLOSED,
    "stale-close-no-cache": CLOSED,
    "stale-close-proxy-revalidate": CLOSED,
    "stale-close-s-maxage=2": CLOSED,
    "vary-normalise-lang-select": "no language is selected; only equal values of `Accept-Language` select a response",
}
# Behaviours of the option `heuristic`, which is off by default.
OF_HEURISTIC = frozenset(f"heuristic-{status}-cached" for status in (200, 203, 204, 404, 405, 410, 414, 501, 599))
