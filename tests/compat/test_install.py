"""Services written for the former modules, in new processes: with `install`, and with files that only re-export."""

import os
import subprocess
import sys

import pytest

MODULES = {
    "services.shared.constitutional.validation": "validation",
    "services.shared.performance.ultra_fast_cache": "ultra_fast_cache",
    "services.shared.database.ultra_fast_connection_pool": "ultra_fast_connection_pool",
    "services.shared.performance.performance_integration_service": "performance_integration_service",
}
SERVICE = """
import asyncio, os
from services.shared.constitutional.validation import (
    CONSTITUTIONAL_HASH, UltraFastConstitutionalValidator, ensure_constitutional_compliance,
)
from services.shared.database.ultra_fast_connection_pool import create_ultra_fast_pool, get_pool_manager
from services.shared.performance.performance_integration_service import get_performance_service
from services.shared.performance.ultra_fast_cache import create_ultra_fast_cache

async def main():
    assert ensure_constitutional_compliance()
    validator = UltraFastConstitutionalValidator()
    validator._fast_path_enabled = True
    validator._batch_processing_enabled = True
    pool = await create_ultra_fast_pool(name="api_pool", dsn=os.environ["DATABASE_URL"], min_size=1, max_size=2)
    cache = await create_ultra_fast_cache(redis_url=os.environ["REDIS_URL"], l1_max_size=100_000)
    assert await validator.async_validate_hash(CONSTITUTIONAL_HASH)
    await cache.set("install:answer", {"answer": 42}, ttl=60)
    assert await cache.get("install:answer") == {"answer": 42}
    connection = await pool.acquire_connection()
    assert await connection.fetchval("SELECT 6 * 7") == 42
    await pool.release_connection(connection)
    assert (await cache.health_check())["l2_healthy"] and (await pool.health_check())["healthy"]
    await cache.clear_all()
    await cache.close()
    await integrated(pool)
    await (await get_pool_manager()).close_all()

async def integrated(pool):
    service = await get_performance_service()
    assert service is await get_performance_service()
    await create_ultra_fast_pool("default", os.environ["DATABASE_URL"], 1, 2)
    request = {"id": f"install {os.getpid()}", "type": "api_call", "database_operation": True}
    responses = [await service.process_request(request) for _ in range(2)]
    assert [response["performance"]["cached"] for response in responses] == [False, True]
    assert responses[0]["request_id"] == request["id"]
    assert service.metrics.db_connections_acquired == 1
    summary = await service.get_performance_summary()
    assert summary["integration_metrics"]["total_requests"] == 2
    assert set(summary["connection_pools"]["pools"]) == {"api_pool", "default"}
    assert set((await service._run_optimization())["connection_pools"]["pool_optimizations"]) == {"api_pool", "default"}
    await service.cache.clear_all()
    await service.close()
    assert not pool.is_initialized

asyncio.run(main())
print("served")
"""


