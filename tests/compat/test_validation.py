"""The validator under its former names: results, counters and reports."""

import inspect
import os
import time
from unittest.mock import Mock, patch

import pytest

from acgsperf.compat import validation
from acgsperf.compat.validation import (
    CONSTITUTIONAL_HASH,
    PERFORMANCE_TARGETS,
    ConstitutionalValidator,
    UltraFastConstitutionalValidator,
)

BAD = "0123456789abcdef"
COUNTERS = [
    "_cache_hits",
    "_cache_misses",
    "_validation_count",
    "_fast_path_hits",
    "_batch_validations",
    "_total_validation_time",
]


@pytest.fixture
def validator():
    return UltraFastConstitutionalValidator()


async def test_validate_hash_can_be_replaced_on_an_instance(validator):
    validator.validate_hash = Mock(return_value=True)
    assert validator.validate_hash(BAD)
    assert await validator.async_validate_hash(BAD)
    assert await validator.batch_validate_hashes([BAD, BAD]) == [True, True]
    assert validator.validate_with_context(BAD, {})["valid"]
    validator._fast_path_enabled = False
    validator._fast_path_enabled = True
    assert validator.validate_hash(BAD)
    assert validator.validate_hash.call_count == 6
    del validator.validate_hash
    assert not validator.validate_hash(BAD)
    assert await validator.batch_validate_hashes([BAD, CONSTITUTIONAL_HASH]) == [False, True]


def counts(validator):
    return validator._validation_count, validator._cache_hits, validator._cache_misses, validator._fast_path_hits


def test_the_constants_have_the_former_values():
    assert CONSTITUTIONAL_HASH == "cdd01ef066bc6cf2"
    assert PERFORMANCE_TARGETS == {
        "p99_latency_ms": 5.0,
        "p95_latency_ms": 2.0,
        "p50_latency_ms": 1.0,
        "validation_latency_ms": 0.1,
        "min_throughput_rps": 1000,
        "min_cache_hit_rate": 0.95,
        "constitutional_compliance": 1.0,
    }
    assert ConstitutionalValidator is UltraFastConstitutionalValidator


def test_a_star_import_imports_every_public_name():
    names = {}
    exec("from acgsperf.compat.validation import *", names)
    assert set(names) - {"__builtins__"} == {
        "CONSTITUTIONAL_HASH",
        "PERFORMANCE_TARGETS",
        "ConstitutionalValidator",
        "UltraFastConstitutionalValidator",
        "async_validate_constitutional_hash",
        "create_constitutional_headers",
        "ensure_constitutional_compliance",
        "get_constitutional_validator",
        "get_performance_metrics",
        "validate_constitutional_hash",
        "validate_environment",
    }


def test_a_new_validator_has_zero_counters_and_knows_the_hash(validator):
    assert all(getattr(validator, name) == 0 for name in COUNTERS)
    assert validator.constitutional_hash == CONSTITUTIONAL_HASH
    assert CONSTITUTIONAL_HASH in validator._known_good_hashes
    assert (len(validator._known_good_hashes), len(validator._known_bad_hashes)) == (1, 0)
    assert len(validator._validation_cache) == 0
    assert validator._fast_path_enabled is validator._batch_processing_enabled is True


def test_every_call_counts_and_a_bad_hash_misses_once(validator):
    assert validator.validate_hash(CONSTITUTIONAL_HASH) is True
    assert counts(validator) == (1, 1, 0, 1)
    assert validator.validate_hash(CONSTITUTIONAL_HASH) is True
    assert counts(validator) == (2, 2, 0, 2)
    assert validator.validate_hash(BAD) is False
    assert counts(validator) == (3, 2, 1, 2)
    assert validator.validate_hash(BAD) is False
    assert counts(validator) == (4, 3, 1, 2)
    assert BAD in validator._known_bad_hashes
    assert CONSTITUTIONAL_HASH not in validator._known_bad_hashes


@pytest.mark.parametrize("value", [None, 7, b"cdd01ef066bc6cf2", [], {}, object()])
def test_a_value_that_is_not_a_string_is_refused_and_not_stored(validator, value):
    assert validator.validate_hash(value) is False
    assert validator.validate_hash(value) is False
    assert counts(validator) == (2, 0, 2, 0)
    assert value not in validator._known_bad_hashes


