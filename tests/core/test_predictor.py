"""`Predictor`: what it learns, which keys it asks for, and what it holds."""

import inspect
import random
import sys

import pytest
from conftest import IMPLEMENTATIONS, imported

from acgsperf._native.predicting import WASTE, WINDOW
from acgsperf._native.prediction_stats import BANDS
from acgsperf._native.relearning import learned, relearn


class Client:
    """Requests keys through a predictor, as a cache does that holds nothing itself."""

    def __init__(self, predictor, held=()):
        self.predictor = predictor
        self.held = held
        self.requests = self.first_uses = 0
        self.fetched = []

    def request(self, key, answer=True):
        """Request a key. Return the keys to fetch, which arrive at once unless `answer` is False."""
        self.requests += 1
        first_use = self.predictor.take(key) is not None
        self.first_uses += first_use
        wanted = self.predictor.next(key, self.held, self.requests, first_use)
        self.fetched += wanted
        if answer:
            for other in wanted:
                self.predictor.store(other, f"value of {other}")
        return wanted

    def request_all(self, keys):
        for key in keys:
            self.request(key)


def names(count, prefix="key"):
    return [f"{prefix} {number}" for number in range(count)]


def active(predictor):
    return {found.name for found in predictor.stats().classes if found.active}


@pytest.fixture
def make(predictors):
    def make(size=100, held=(), **options):
        return Client(predictors.Predictor(size, **options), held)

    return make


@pytest.fixture
def client(make):
    """A client that has requested 50 keys in a loop, and 1,000 other requests before."""
    client = make()
    client.request_all(names(1_000, "once"))
    client.request_all(names(50) * 4)
    return client


def test_a_loop_is_predicted_once_it_is_known(make):
    client = make()
    client.request_all(names(1_000, "once"))
    client.request_all(names(50) * 2)
    before = client.first_uses
    client.request_all(names(50) * 10)
    assert client.first_uses - before >= 480
    stats = client.predictor.stats()
    assert stats.active
    assert stats.precision == 1.0
    assert stats.used == client.first_uses
    assert stats.issued == stats.used + stats.held


def test_the_last_two_keys_predict_where_one_is_not_enough(make):
    client = make(depth=1)
    client.request_all(names(1_000, "once"))
    client.request_all(["a", "x", "1", "b", "x", "2", "c", "x", "3"] * 20)
    before = client.first_uses
    client.request_all(["a", "x", "1", "b", "x", "2", "c", "x", "3"] * 10)
    assert client.first_uses - before == 90


def test_nothing_is_fetched_before_predictions_have_come_true(make):
    client = make()
    client.request_all(names(1_000, "once"))
    client.request_all(names(50))
    for key in names(15):
        assert client.request(key) == []
    assert not client.predictor.stats().active
    client.request_all(names(50)[15:])
    assert client.predictor.stats().active


def test_traffic_without_order_fetches_nothing(make):
    chooser = random.Random(1)
    client = make(depth=8)
    client.request_all(f"key {chooser.randrange(5_000)}" for _ in range(20_000))
    assert client.fetched == []
    assert len(client.predictor) == 0


def test_fetching_stops_when_predictions_stop_coming_true(make):
    client = make(size=10)
    client.request_all(names(400) * 5)
    assert client.predictor.stats().active
    chooser = random.Random(1)
    for _ in range(10):
        client.request_all(chooser.sample(names(400), 400))
    before = len(client.fetched)
    for _ in range(10):
        client.request_all(chooser.sample(names(400), 400))
    # Sixteen predictions may come true by chance.
    assert len(client.fetched) - before <= 0.01 * 4_000


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_depth_is_how_far_ahead_it_fetches(make, depth):
    client = make(depth=depth)
    client.request_all(names(1_000, "once"))
    client.request_all(names(50) * 6)
    client.predictor.clear()
    assert client.request("key 0") == names(50)[1 : depth + 1]
    assert client.request("key 1") == [f"key {depth + 1}"]


def test_a_chain_is_not_longer_than_half_the_values_that_fit(make):
    client = make(size=5, depth=8)
    client.request_all(names(1_000, "once"))
    client.request_all(names(50) * 6)
    client.predictor.clear()
    assert client.request("key 0") == ["key 1", "key 2"]


