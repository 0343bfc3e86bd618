"""`ReadQueue` collects reads until a batch takes them, and `answer` sets their results."""

import asyncio
import gc
import inspect
import threading
import weakref

import pytest
from conftest import IMPLEMENTATIONS, imported


class Breaker:
    state = "closed"


class Made:
    """An open queue, and the objects that it uses."""

    def __init__(self, module):
        self.scheduled = self.checks = 0
        self.schedules = False
        self.error = None
        self.breaker = Breaker()
        self.pending = {}
        self.loop = object()
        self.queue = module.ReadQueue(self.future, self.schedule)
        self.queue.guard(self.check, self.breaker, Breaker.state, self.pending)
        self.queue.open(self.loop)

    def future(self, *, loop):
        assert loop is self.loop
        return [loop]

    def schedule(self):
        self.scheduled += 1
        self.queue.scheduled = self.schedules

    def check(self):
        self.checks += 1
        if self.error is not None:
            raise self.error


@pytest.fixture
def module(core):
    return imported("read_path", core.IMPLEMENTATION)


@pytest.fixture
def made(module):
    return Made(module)


@pytest.fixture
def loop():
    with asyncio.Runner() as runner:
        yield runner.get_loop()


def test_a_read_waits_with_its_future(made):
    first, second = made.queue.begin("a"), made.queue.begin("b")
    assert (made.queue.keys, made.queue.futures) == (["a", "b"], [first, second])
    assert made.queue.futures[0] is first
    assert first is not second


def test_a_batch_is_scheduled_once(made):
    made.schedules = True
    for key in "abc":
        made.queue.begin(key)
    assert made.scheduled == 1


def test_every_read_asks_for_a_batch_while_none_can_be_scheduled(made):
    for key in "abc":
        made.queue.begin(key)
    assert made.scheduled == 3


def test_the_key_waits_when_the_batch_is_scheduled(made, module):
    seen = []
    queue = module.ReadQueue(made.future, lambda: seen.append(list(queue.keys)))
    queue.guard(made.check, made.breaker, "closed", {})
    queue.open(made.loop)
    queue.begin("a")
    assert seen == [["a"]]


def test_a_read_does_not_begin_unless_the_breaker_is_closed(made):
    made.breaker.state = "open"
    assert made.queue.begin("a") is None
    assert (made.queue.keys, made.scheduled) == ([], 0)


def test_a_pending_key_does_not_begin(made):
    made.pending["a"] = 1
    assert made.queue.begin("a") is None
    assert made.queue.begin("b") is not None
    assert made.queue.keys == ["b"]


def test_the_first_read_of_a_batch_checks_the_use(made):
    for key in "abc":
        made.queue.begin(key)
    assert made.checks == 1
    made.queue.take(10)
    made.queue.begin("d")
    assert made.checks == 2


def test_every_read_in_another_thread_checks_the_use(made):
    made.queue.begin("a")
    made.error = RuntimeError("another loop")
    raised = []

    def read():
        try:
            made.queue.begin("b")
        except RuntimeError as error:
            raised.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    thread.join()
    assert raised == [made.error]
    assert made.queue.keys == ["a"]


def test_a_use_that_is_refused_adds_nothing(made):
    made.error = RuntimeError("not open")
    with pytest.raises(RuntimeError, match="not open"):
        made.queue.begin("a")
    assert (made.queue.keys, made.queue.futures, made.scheduled) == ([], [], 0)


@pytest.mark.parametrize(("most", "taken"), [(0, ""), (2, "ab"), (3, "abc"), (9, "abc")])
def test_the_oldest_reads_are_taken(made, most, taken):
    futures = [made.queue.begin(key) for key in "abc"]
    keys, of_keys = made.queue.take(most)
    assert (keys, of_keys) == (list(taken), futures[: len(taken)])
    assert made.queue.keys == list("abc")[len(taken) :]
    assert made.queue.futures == futures[len(taken) :]
    keys.append("x")
    of_keys.append("x")
    assert "x" not in made.queue.keys + made.queue.futures


def test_a_key_without_a_hash_is_an_error(made):
    with pytest.raises(TypeError, match="unhashable"):
        made.queue.begin([])
    assert made.queue.futures == []


def test_a_collection_that_takes_the_reads(made):
    class Pending(dict):
        def __contains__(self, key):
            made.queue.take(10)
            gc.collect()
            return False

    made.queue.guard(made.check, made.breaker, "closed", Pending())
    made.queue.begin("a")
    made.queue.begin("b")
    assert (made.queue.keys, len(made.queue.futures)) == (["b"], 1)


def test_a_cycle_through_a_queue_is_collected(module):
    class Owner:
        def schedule(self):
            pass

    owner = Owner()
    owner.queue = module.ReadQueue(asyncio.Future, owner.schedule)
    ended = weakref.ref(owner)
    del owner
    gc.collect()
    assert ended() is None


def test_both_have_the_same_methods():
    modules = [imported("read_path", name) for name in IMPLEMENTATIONS]
    for name in ("guard", "open", "begin", "take"):
        assert len({(*inspect.signature(getattr(module.ReadQueue, name)).parameters,) for module in modules}) == 1
    assert len({(*inspect.signature(module.answer).parameters,) for module in modules}) == 1


def test_each_future_gets_its_value(module, loop):
    futures = [loop.create_future() for _ in range(3)]
    module.answer(futures, ["a", None, "c"])
    assert [future.result() for future in futures] == ["a", None, "c"]


def test_a_future_without_a_value_gets_none(module, loop):
    futures = [loop.create_future() for _ in range(3)]
    module.answer(futures, ["a"])
    assert [future.result() for future in futures] == ["a", None, None]


def test_more_values_than_futures_are_ignored(module, loop):
    future = loop.create_future()
    module.answer([future], ["a", "b"])
    assert future.result() == "a"


def test_a_cancelled_future_stays_cancelled(module, loop):
    futures = [loop.create_future() for _ in range(3)]
    futures[1].cancel()
    module.answer(futures, ["a", "b", "c"])
    assert futures[1].cancelled()
    assert (futures[0].result(), futures[2].result()) == ("a", "c")


def test_an_error_of_the_event_loop_is_raised(module):
    class Future:
        def done(self):
            return False

        def set_result(self, value):
            raise RuntimeError("the loop is closed")

    with pytest.raises(RuntimeError, match="the loop is closed"):
        module.answer([Future()], [1])


def test_a_key_whose_future_could_not_be_added_does_not_shift_the_others(made):
    for use in (lambda: made.queue.begin("next"), lambda: made.queue.take(9)):
        made.queue.begin("first")
        # What is left if there was no memory to make the list of futures longer.
        made.queue.keys.append("orphan")
        use()
        keys, futures = made.queue.take(9)
        assert "orphan" not in keys
        assert len(keys) == len(futures)