def run(folder, code, servers=None):
    """Run code in a new interpreter, and return its output."""
    (folder / "service.py").write_text(code)
    environment = os.environ | {"CONSTITUTIONAL_HASH": "cdd01ef066bc6cf2"}
    if servers is not None:
        environment |= {"REDIS_URL": servers.redis_url, "DATABASE_URL": servers.database_url}
    done = subprocess.run(
        [sys.executable, "-W", "error", "service.py"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


def package(folder, name):
    """Create the packages of a module, and return the path of its file."""
    *parents, _ = name.split(".")
    for i in range(len(parents)):
        directory = folder.joinpath(*parents[: i + 1])
        directory.mkdir(exist_ok=True)
        (directory / "__init__.py").touch()
    return folder.joinpath(*name.split(".")).with_suffix(".py")


def test_a_service_runs_after_a_call_of_install(tmp_path, servers):
    assert run(tmp_path, "import acgsperf.compat\nacgsperf.compat.install()\n" + SERVICE, servers) == "served\n"


def test_a_service_runs_with_files_that_re_export(tmp_path, servers):
    for name, own in MODULES.items():
        package(tmp_path, name).write_text(f"from acgsperf.compat.{own} import *\n")
    assert run(tmp_path, SERVICE, servers) == "served\n"


def test_the_former_names_import_the_same_modules(tmp_path):
    code = f"""
import importlib, acgsperf.compat
acgsperf.compat.install()
acgsperf.compat.install()
for name, own in {MODULES!r}.items():
    module = importlib.import_module(name)
    assert module is importlib.import_module("acgsperf.compat." + own)
    parent, _, child = name.rpartition(".")
    assert getattr(importlib.import_module(parent), child) is module
import services.shared.performance.ultra_fast_cache as by_attributes
assert by_attributes is importlib.import_module("acgsperf.compat.ultra_fast_cache")
try:
    import services.shared.missing
except ModuleNotFoundError as error:
    print(error.name)
"""
    assert run(tmp_path, code) == "services.shared.missing\n"


def test_patching_by_a_former_name_patches_the_replacement(tmp_path):
    code = """
import asyncio, acgsperf.compat
from unittest.mock import AsyncMock, patch
acgsperf.compat.install()
from services.shared.performance.performance_integration_service import get_performance_service
from services.shared.performance.ultra_fast_cache import UltraFastMultiTierCache
from services.shared.database.ultra_fast_connection_pool import UltraFastConnectionPool

async def main():
    with patch("services.shared.performance.ultra_fast_cache.redis") as redis:
        redis.from_url.return_value = AsyncMock()
        cache = UltraFastMultiTierCache()
        await cache.initialize()
        assert cache.redis_client is redis.from_url.return_value
    made = AsyncMock()
    with patch("services.shared.database.ultra_fast_connection_pool.asyncpg.create_pool", AsyncMock(return_value=made)):
        pool = UltraFastConnectionPool("test", "postgresql://nowhere")
        await pool.initialize()
        assert pool.pool is made
    former = "services.shared.performance.performance_integration_service"
    with patch(former + ".get_pool_manager", AsyncMock()) as manager, patch(former + ".get_ultra_fast_cache") as cache:
        cache.return_value = AsyncMock()
        service = await get_performance_service()
        assert (service.cache, service.pool_manager) == (cache.return_value, manager.return_value)
        await service.close()

asyncio.run(main())
print("patched")
"""
    assert run(tmp_path, code) == "patched\n"


@pytest.mark.parametrize("regular", [True, False])
def test_existing_packages_are_kept(tmp_path, regular):
    folder = tmp_path / "services" / "shared" / "performance"
    folder.mkdir(parents=True)
    (folder / "monitoring.py").write_text("kept = True\n")
    (folder / "ultra_fast_cache.py").write_text("raise RuntimeError('the former one')\n")
    if regular:
        # Like a package that re-exports the names of its modules.
        package(tmp_path, "services.shared.performance.x")
        (folder / "__init__.py").write_text("from .ultra_fast_cache import UltraFastMultiTierCache\n")
    code = """
import acgsperf.compat
acgsperf.compat.install()
from services.shared.performance import monitoring, ultra_fast_cache
from services.shared.constitutional.validation import validate_constitutional_hash
assert ultra_fast_cache.__name__ == "acgsperf.compat.ultra_fast_cache"
print(monitoring.kept)
"""
    assert run(tmp_path, code) == "True\n"


def test_an_import_error_of_a_parent_package_is_raised(tmp_path):
    package(tmp_path, "services.shared.x")
    (tmp_path / "services" / "__init__.py").write_text("import no_such_dependency\n")
    code = """
import acgsperf.compat
try:
    acgsperf.compat.install()
except ModuleNotFoundError as error:
    print(error.name)
"""
    assert run(tmp_path, code) == "no_such_dependency\n"


def test_install_logs_a_warning_if_a_former_module_was_imported(tmp_path):
    package(tmp_path, "services.shared.constitutional.validation").write_text("former = True\n")
    code = """
import logging, sys
logging.basicConfig(stream=sys.stdout, format="%(levelname)s %(message)s")
import services.shared.constitutional.validation
import acgsperf.compat
acgsperf.compat.install()
import services.shared.constitutional.validation as now
assert not hasattr(now, "former")
"""
    assert run(tmp_path, code).startswith("WARNING services.shared.constitutional.validation was imported before")