def test_keys_that_the_cache_holds_are_not_fetched(make):
    client = make(held=set())
    client.request_all(names(1_000, "once"))
    client.request_all(names(50) * 4)
    client.predictor.clear()
    client.held.add("key 1")
    assert client.request("key 0") == ["key 2"]


def test_a_value_is_held_until_it_is_requested(client):
    predictor = client.predictor
    assert "key 0" in predictor
    assert predictor.peek("key 0") == "value of key 0"
    assert predictor.keys() == ["key 0", "key 1"]
    assert len(predictor) == 2
    assert predictor.take("key 0") == "value of key 0"
    assert predictor.take("key 0") is None
    assert predictor.take("key 0", 7) == 7
    assert predictor.peek("key 0", 7) == 7
    assert predictor.keys() == ["key 1"]


def test_a_value_that_arrives_late_is_dropped(client):
    predictor = client.predictor
    predictor.clear()
    assert client.request("key 0", answer=False) == ["key 1", "key 2"]
    assert "key 1" not in predictor
    assert predictor.peek("key 1") is None
    used = predictor.stats().used
    assert predictor.take("key 1", "none") == "none"
    assert predictor.store("key 1", "late") is False
    assert predictor.store("key 2", "in time") is True
    assert predictor.store("key 2", "again") is False
    assert predictor.take("key 2") == "in time"
    assert (predictor.stats().late, predictor.stats().used) == (1, used + 1)


def test_fetching_stops_while_values_arrive_late(client):
    client.predictor.clear()
    fetched = []
    for _ in range(20):
        fetched += [len(client.request(key, answer=False)) for key in names(50)]
    assert sum(fetched[-200:]) <= 20
    # It tries again now and then, so it notices that values arrive in time again.
    client.request_all(names(50) * 60)
    before = client.first_uses
    client.request_all(names(50) * 10)
    assert client.first_uses - before >= 495


@pytest.mark.parametrize(("depth", "ahead"), [(1, 2), (2, 4), (4, 8), (5, 8), (8, 8)])
def test_a_miss_fetches_more_if_hits_cannot_fetch_in_time(make, depth, ahead):
    """Nothing arrives between two requests but what a miss has fetched."""
    client = make(depth=depth)
    client.request_all(names(20_000, "once"))
    most = 0
    for _ in range(200):
        for key in names(50):
            first_use = client.predictor.peek(key) is not None
            wanted = client.request(key, answer=False)
            if not first_use:
                most = max(most, len(wanted))
                for other in wanted:
                    client.predictor.store(other, "value")
    assert most == ahead
    # When values arrive in time again, it notices that.
    client.request_all(names(50) * 60)
    before = client.first_uses
    assert max(len(client.request(key)) for key in names(50)) <= depth
    assert client.first_uses - before >= 49


def test_what_cannot_be_fetched_counts_as_useless(client):
    predictor = client.predictor
    predictor.clear()
    client.request("key 0", answer=False)
    predictor.fail("key 1")
    predictor.fail("key 1")
    predictor.fail("unknown")
    assert predictor.stats().wasted == 1
    assert predictor.keys() == ["key 2"]
    predictor.store("key 2", 1)
    predictor.fail("key 2")
    assert predictor.peek("key 2") == 1


def test_a_value_that_its_request_cannot_use_is_useless_but_was_predicted_well(client):
    predictor = client.predictor
    before = predictor.stats()
    predictor.refuse("key 0")
    predictor.refuse("key 0")
    predictor.refuse("unknown")
    stats = predictor.stats()
    assert (stats.used, stats.wasted, stats.late) == (before.used, before.wasted + 1, before.late)
    assert predictor.keys() == ["key 1"]
    assert [found.active for found in stats.classes] == [found.active for found in before.classes]
    assert all(found.precision >= old.precision for found, old in zip(stats.classes, before.classes, strict=True))


def test_a_value_that_has_changed_is_dropped_and_not_counted(client):
    predictor = client.predictor
    before = predictor.stats()
    predictor.discard("key 0")
    predictor.discard("key 0")
    assert predictor.peek("key 0") is None
    predictor.clear()
    assert len(predictor) == 0
    assert (predictor.stats().wasted, predictor.stats().used) == (before.wasted, before.used)


