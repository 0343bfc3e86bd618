"""The compiled search for hits of the HTTP response cache, and its twin."""

import gc
import weakref

import pytest
from conftest import IMPLEMENTATIONS, imported

READ = frozenset({b"host", b"cookie", b"range"})
KEY = (b"/a", b"q=1", b"test", "http")
SCOPE = {"raw_path": b"/a", "query_string": b"q=1", "scheme": "http", "headers": [(b"host", b"test"), (b"a", b"b")]}


class Target:
    uri = "uri"


class Response:
    """What L1 has."""


class Finding:
    """A finder with one response, and how often it was prepared."""

    def __init__(self, kind):
        self.response = Response()
        self.local = {"uri": [self.response]}
        self.now = 0.0
        self.prepared = 0
        self.fresh = True
        self.targets = {KEY: Target()}
        self.finder = kind(READ, self.targets, self.local.get, lambda: self.now, self.prepare)

    def prepare(self, stored):
        self.prepared += 1
        if stored is not self.response or not self.fresh:
            return None
        stored.ready = (self.finder, self.now + 1, "answer", self.prepared)
        return stored.ready

    def found(self, **changed):
        answer = self.finder.find({**SCOPE, **changed})
        return None if answer is None else answer[2:]


@pytest.fixture(params=IMPLEMENTATIONS)
def finding(request):
    return Finding(imported("hits", request.param).HitFinder)


def test_an_answer_is_prepared_once_until_it_expires(finding):
    for now, prepared in ((0, 1), (0.9, 1), (1, 2), (1.5, 2), (2, 3)):
        finding.now = now
        assert finding.found() == ("answer", prepared)
    assert finding.finder.hits == 5


def test_an_answer_of_another_finder_is_not_sent(finding):
    finding.response.ready = (object(), 100.0, "other")
    assert finding.found() == ("answer", 1)


def test_a_response_that_is_not_fresh_is_not_a_hit(finding):
    finding.fresh = False
    assert finding.found() is None
    assert finding.finder.hits == 0


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(b"host", b"other")],
        [(b"host", b"test"), (b"host", b"test")],
        [(b"host", b"test"), (b"cookie", b"a")],
        [(b"cookie", b"a"), (b"host", b"test")],
    ],
    ids=str,
)
def test_headers_that_the_cache_reads_need_the_general_path(finding, headers):
    assert finding.found(headers=headers) is None
    assert finding.prepared == 0


@pytest.mark.parametrize("headers", [[(b"host", b"test")], [[b"a", b"b"], [b"host", b"test"]], ((b"host", b"test"),)])
def test_other_headers_do_not_matter(finding, headers):
    assert finding.found(headers=headers) == ("answer", 1)
    assert finding.found(headers=iter(headers)) == ("answer", 1)


@pytest.mark.parametrize("changed", [{"raw_path": b"/b"}, {"query_string": b""}, {"scheme": "https"}, {"raw_path": []}])
def test_another_target_is_not_found(finding, changed):
    assert finding.found(**changed) is None


@pytest.mark.parametrize("absent", ["raw_path", "query_string", "scheme"])
def test_parts_of_a_scope_may_be_absent(finding, absent):
    assert finding.finder.find({name: value for name, value in SCOPE.items() if name != absent}) is None


@pytest.mark.parametrize("cell", [None, "text", b"x", 7, [], [1], ["a", "b"], {"a": 1}, ("a",)], ids=repr)
def test_values_of_other_users_are_not_found(finding, cell):
    finding.local["uri"] = cell
    assert finding.found() is None


def test_an_error_of_its_parts_is_not_hidden(finding):
    def fail(_):
        raise RuntimeError("on purpose")

    finder = type(finding.finder)(READ, finding.targets, fail, lambda: 0.0, fail)
    with pytest.raises(RuntimeError, match="on purpose"):
        finder.find(SCOPE)
    finder = type(finding.finder)(READ, finding.targets, finding.local.get, lambda: 0.0, fail)
    with pytest.raises(RuntimeError, match="on purpose"):
        finder.find(SCOPE)


def test_a_finder_and_its_answers_are_collected(finding):
    finding.found()
    gone = weakref.ref(finding.response)
    finding.__dict__.clear()
    gc.collect()
    assert gone() is None
