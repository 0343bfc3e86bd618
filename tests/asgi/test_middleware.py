"""The gate, the routes and the page of metrics, in this event loop."""

import json

import pytest
from ids import name_of

from acgsperf import CONSTITUTIONAL_HASH, ComplianceValidator, LRUCache, TieredCache
from acgsperf.asgi import PerformanceMiddleware

HEADER = "x-constitutional-hash"
GOOD = {HEADER: CONSTITUTIONAL_HASH}
CACHE = TieredCache(LRUCache(1), namespace="http")


@pytest.fixture
def validator():
    return ComplianceValidator()


async def test_an_accepted_hash_passes_and_the_response_says_so(connect, origin, validator):
    answer = await connect(origin, validator=validator).get("/", headers=GOOD)
    assert (answer.status_code, origin.calls) == (200, 1)
    for name, value in validator.response_headers().items():
        assert answer.headers.get_list(name) == [value]


async def test_headers_of_the_application_do_not_double_those_of_the_gate(connect, origin, validator):
    origin.headers = [("X-Constitutional-Hash", "f" * 16)]
    answer = await connect(origin, validator=validator).get("/")
    assert answer.headers.get_list(HEADER) == [CONSTITUTIONAL_HASH]


@pytest.mark.parametrize("found", ["0" * 16, "", "nonsense", "é", "x" * 10_000])
async def test_another_hash_is_refused_before_the_application(connect, origin, validator, found):
    client = connect(origin, validator=validator)
    answer = await client.get("/", headers=[(HEADER.encode(), found.encode("latin-1"))])
    assert (answer.status_code, origin.calls) == (403, 0)
    assert answer.headers["content-type"] == "application/json"
    told = answer.json()
    assert CONSTITUTIONAL_HASH not in answer.text + str(answer.headers)
    assert told["found"] == found[:64]
    assert len(answer.content) < 500
    assert client.middleware.counts().refused == 1
    assert not validator.metrics().verdicts.valid


async def test_each_of_several_hashes_has_to_be_accepted(connect, origin, validator):
    answer = await connect(origin, validator=validator).get(
        "/", headers=[(HEADER, CONSTITUTIONAL_HASH), (HEADER, "0" * 16)]
    )
    assert (answer.status_code, origin.calls) == (403, 0)


async def test_a_missing_hash_is_refused_where_it_is_required(connect, origin, validator):
    assert (await connect(origin, validator=validator).get("/")).status_code == 200
    client = connect(origin, validator=validator, require_hash=True)
    answer = await client.get("/")
    assert (answer.status_code, answer.json()["found"], origin.calls) == (403, None, 1)
    assert (await client.get("/", headers=GOOD)).status_code == 200


async def test_what_is_kept_is_behind_the_gate(connect, origin, validator, cache):
    origin.headers = [("cache-control", "public, max-age=60")]
    client = connect(origin, validator=validator, cache=cache)
    await client.get("/", headers=GOOD)
    assert (await client.get("/", headers={HEADER: "0" * 16})).status_code == 403
    again = await client.get("/", headers=GOOD)
    assert (again.headers.get_list(HEADER), origin.calls) == ([CONSTITUTIONAL_HASH], 1)


async def test_the_page_of_metrics_is_before_the_gate(connect, origin, validator):
    client = connect(
        origin, validator=validator, require_hash=True, metrics=lambda: ("text/plain", b"a 1\n"), metrics_path="/m"
    )
    page = await client.get("/m")
    assert (page.text, page.headers["content-type"], page.headers["content-length"]) == ("a 1\n", "text/plain", "4")
    assert (await client.head("/m")).content == b""
    assert origin.calls == 0
    assert (await client.get("/metrics")).status_code == 403
    assert client.middleware.routes() == {}


async def test_without_metrics_their_path_is_the_applications(connect, origin):
    assert (await connect(origin).get("/metrics")).text == "answer 1"


class Template:
    def __init__(self, path):
        self.path = path