def test_a_value_is_dropped_after_some_time(make):
    client = make(size=10)
    client.request_all(names(1_000, "once"))
    client.request_all(names(50) * 4)
    assert len(client.predictor) == 2
    client.request_all(names(39, "other"))
    assert len(client.predictor) == 2
    client.request_all(names(2, "another"))
    assert len(client.predictor) == 0
    assert client.predictor.stats().wasted == 2


def test_no_more_values_are_held_than_fit(make):
    client = make(size=4)
    chooser = random.Random(2)
    sequences = [names(6, f"sequence {number}") for number in range(50)]
    for _ in range(2_000):
        client.request_all(chooser.choice(sequences)[: chooser.choice((3, 6, 6))])
        assert len(client.predictor) <= client.predictor.reserved <= 4
    assert client.first_uses > 2_500


def test_what_the_cache_should_leave_to_it_grows_in_small_steps(make):
    # Evicting thousands of entries at once would delay a request.
    client = make(size=1_000, depth=8)
    loop = names(3_000)
    client.request_all(loop * 3)
    client.predictor.clear()
    last = 0
    # Of each eight keys, one is requested, so that the others wait.
    for key in loop[::8]:
        client.request(key)
        assert client.predictor.reserved - last in (0, 64) or client.predictor.reserved < last
        assert len(client.predictor) <= client.predictor.reserved
        last = client.predictor.reserved
    assert last >= 64


def test_what_the_cache_should_leave_to_it_falls_again(client):
    assert client.predictor.reserved == 25
    client.request_all(names(500, "other"))
    assert client.predictor.reserved == 0


@pytest.mark.parametrize("depth", [1, 8])
def test_useless_fetches_are_limited_to_a_share_of_the_requests(make, depth):
    chooser = random.Random(3)
    client = make(depth=depth)
    most = 0.0
    for _ in range(5_000):
        first = chooser.randrange(3_000)
        client.request_all(f"key {number}" for number in range(first, first + chooser.randrange(1, 6)))
        stats = client.predictor.stats()
        most = max(most, (stats.wasted + stats.held) / client.requests)
    assert stats.wasted > 0.04 * client.requests
    assert most <= WASTE


def test_the_first_fetch_needs_as_many_requests_as_make_up_for_a_useless_one(predictors):
    predictor = predictors.Predictor(100)
    predictor._set_classes([(32, 32, True)] * 32)
    predictor._learn(None, "key", "next", 3)
    assert predictor.next("key", (), round(1 / WASTE) - 1, False) == []
    assert predictor.next("key", (), round(1 / WASTE), False) == ["next"]


