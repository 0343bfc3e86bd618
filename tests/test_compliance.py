"""The compliance gate: hashes alone, in contexts, headers, requests and the environment."""

import os
import pickle
import subprocess
import sys

import pytest
from ids import name_of

from acgsperf import CONSTITUTIONAL_HASH, ComplianceError, ComplianceValidator, SettingsError, ValidatorStats

OLD = "0123456789abcdef"
OTHER = "f" * 16
BAD = [None, "", OTHER, CONSTITUTIONAL_HASH.upper(), CONSTITUTIONAL_HASH + " ", b"cdd01ef066bc6cf2", 42, [], object()]


class Liar(str):
    """Text that claims to equal everything."""

    __slots__ = ()

    def __eq__(self, other):
        return True

    def __hash__(self):
        return hash(CONSTITUTIONAL_HASH)


@pytest.fixture
def gate():
    return ComplianceValidator()


@pytest.fixture
def now():
    return [1_000.0]


@pytest.fixture(params=[True, False], ids=["fast path", "timed"])
def any_gate(request):
    return ComplianceValidator(fast_path=request.param)


@pytest.mark.parametrize("value", BAD, ids=name_of)
def test_nothing_but_an_accepted_hash_passes(any_gate, value):
    assert any_gate.validate(CONSTITUTIONAL_HASH) is True
    assert any_gate.validate(value) is False
    assert any_gate.validate_request({"constitutional_hash": value}) is False
    # The one place where bytes are text.
    as_bytes = value == CONSTITUTIONAL_HASH.encode()
    assert any_gate.validate_headers({"X-Constitutional-Hash": value}) is as_bytes
    assert any_gate.validate_with_context(value, {}).valid is False
    with pytest.raises(ComplianceError, match=f"^constitutional hash must be {CONSTITUTIONAL_HASH}, got "):
        any_gate.require(value)


def test_many_are_answered_in_order(any_gate):
    assert any_gate.validate_many([CONSTITUTIONAL_HASH, *BAD, CONSTITUTIONAL_HASH]) == [True, *[False] * len(BAD), True]
    assert any_gate.validate_many(iter([])) == []


async def test_awaiting_gives_the_same_answers(any_gate):
    assert await any_gate.validate_async(CONSTITUTIONAL_HASH) is True
    assert await any_gate.validate_async(OTHER) is False
    assert await any_gate.validate_many_async([OTHER, CONSTITUTIONAL_HASH]) == [False, True]


def test_a_missing_hash_is_accepted_nowhere(gate):
    assert not gate.validate_headers({})
    assert not gate.validate_request({})
    assert not gate.validate_environment({})


@pytest.mark.parametrize("name", ["X-Constitutional-Hash", "x-constitutional-hash", "X-CONSTITUTIONAL-HASH"])
def test_the_name_of_a_header_may_have_any_case(gate, name):
    assert gate.validate_headers({"Accept": "*/*", name: CONSTITUTIONAL_HASH})
    assert not gate.validate_headers({name: OTHER})


def test_headers_that_contradict_each_other_are_refused(gate):
    headers = {"X-Constitutional-Hash": CONSTITUTIONAL_HASH, "x-constitutional-hash": OTHER}
    assert not gate.validate_headers(headers)
    assert not gate.validate_headers(dict(reversed(headers.items())))


def test_response_headers_name_the_current_hash():
    assert ComplianceValidator([OLD, CONSTITUTIONAL_HASH]).response_headers() == {
        "X-Constitutional-Hash": OLD,
        "X-Constitutional-Compliance": "verified",
        "X-Performance-Targets": "P99<5.0ms",
    }


