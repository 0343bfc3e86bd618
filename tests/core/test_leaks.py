"""Each leak script runs in a process of its own, where nothing else allocates."""

import pytest

OPERATIONS = [
    "cache_use",
    "cache_expiry",
    "cache_errors",
    "cache_callbacks",
    "cache_reentrancy",
    "cache_cycles",
    "validator",
    "histogram",
    "bad_blobs",
]


@pytest.mark.parametrize("operation", OPERATIONS)
def test_repeating_an_operation_does_not_take_more_and_more_memory(core, isolated, operation):
    isolated("leaks.py", core.__name__, operation)


@pytest.mark.parametrize("operation", [operation for operation in OPERATIONS if operation.startswith("cache")])
@pytest.mark.parametrize("kind", ["AdaptiveCache", "RecordingCache"])
def test_repeating_an_operation_of_another_cache_does_not_take_more_and_more_memory(core, isolated, kind, operation):
    isolated("leaks.py", f"{core.__name__} {kind}", operation)


def test_encoding_requests_does_not_take_more_and_more_memory(encoder, isolated):
    isolated("leaks.py", encoder.__name__, "requests")


def test_predicting_does_not_take_more_and_more_memory(predictors, isolated):
    isolated("leaks.py", predictors.__name__, "predictor")