def test_long_bad_strings_are_recognised_and_take_little_memory(validator):
    long, other = "x" * 1_000_000, "x" * 999_999 + "y"
    assert not validator.validate_hash(long)
    assert not validator.validate_hash(long)
    assert not validator.validate_hash(other)
    assert counts(validator)[1:3] == (1, 2)
    assert long in validator._known_bad_hashes
    assert all(len(kept) < 100 for kept in validator._known_bad_hashes.entries)


def test_lone_surrogates_are_refused_like_any_other_text(validator):
    assert validator.validate_hash("\ud800" * 100) is False
    assert "\ud800" * 100 in validator._known_bad_hashes


def test_values_sent_by_clients_take_bounded_memory(validator):
    validator._known_bad_hashes.entries.resize(100)
    validator._validation_cache.resize(100)
    for i in range(1_000):
        validator.validate_with_context(f"{i:016x}", {"i": i})
    assert len(validator._known_bad_hashes) == len(validator._validation_cache) == 100
    fresh = UltraFastConstitutionalValidator()
    assert fresh._known_bad_hashes.entries.maxsize == fresh._validation_cache.maxsize == 50_000


@pytest.mark.parametrize("name", COUNTERS)
def test_a_counter_may_be_set_and_continues_from_there(validator, name):
    setattr(validator, name, 100)
    assert getattr(validator, name) == 100
    validator.validate_hash(CONSTITUTIONAL_HASH)
    validator.validate_hash(BAD)
    assert getattr(validator, name) >= 100
    assert (getattr(validator, name) > 100) is (name != "_batch_validations")


def test_off_the_fast_path_results_are_the_same_and_calls_are_timed(validator):
    validator.validate_hash(CONSTITUTIONAL_HASH)
    validator._fast_path_enabled = False
    assert validator.validate_hash(CONSTITUTIONAL_HASH)
    assert not validator.validate_hash(BAD)
    assert counts(validator) == (3, 2, 1, 1)
    assert validator.get_detailed_metrics()["latency_percentiles"]["count"] == 2
    assert validator.get_detailed_metrics()["optimization_status"]["fast_path_enabled"] is False
    validator._fast_path_enabled = False
    validator._fast_path_enabled = True
    validator.validate_hash(CONSTITUTIONAL_HASH)
    assert counts(validator) == (4, 3, 1, 2)


async def test_a_batch_counts_as_one_batch_and_one_validation_per_item(validator):
    assert await validator.batch_validate_hashes([CONSTITUTIONAL_HASH, BAD, None, BAD]) == [True, False, False, False]
    assert counts(validator) == (4, 2, 2, 1)
    assert validator._batch_validations == 1
    assert await validator.batch_validate_hashes([CONSTITUTIONAL_HASH]) == [True]
    assert await validator.batch_validate_hashes([]) == []
    assert validator._batch_validations == 1
    validator._batch_processing_enabled = False
    assert await validator.batch_validate_hashes([CONSTITUTIONAL_HASH, BAD]) == [True, False]
    assert validator._batch_validations == 1
    assert validator._validation_count == 7


async def test_the_async_method_gives_the_same_results(validator):
    assert await validator.async_validate_hash(CONSTITUTIONAL_HASH) is True
    assert await validator.async_validate_hash(BAD) is False
    assert validator._validation_count == 2


@pytest.mark.parametrize("value", [CONSTITUTIONAL_HASH, BAD, "not a hash"])
def test_a_result_is_cached_by_hash_and_context(validator, value):
    context = {"tenant": "acme", "roles": ["a", "b"]}
    first = validator.validate_with_context(value, context)
    again = validator.validate_with_context(value, {"roles": ["a", "b"], "tenant": "acme"})
    valid = value == CONSTITUTIONAL_HASH
    assert first == {"valid": valid, "cached": False, "context": context}
    assert first["context"] is context
    assert (again["valid"], again["cached"]) == (valid, True)
    assert validator.validate_with_context(value, {"tenant": "other"})["cached"] is False
    assert validator._validation_cache.ttl == 3600
    assert len(validator._validation_cache) == 2