def test_a_context_is_remembered_by_hash_and_content(gate):
    asked = [
        (CONSTITUTIONAL_HASH, {"a": 1, "b": 2}, True, False),
        (CONSTITUTIONAL_HASH, {"b": 2, "a": 1}, True, True),
        (CONSTITUTIONAL_HASH, {"a": 1.0, "b": 2}, True, False),
        (OTHER, {"a": 1, "b": 2}, False, False),
        (OTHER, {"a": 1, "b": 2}, False, True),
    ]
    for value, context, valid, cached in asked:
        answer = gate.validate_with_context(value, context)
        assert (answer.valid, answer.cached, answer.context) == (valid, cached, context)
    metrics = gate.metrics()
    assert (metrics.context_hits, metrics.context_misses, metrics.context_size) == (2, 3, 3)


def test_a_context_is_forgotten_after_an_hour(now):
    gate = ComplianceValidator(clock=lambda: now[0])
    gate.validate_with_context(CONSTITUTIONAL_HASH, {})
    now[0] += 3_599.999
    assert gate.validate_with_context(CONSTITUTIONAL_HASH, {}).cached
    assert gate.optimize() == ()
    now[0] += 0.001
    assert gate.optimize() == ("removed 1 expired contexts of 1",)
    assert not gate.validate_with_context(CONSTITUTIONAL_HASH, {}).cached


def test_the_contexts_are_bounded():
    gate = ComplianceValidator(context_cache_size=10)
    for i in range(100):
        gate.validate_with_context(CONSTITUTIONAL_HASH, {"i": i})
        gate.validate_with_context("malformed", {"i": i})
    assert gate.metrics().context_size == 10
    assert gate.metrics().context_misses == 100


def test_a_context_that_is_not_json_like_is_an_error(gate):
    with pytest.raises(TypeError, match=r"^\$\.tags must be a JSON-like value, got set"):
        gate.validate_with_context(CONSTITUTIONAL_HASH, {"tags": {1}})


def test_a_str_that_lies_about_equality_convinces_nobody(gate):
    assert not gate.validate(Liar(OTHER))
    assert not gate.validate_with_context(Liar(OTHER), {}).valid
    assert gate.validate_with_context(CONSTITUTIONAL_HASH, {}).valid
    assert not gate.validate_with_context(Liar(OTHER), {}).valid


def test_on_the_fast_path_calls_are_counted_and_not_timed(gate):
    for value in (CONSTITUTIONAL_HASH, OTHER, None):
        gate.validate(value)
    gate.validate_many([CONSTITUTIONAL_HASH] * 5)
    gate.validate_with_context(CONSTITUTIONAL_HASH, {})
    metrics = gate.metrics()
    assert metrics.verdicts == ValidatorStats(valid=7, mismatched=1, malformed=1)
    assert (metrics.fast_path_calls, metrics.batches, metrics.latency.count) == (3, 1, 0)


def test_off_the_fast_path_every_call_is_timed(gate):
    gate.fast_path = False
    for _ in range(100):
        gate.validate(CONSTITUTIONAL_HASH)
    gate.validate_request({})
    metrics = gate.metrics()
    assert (metrics.fast_path_calls, metrics.latency.count) == (0, 101)
    latency = metrics.latency
    assert 0 < latency.min <= latency.p50 <= latency.p90 <= latency.p95 <= latency.p99 <= latency.p999 <= latency.max


def test_without_batches_many_is_one_call_an_item():
    gate = ComplianceValidator(batch=False, fast_path=False)
    assert gate.validate_many([CONSTITUTIONAL_HASH, OTHER]) == [True, False]
    assert (gate.metrics().batches, gate.metrics().latency.count) == (0, 2)


def test_a_reset_sets_everything_to_zero(gate):
    fresh = gate.metrics()
    gate.validate_many([CONSTITUTIONAL_HASH, None])
    gate.validate_with_context(CONSTITUTIONAL_HASH, {})
    gate.fast_path = False
    gate.validate(OTHER)
    assert gate.metrics() != fresh
    gate.reset_metrics()
    assert gate.metrics() == fresh