async def test_a_route_is_the_template_where_there_is_one(connect):
    async def routed(scope, receive, send):
        scope["route"] = Template("/items/{id}")
        await send({"type": "http.response.start", "status": 404, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    client = connect(routed)
    for i in range(5):
        await client.get(f"/items/{i}")
    assert {route: latency.count for route, latency in client.middleware.routes().items()} == {"/items/{id}": 5}


async def test_strangers_cannot_fill_the_table_of_routes(connect, origin):
    client = connect(origin, max_routes=2)
    for i in range(5):
        await client.get(f"/{i}")
    origin.status = 404
    await client.get("/0/scan")
    counts = {route: latency.count for route, latency in client.middleware.routes().items()}
    assert counts == {"/0": 1, "/1": 1, "other": 4}


async def test_a_response_from_the_cache_counts_for_its_route(connect, cache):
    async def routed(scope, receive, send):
        scope["route"] = Template("/items/{id}")
        headers = [(b"cache-control", b"max-age=60")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b""})

    client = connect(routed, cache=cache)
    for _ in range(3):
        await client.get("/items/1")
    assert client.middleware.routes()["/items/{id}"].count == 3
    assert client.middleware.counts().hits == 2


async def test_a_request_that_fails_is_counted_once(connect, origin):
    origin.failure = RuntimeError("midway")
    client = connect(origin)
    with pytest.raises(RuntimeError, match="midway"):
        await client.get("/a")
    assert client.middleware.routes()["/a"].count == 1


@pytest.mark.parametrize("kind", ["websocket", "lifespan"])
async def test_other_scopes_pass_through_untouched(validator, kind):
    seen = []

    async def app(*arguments):
        seen.append(arguments)

    middleware = PerformanceMiddleware(app, validator=validator, require_hash=True)
    arguments = ({"type": kind}, object(), object())
    await middleware(*arguments)
    assert seen == [arguments]
    assert all(a is b for a, b in zip(seen[0], arguments, strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"require_hash": True}, "require_hash=True needs a validator"),
        ({"exempt": ["/health"]}, "exempt=.* needs a validator"),
        ({"exempt": "/health", "validator": ComplianceValidator()}, "exempt must be an iterable"),
        ({"exempt": ["health"], "validator": ComplianceValidator()}, "exempt must contain paths that begin with /"),
        ({"vary": "accept", "cache": CACHE}, "vary must be an iterable"),
        ({"vary": ["a b"], "cache": CACHE}, "vary must contain header names only, got 'a b'"),
        ({"credentials": "x-key", "cache": CACHE}, "credentials must be an iterable"),
        ({"heuristic": 0}, "heuristic must be greater than 0, got 0"),
        ({"stale_ttl": -1}, "stale_ttl must be at least 0 and finite, got -1"),
        ({"stale_while_revalidate": "long"}, "stale_while_revalidate must be a number"),
        ({"stale_if_error": float("inf")}, "stale_if_error must be at least 0 and finite, got inf"),
        ({"ttl": 0}, "ttl must be greater than 0, got 0"),
        ({"ttl": "soon"}, "ttl must be a number, got 'soon'"),
        ({"ttl": float("inf")}, "ttl must be finite, got inf"),
        ({"max_routes": -1}, "max_routes must be at least 0"),
        ({"max_body_bytes": -1}, "max_body_bytes must be at least 0"),
        ({"max_body_bytes": 1.5}, "max_body_bytes must be an integer"),
        ({"metrics": "page"}, "metrics must be callable"),
        ({"validator": "gate"}, "validator must be a ComplianceValidator"),
        ({"cache": {}}, "cache must be a TieredCache"),
        ({"cache": TieredCache(LRUCache(1), namespace="n", value_type=dict)}, "cache must have no value_type"),
        ({"metrics_path": "metrics"}, "metrics_path must begin with /"),
    ],
    ids=name_of,
)
def test_an_argument_out_of_bounds_is_named(options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        PerformanceMiddleware(None, **options)


async def test_the_refusal_is_json_whatever_was_sent(connect, origin, validator):
    answer = await connect(origin, validator=validator).get("/", headers=[(HEADER.encode(), bytes(range(128, 256)))])
    assert json.loads(answer.content)["found"] == bytes(range(128, 192)).decode("latin-1")


async def test_a_preflight_passes_where_a_hash_is_required(connect, origin, validator):
    client = connect(origin, validator=validator, require_hash=True)
    preflight = {"Origin": "http://app", "Access-Control-Request-Method": "POST"}
    assert (await client.options("/a", headers=preflight)).status_code == 200
    assert (await client.options("/a", headers=preflight | {HEADER: "0" * 16})).status_code == 403
    assert (await client.options("/a", headers={"Origin": "http://app"})).status_code == 403
    assert (await client.post("/a", headers=preflight)).status_code == 403
    assert origin.calls == 1


async def test_a_response_to_a_request_without_the_hash_does_not_tell_it_where_it_is_required(
    connect, origin, validator, cache
):
    origin.headers = [("cache-control", "public, max-age=60"), ("x-a", "1")]
    client = connect(origin, validator=validator, require_hash=True, exempt=("/health",), cache=cache)
    preflight = {"Origin": "http://app", "Access-Control-Request-Method": "POST"}
    for answer in (
        await client.options("/a", headers=preflight),
        *[await client.get("/health") for _ in range(3)],
        await client.head("/health"),
        await client.get("/health", headers={"range": "bytes=0-0"}),
    ):
        assert answer.is_success
        assert answer.headers["x-a"] == "1"
        assert answer.headers.keys().isdisjoint(name.lower() for name in validator.response_headers())
    for _ in range(2):
        assert (await client.get("/health", headers=GOOD)).headers[HEADER] == CONSTITUTIONAL_HASH
    assert origin.calls == 2


async def test_an_exempt_path_needs_no_hash(connect, origin, validator):
    client = connect(origin, validator=validator, require_hash=True, exempt=("/health", "/ready"))
    for path, status in (("/health", 200), ("/ready?deep", 200), ("/health/", 403), ("/", 403)):
        assert (await client.get(path)).status_code == status
    assert (await client.get("/health", headers={HEADER: "0" * 16})).status_code == 403
