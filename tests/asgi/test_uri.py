"""Equal URIs have one response: RFC 3986, 6.2."""

import pytest

from acgsperf.asgi.uri import path_tag, related, target_of


def scope_of(path, query=b"", host=b"test", scheme="http"):
    return {"scheme": scheme, "path": "", "raw_path": path, "query_string": query, "headers": [(b"host", host)]}


def uri_of(*arguments, **options):
    return target_of(scope_of(*arguments, **options)).uri


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((b"/%7Eu",), (b"/~u",)),
        ((b"/%c3%a4",), (b"/%C3%A4",)),
        ((b"/\xc3\xa4",), (b"/%C3%A4",)),
        ((b"/%41%2D%2e%5F",), (b"/A-._",)),
        ((b"/a/./b/../c",), (b"/a/c",)),
        ((b"/../a",), (b"/a",)),
        ((b"/a/..",), (b"/",)),
        ((b"/a/%2E%2E/b",), (b"/b",)),
        ((b"",), (b"/",)),
        ((b"/", b"a=%7e"), (b"/", b"a=~")),
        ((b"/", b"", b"TEST:80"), (b"/", b"", b"test")),
        ((b"/a|b{c}",), (b"/a%7Cb%7Bc%7D",)),
        ((b"/", b"a[]=1"), (b"/", b"a%5B%5D=1")),
        ((b"/", b"", b"test:"), (b"/", b"", b"test")),
        ((b"/", b"", b"test:443", "https"), (b"/", b"", b"test", "https")),
    ],
)
def test_equal_uris_have_one_key(one, other):
    assert uri_of(*one) == uri_of(*other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((b"/a",), (b"/A",)),
        ((b"/a%2Fb",), (b"/a/b",)),
        ((b"/a%3Fb",), (b"/a", b"b")),
        ((b"/a/",), (b"/a",)),
        ((b"/a//b",), (b"/a/b",)),
        ((b"/", b"a=%2B"), (b"/", b"a=+")),
        ((b"/", b"", b"test:443"), (b"/", b"", b"test")),
        ((b"/",), (b"/", b"", b"test", "https")),
        ((b"/%",), (b"/%25",)),
        # A host may contain any characters: servers do not check it.
        ((b"/b", b"", b"test/a"), (b"/a/b",)),
        ((b"/", b"", b"test/a?b="), (b"/a", b"b=/")),
        ((b"/b", b"", b"test#"), (b"/b",)),
        ((b"/b", b"", b"test%2fa"), (b"/b", b"", b"test/a")),
        ((b"/", b"", b"test::80"), (b"/",)),
        ((b"/", b"", b"user@test"), (b"/",)),
        ((b"/a@b",), (b"/a%40b",)),
        ((b"/a?b",), (b"/a", b"b")),
    ],
)
def test_different_uris_have_different_keys(one, other):
    assert uri_of(*one) != uri_of(*other)


async def test_a_host_cannot_stand_for_a_part_of_the_path(connect, origin, cache):
    origin.headers = [("cache-control", "max-age=60")]
    client = connect(origin, cache=cache)
    await client.get("/b", headers={"host": "test/a"})
    assert (await client.get("/a/b", headers={"host": "test"})).text == "answer 2"


async def test_an_unsafe_request_removes_every_spelling(connect, origin, cache):
    origin.headers = [("cache-control", "max-age=60")]
    client = connect(origin, cache=cache)
    first = await client.get("http://test/%7Eu")
    assert (await client.get("http://test:80/~u")).text == first.text
    await client.put("http://TEST/~u")
    assert (await client.get("http://test/%7Eu")).text != first.text


async def test_a_response_to_a_path_with_dot_segments_is_not_kept(connect, origin, cache):
    origin.headers = [("cache-control", "max-age=60")]
    middleware = connect(origin, cache=cache).middleware
    sent = []

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message):
        sent.append(message)

    for path in (b"/x/../a", b"/a", b"/x/../a"):
        scope = scope_of(path) | {"type": "http", "method": "GET"}
        await middleware(scope, receive, send)
    # The application may read the first path in another way, so its response is not stored. The last one gets a hit.
    assert origin.calls == 2
    assert [message["body"] for message in sent[1::2]] == [b"answer 1", b"answer 2", b"answer 2"]


@pytest.mark.parametrize(
    ("location", "path"),
    [
        ("/b", "/b"),
        ("b", "/x/b"),
        ("../b?q=1", "/b?q=1"),
        ("http://TEST:80/%7eb", "/~b"),
        ("//test/b", "/b"),
        ("", "/x/a"),
        ("https://test/b", None),
        ("http://other/b", None),
        ("http://[/", None),
        ("/" + "b" * 3_000, None),
        ("\xff", "/x/%FF"),
    ],
)
def test_what_a_response_refers_to_is_of_the_same_origin(location, path):
    headers = [(b"location", location.encode("latin-1"))]
    assert list(related(scope_of(b"/x/a"), headers)) == ([] if path is None else [f"http:http://test{path}"])


@pytest.mark.parametrize("header", ["location", "content-location"])
async def test_a_write_removes_what_its_response_refers_to(connect, origin, cache, header):
    origin.headers = [("cache-control", "max-age=60")]
    client = connect(origin, cache=cache)
    await client.get("/items/7")
    origin.headers = [(header, "/items/7")]
    await client.post("/items")
    await client.get("/items/7")
    assert origin.calls == 3


async def test_an_application_that_changes_its_scope_does_not_change_what_is_removed(connect, cache):
    calls = 0

    async def app(scope, receive, send):
        nonlocal calls
        calls += 1
        scope |= {"path": "/changed", "raw_path": b"/changed", "root_path": "/a"}
        scope["headers"].clear()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"cache-control", b"max-age=60")]})
        await send({"type": "http.response.body", "body": b"%d" % calls})

    client = connect(app, cache=cache)
    assert [(await client.get("/a")).text for _ in range(2)] == ["1", "1"]
    await client.post("/a")
    assert (await client.get("/a")).text == "3"


def test_a_path_has_the_same_tag_however_it_is_written():
    tags = {path_tag(path) for path in ("/ä~/b", "/%C3%A4~/b", "/%c3%a4%7E/x/../b")}
    assert tags == {target_of(scope_of(b"/%C3%A4~/b", b"q=1", b"other", "https")).path}
    for path in ("a", "", "/a?b", "/a#b"):
        with pytest.raises(ValueError, match="path must begin with / and have no query"):
            path_tag(path)


@pytest.mark.parametrize("path", [b".com/x", b"*", b"http://example.com/x", b":80/x", b"@example.com/x"])
def test_a_target_without_a_path_is_not_joined_to_the_host(path):
    target = target_of(scope_of(path, host=b"example"))
    assert target.bypasses
    assert not target.storable
    assert target.uri == ""


def test_a_path_has_the_same_uri_with_and_without_its_raw_form():
    for text in ("/users/@me", "/a:b", "/a,b", "/a!b", "/a(b)", "/a;v=1", "/ä|ö"):
        decoded = {**scope_of(None), "path": text}
        assert target_of(decoded).uri == target_of(scope_of(text.encode())).uri
        location = [(b"location", text.encode())]
        assert list(related(scope_of(b"/"), location)) == [target_of(decoded).uri]