def test_the_environment_sets_hashes_and_switches():
    gate = ComplianceValidator.from_environment(
        {
            "CONSTITUTIONAL_HASH": f"{OLD}, {CONSTITUTIONAL_HASH}",
            "FAST_PATH_ENABLED": " No ",
            "BATCH_PROCESSING_ENABLED": "OFF",
        }
    )
    assert gate.expected == (OLD, CONSTITUTIONAL_HASH)
    assert (gate.fast_path, gate.batch) == (False, False)
    gate = ComplianceValidator.from_environment({})
    assert (gate.expected, gate.fast_path, gate.batch) == ((CONSTITUTIONAL_HASH,), True, True)


def test_a_rotation_in_the_environment_passes_its_own_validator():
    environ = {"CONSTITUTIONAL_HASH": f"{OLD}, {CONSTITUTIONAL_HASH}"}
    assert ComplianceValidator.from_environment(environ).validate_environment(environ)
    assert not ComplianceValidator().validate_environment(environ)


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("CONSTITUTIONAL_HASH", "", "1 to 16 hashes of 16 digits 0-9a-f, separated by commas"),
        ("CONSTITUTIONAL_HASH", f"{OLD},", "1 to 16 hashes of 16 digits 0-9a-f, separated by commas"),
        (
            "CONSTITUTIONAL_HASH",
            ",".join(f"{i:016x}" for i in range(17)),
            "1 to 16 hashes of 16 digits 0-9a-f, separated by commas",
        ),
        ("FAST_PATH_ENABLED", "maybe", "true or false"),
        ("BATCH_PROCESSING_ENABLED", "", "true or false"),
    ],
)
def test_a_bad_setting_names_variable_value_and_what_was_expected(variable, value, expected):
    with pytest.raises(SettingsError) as raised:
        ComplianceValidator.from_environment({variable: value})
    assert str(raised.value) == f"{variable} must be {expected}, got {value!r}"


@pytest.mark.parametrize("error", [ComplianceError((OLD,), "x"), SettingsError("A", "b", "c")])
def test_an_error_survives_the_way_to_another_process(error):
    copied = pickle.loads(pickle.dumps(error))
    assert (type(copied), str(copied), vars(copied)) == (type(error), str(error), vars(error))


@pytest.mark.parametrize("value", ["x" * 10_000_000, 10**5_000, [[["x" * 100_000]]]], ids=["str", "int", "list"])
def test_what_an_error_shows_of_a_bad_value_is_bounded(gate, value):
    with pytest.raises(ComplianceError) as raised:
        gate.require(value)
    assert len(str(raised.value)) < 150
    assert raised.value.found is value


MEMORY = """
import tracemalloc
import tracemalloc
from acgsperf import ComplianceValidator
gate = ComplianceValidator(fast_path=FAST)
def attack():
    for i in range(10_000):
        bad = f"bad value {i}" * 10
        gate.validate(bad)
        gate.validate_many([bad])
        gate.validate_headers({"X-Constitutional-Hash": bad})
        gate.validate_with_context(bad, {"i": i})
attack()
tracemalloc.start()
attack()
print(tracemalloc.get_traced_memory()[0])
"""


@pytest.mark.parametrize("fast", [True, False])
def test_ten_thousand_bad_values_leave_the_memory_as_it_was(fast):
    done = subprocess.run(
        [sys.executable, "-c", MEMORY.replace("FAST", str(fast))], check=True, capture_output=True, env=os.environ
    )
    assert int(done.stdout) < 10_000


def test_headers_may_be_pairs_of_bytes():
    gate = ComplianceValidator()
    assert gate.validate_headers([(b"host", b"x"), (b"x-constitutional-hash", CONSTITUTIONAL_HASH.encode())])
    assert not gate.validate_headers([(b"host", b"\xff")])
    assert not gate.validate_headers({1: CONSTITUTIONAL_HASH})


@pytest.mark.parametrize("request_", [None, "x", 7, [], ["constitutional_hash"]])
def test_a_request_that_is_no_mapping_has_no_hash(request_):
    assert not ComplianceValidator().validate_request(request_)


def test_a_context_that_is_no_mapping_is_refused():
    with pytest.raises(TypeError, match="context must be a mapping, got None"):
        ComplianceValidator().validate_with_context(CONSTITUTIONAL_HASH, None)
