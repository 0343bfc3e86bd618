"""The names that the package exports."""

import subprocess
import sys

import pytest

import acgsperf


def test_the_tiered_cache_is_imported_on_first_use():
    code = "import sys, acgsperf; assert 'asyncio' not in sys.modules; acgsperf.TieredCache; from acgsperf import *"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=60)


def test_every_name_in_all_exists_and_no_other():
    assert all(hasattr(acgsperf, name) for name in acgsperf.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Cache'"):
        acgsperf.Cache  # noqa: B018