@pytest.mark.parametrize("context", [{"when": object()}, {"x": float("nan")}, {(1, 2): 3}])
def test_a_result_with_a_context_that_is_not_json_like_is_not_cached(validator, context):
    for _ in range(2):
        assert validator.validate_with_context(CONSTITUTIONAL_HASH, context) == {
            "valid": True,
            "cached": False,
            "context": context,
        }


@pytest.mark.parametrize(
    ("variables", "compliant", "found", "testing"),
    [
        ({}, False, "", False),
        ({"CONSTITUTIONAL_HASH": CONSTITUTIONAL_HASH, "TESTING": "true"}, True, CONSTITUTIONAL_HASH, True),
        ({"CONSTITUTIONAL_HASH": BAD, "TESTING": "0"}, False, BAD, False),
    ],
)
def test_validate_environment_reports_every_key(validator, variables, compliant, found, testing):
    with patch.dict(os.environ, variables):
        for name in {"CONSTITUTIONAL_HASH", "TESTING"} - set(variables):
            os.environ.pop(name, None)
        report = validator.validate_environment()
    assert set(report) == {
        "constitutional_compliance",
        "hash_value",
        "is_testing",
        "performance_metrics",
        "targets_met",
        "constitutional_hash",
        "timestamp",
    }
    assert set(report["performance_metrics"]) == {
        "cache_hit_rate",
        "avg_latency_ms",
        "total_validations",
        "fast_path_hits",
        "batch_validations",
        "environment_check_ms",
        "performance_target_met",
    }
    assert set(report["targets_met"]) == {"p99_latency", "cache_hit_rate", "constitutional_compliance"}
    assert (report["constitutional_compliance"], report["hash_value"], report["is_testing"]) == (
        compliant,
        found,
        testing,
    )
    assert report["targets_met"]["constitutional_compliance"] is compliant
    assert report["performance_metrics"]["total_validations"] == 1
    assert 0 < report["performance_metrics"]["environment_check_ms"] < 1_000
    assert abs(report["timestamp"] - time.time()) < 60


def test_the_summary_uses_counters_that_were_set(validator):
    validator._cache_hits, validator._cache_misses = 94, 6
    validator._validation_count, validator._total_validation_time = 100, 1.0
    summary = validator.get_performance_summary()
    assert summary["avg_latency_ms"] == pytest.approx(10)
    assert summary == {
        "cache_hit_rate": 0.94,
        "avg_latency_ms": summary["avg_latency_ms"],
        "total_validations": 100,
        "cache_hits": 94,
        "cache_misses": 6,
        "performance_targets": PERFORMANCE_TARGETS,
        "targets_met": {"p99_latency": False, "cache_hit_rate": False, "constitutional_compliance": True},
    }
    summary["performance_targets"].clear()
    assert PERFORMANCE_TARGETS


def test_the_average_on_the_fast_path_is_the_measured_cost_of_a_call(validator):
    assert validator.get_performance_summary()["avg_latency_ms"] == 0.0
    for _ in range(1_000):
        validator.validate_hash(CONSTITUTIONAL_HASH)
    assert 0 < validator.get_performance_summary()["avg_latency_ms"] < 0.1
    assert all(validator.get_performance_summary()["targets_met"].values())


def test_the_detailed_metrics_have_every_key(validator):
    validator.validate_hash(CONSTITUTIONAL_HASH)
    validator.validate_with_context(BAD, {})
    details = validator.get_detailed_metrics()
    assert details["performance_summary"] == {
        "total_validations": 2,
        "cache_hit_rate": 0.5,
        "fast_path_rate": 0.5,
        "avg_latency_ms": details["performance_summary"]["avg_latency_ms"],
        "batch_validations": 0,
        "meets_p99_target": True,
        "meets_validation_target": True,
    }
    assert details["cache_statistics"] == {
        "cache_hits": 1,
        "cache_misses": 1,
        "known_good_hashes": 1,
        "known_bad_hashes": 1,
        "context_cache_size": 1,
    }
    assert details["optimization_status"] == {"fast_path_enabled": True, "batch_processing_enabled": True}
    assert details["constitutional_hash"] == CONSTITUTIONAL_HASH
    assert set(details["latency_percentiles"]) == {"count", "p50_ms", "p95_ms", "p99_ms"}
    assert "timestamp" in details