@pytest.mark.parametrize(
    ("requests", "counted", "useless"), [(WINDOW, WINDOW, 1_000), (WINDOW + 1, WINDOW + 1 - WINDOW // 2, 500)]
)
def test_after_many_requests_the_limit_is_a_share_of_the_latest(predictors, requests, counted, useless):
    most = int(WASTE * counted - useless)
    predictor = predictors.Predictor(2 * most, table_size=2**18)
    asked = []
    for number in range(1_000 + most + 100):
        predictor._set_classes([(32, 32, True)] * 32)
        predictor._learn(None, f"key {number}", f"next {number}", 3)
        asked.append(predictor.next(f"key {number}", (), WINDOW if number < 1_000 else requests, False))
        if number < 1_000:
            predictor.fail(f"next {number}")
    assert all(asked[:1_000])
    assert sum(map(len, asked[1_000:])) == most


def test_the_limit_counts_from_zero_when_the_requests_do(client):
    predictor = client.predictor
    predictor.clear()
    assert predictor.next("key 0", (), 10, False) == []
    assert predictor.next("key 0", (), 1_000, False) != []


def _state(predictor):
    """Everything that a predictor tells."""
    keys = predictor.keys()
    yield from (tuple(keys), len(predictor), predictor.reserved, predictor.depth, predictor.stats())
    yield from (tuple(predictor._classes()), tuple(predictor._successors()))
    for key in (*keys, "sequence 1 0", "unknown"):
        yield from (predictor.peek(key), key in predictor, predictor._successor(None, key))
        yield predictor._successor(key, "sequence 1 1")


def _change(predictor, change, depth):
    """Do one of the things that are rare."""
    if change == 0:
        predictor.clear()
    elif change == 1:
        predictor.depth = 8 if predictor.depth == depth else depth
    elif change == 2:
        predictor._set_classes([(90, 95, True), (-1, 5, False), *[(16, 12, True)] * 40])
    else:
        predictor._learn("learned 0", "learned 1", "learned 2", 2)
        predictor._learn(None, "learned 1", "learned 2", 9)
        predictor._learn(None, "learned 2", "learned 3", 0)


# What may become of the values to fetch, for some time.
OUTCOMES = [
    ["store"],
    ["wait"],
    ["store", "wait", "wait"],
    ["store", "store", "store", "fail", "refuse", "discard", "wait"],
]


def test_both_implementations_do_the_same():
    chooser = random.Random(4)
    for size, depth, table_size in ((3, 8, 64), (20, 2, 64), (50, 4, 1_024)):
        both = [
            imported("predictor", name).Predictor(size, depth=depth, table_size=table_size) for name in IMPLEMENTATIONS
        ]
        # The hashes of str are random. With other hashes, other contexts share a bucket of the table.
        sequences = [names(chooser.randrange(2, 30), f"sequence {number}") for number in range(60)]
        held = set()
        requests = 0
        usual = ["store"]
        for _ in range(800):
            if chooser.random() < 0.05:
                usual = chooser.choice(OUTCOMES)
            for key in chooser.choice(sequences):
                if chooser.random() < 0.1:
                    key = f"noise {chooser.randrange(30)}"
                requests += chooser.randrange(20)
                taken = [predictor.take(key) for predictor in both]
                wanted = [predictor.next(key, held, requests, taken[0] is not None) for predictor in both]
                outcomes = [chooser.choice(usual) for _ in wanted[0]]
                for predictor in both:
                    for other, outcome in zip(wanted[0], outcomes, strict=True):
                        if outcome in ("store", "refuse"):
                            predictor.store(other, (other,))
                        if outcome == "refuse":
                            predictor.refuse(other)
                        elif outcome not in ("store", "wait"):
                            getattr(predictor, outcome)(other)
                assert all(seen == taken[0] for seen in taken)
                assert all(seen == wanted[0] for seen in wanted)
                held.add(key) if chooser.random() < 0.1 else held.discard(key)
            assert len({tuple(_state(predictor)) for predictor in both}) == 1
            if chooser.random() < 0.02:
                # The count of requests begins anew, or has grown by a lot meanwhile.
                requests = chooser.choice([0, requests + 2**16, requests + 2**18])
            if chooser.random() < 0.02:
                change = chooser.randrange(4)
                for predictor in both:
                    _change(predictor, change, depth)
        # In a table of 64 contexts, few survive until they are needed: how many depends on the hashes.
        assert both[0].stats().used > (20 if table_size > 64 else 0)


def test_classes_have_names(client):
    stats = client.predictor.stats()
    assert active(client.predictor) == {
        "order 2 confirmed, seen often, depth 1",
        "order 2 confirmed, seen once, depth 1",
        "order 2 confirmed, seen often, depth 2",
        "order 2 confirmed, seen once, depth 2",
    }
    for found in stats.classes:
        assert found.depth in BANDS
        assert 0 <= found.precision <= 1
        assert 0 < found.resolved <= 64


def test_a_collection_may_use_the_predictor(client):
    predictor = client.predictor

    class Collection:
        def __contains__(self, key):
            predictor.clear()
            predictor.take(key)
            for other in ("key 0", "key 1", "key 2"):
                predictor.next(other, (), client.requests, False)
            return False

    client.held = Collection()
    client.request_all(names(50) * 3)
    assert len(predictor) <= predictor.size


def test_the_end_of_a_value_may_use_the_predictor(make):
    client = make(size=2)
    predictor = client.predictor

    class Value:
        def __del__(self):
            predictor.clear()
            for key in names(10):
                predictor.next(key, (), client.requests, False)

    client.request_all(names(1_000, "once"))
    for key in names(20) * 20:
        for wanted in client.request(key, answer=False):
            predictor.store(wanted, Value())
    assert len(predictor) <= 2


def test_an_error_of_the_collection_reaches_the_caller(client):
    client.predictor.clear()
    client.held = 7
    with pytest.raises(TypeError, match=r"not iterable|not a container"):
        client.request("key 0")
    client.held = ()
    client.request_all(names(50))
    client.predictor.clear()
    assert client.request("key 0") == ["key 1", "key 2"]


@pytest.mark.parametrize("method", ["take", "peek", "discard", "fail", "refuse", "__contains__"])
@pytest.mark.parametrize("key", [7, b"key", None])
def test_a_key_is_a_str(client, method, key):
    with pytest.raises(TypeError):
        getattr(client.predictor, method)(key)
    with pytest.raises(TypeError):
        client.predictor.next(key, (), 1, False)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((0,), {}, ValueError, "size must be between 1 and 16777216, got 0"),
        ((True,), {}, TypeError, "size must be an integer, got True"),
        ((1,), {"depth": 9}, ValueError, "depth must be between 1 and 8, got 9"),
        ((1,), {"depth": 1.5}, TypeError, "depth must be an integer, got 1.5"),
        ((1,), {"table_size": 63}, ValueError, "table_size must be between 64 and 16777216, got 63"),
        ((1,), {"table_size": "1"}, TypeError, "table_size must be an integer, got '1'"),
    ],
)
def test_a_bad_argument_is_refused(predictors, arguments, options, error, message):
    with pytest.raises(error, match=message):
        predictors.Predictor(*arguments, **options)


