"""Faults of the servers, judged by one oracle. A package, so that its modules may have the names of others' modules."""

import pytest

pytest.register_assert_rewrite("faults.application", "faults.oracle")