@pytest.mark.parametrize("fast_path", [True, False])
def test_reset_clears_counters_and_contexts(validator, fast_path):
    validator._fast_path_enabled = fast_path
    validator.validate_with_context(BAD, {})
    validator.validate_hash(CONSTITUTIONAL_HASH)
    validator._cache_hits = 50
    validator.reset_metrics()
    assert all(getattr(validator, name) == 0 for name in COUNTERS)
    assert len(validator._validation_cache) == 0
    assert BAD in validator._known_bad_hashes
    validator._fast_path_enabled = True
    validator.validate_hash(CONSTITUTIONAL_HASH)
    assert counts(validator) == (1, 1, 0, 1)


def test_optimizing_removes_expired_contexts_and_changes_no_switch(validator):
    validator._validation_cache.set(("h", "c"), True, 1e-9)
    validator._fast_path_enabled = False
    validator._batch_processing_enabled = False
    validator.validate_hash(BAD)
    done = validator.optimize_performance()
    assert set(done) == {"optimizations_applied", "recommendations", "current_metrics", "constitutional_hash"}
    assert done["optimizations_applied"] == ["removed 1 expired of 1 contexts"]
    assert len(done["recommendations"]) == 3
    assert validator._fast_path_enabled is False
    assert validator.optimize_performance()["optimizations_applied"] == []


def test_an_overridden_or_patched_method_is_called():
    class Lenient(UltraFastConstitutionalValidator):
        def validate_hash(self, value):
            return value == "mine" or super().validate_hash(value)

    lenient = Lenient()
    assert lenient.validate_hash("mine")
    assert lenient.validate_hash(CONSTITUTIONAL_HASH)
    assert lenient._validation_count == 1
    with patch.object(UltraFastConstitutionalValidator, "validate_hash", Mock(return_value="patched")):
        assert UltraFastConstitutionalValidator().validate_hash(BAD) == "patched"
    validator = UltraFastConstitutionalValidator()
    with patch.object(validator, "validate_hash", return_value=True):
        assert validator.validate_hash(BAD)
    assert not validator.validate_hash(BAD)


async def test_the_module_functions_share_one_validator():
    validator = validation.get_constitutional_validator()
    assert validator is validation.get_constitutional_validator()
    validator.reset_metrics()
    assert validation.validate_constitutional_hash(CONSTITUTIONAL_HASH)
    assert not await validation.async_validate_constitutional_hash(BAD)
    assert validation.validate_environment()["performance_metrics"]["total_validations"] == 3
    assert validation.get_performance_metrics()["total_validations"] == 3
    assert inspect.iscoroutinefunction(validation.async_validate_constitutional_hash)


def test_ensure_compliance_raises_without_the_right_hash(monkeypatch):
    monkeypatch.setenv("CONSTITUTIONAL_HASH", CONSTITUTIONAL_HASH)
    assert validation.ensure_constitutional_compliance() is True
    monkeypatch.setenv("CONSTITUTIONAL_HASH", BAD)
    with pytest.raises(RuntimeError, match=rf"^Constitutional compliance violation.*{CONSTITUTIONAL_HASH}.*{BAD}"):
        validation.ensure_constitutional_compliance()
    monkeypatch.delenv("CONSTITUTIONAL_HASH")
    with pytest.raises(RuntimeError, match=r"Constitutional compliance violation.*found ''"):
        validation.ensure_constitutional_compliance()


def test_the_headers_have_the_former_values():
    assert validation.create_constitutional_headers() == {
        "X-Constitutional-Hash": CONSTITUTIONAL_HASH,
        "X-Constitutional-Compliance": "verified",
        "X-Performance-Targets": "P99<5.0ms",
    }


async def test_a_batch_calls_an_overridden_method():
    class Strict(UltraFastConstitutionalValidator):
        def validate_hash(self, value):
            return False

    assert await Strict().batch_validate_hashes([CONSTITUTIONAL_HASH] * 2) == [False, False]


def test_the_error_shows_the_whole_found_hash(monkeypatch):
    monkeypatch.setenv("CONSTITUTIONAL_HASH", "f" * 64)
    with pytest.raises(RuntimeError, match="f" * 64):
        validation.ensure_constitutional_compliance()