def test_its_options_can_be_read(predictors):
    predictor = predictors.Predictor(10, depth=3, table_size=128)
    assert (predictor.size, predictor.depth, predictor.table_size, predictor.reserved) == (10, 3, 128, 0)
    assert inspect.getdoc(predictor.take).startswith("Return the value of a predicted key")


@pytest.mark.skipif("c" not in IMPLEMENTATIONS, reason="an entry of the twin takes more")
def test_a_context_takes_16_bytes():
    small, large = (imported("predictor", "c").Predictor(10, table_size=size) for size in (64, 65_536))
    assert sys.getsizeof(large) - sys.getsizeof(small) == 2 * 16 * (65_536 - 64)


def test_its_size_has_the_tables_and_what_it_holds(predictors):
    small, large = (sys.getsizeof(predictors.Predictor(100, table_size=size)) for size in (64, 1_024))
    assert large - small >= 2 * 8 * (1_024 - 64)
    client = Client(predictors.Predictor(100, table_size=64))
    empty = sys.getsizeof(client.predictor)
    client.request_all(names(50) * 20)
    assert sys.getsizeof(client.predictor) >= empty


def test_what_was_learned_can_be_taken_to_another_process(predictors):
    predictor, other = (predictors.Predictor(20, table_size=4_096) for _ in range(2))
    chooser = random.Random(1)
    keys = [f"key {number}" for number in range(200)]
    walk = [key for _ in range(40) for start in [chooser.randrange(180)] for key in keys[start : start + 20]]
    for key in walk:
        predictor.take(key)
        for wanted in predictor.next(key, (), 1_000_000, False):
            predictor.store(wanted, "value")
    found = learned(predictor)
    assert len(found.singles) > 150
    assert len(found.pairs) > 150
    relearn(other, found)
    for last, following, count in found.singles:
        assert other._successor(None, found.keys[last]) == (found.keys[following], max(1, count))
    for before, last, following, count in found.pairs:
        names = found.keys[before], found.keys[last]
        assert other._successor(*names) == (found.keys[following], max(1, count))
    assert other.stats().classes == predictor.stats().classes


def test_what_follows_two_keys_is_used_from_the_second_request_on(predictors):
    predictor = predictors.Predictor(100)
    predictor._set_classes([(32, 32, True)] * 32)
    predictor._learn("key 1", "key 2", "key 3", 3)
    assert predictor.next("key 1", (), 100, False) == []
    assert predictor.next("key 2", (), 101, False) == ["key 3"]


def test_the_depth_may_change_while_it_predicts(make):
    client = make(depth=1)
    client.request_all(names(50) * 20)
    shallow = {found.depth for found in client.predictor.stats().classes}
    client.predictor.depth = 8
    client.request_all(names(50) * 20)
    deep = {found.depth for found in client.predictor.stats().classes}
    assert (shallow, "5-8" in deep) == ({"1"}, True)
    with pytest.raises(ValueError, match="depth must be"):
        client.predictor.depth = 9
    assert client.predictor.depth == 8
