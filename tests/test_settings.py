"""Settings: every variable is read, checked and named, and no password is shown."""

import copy
import dataclasses
import pickle
import re
import traceback
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acgsperf import CONSTITUTIONAL_HASH, Settings, SettingsError
from acgsperf.settings import masked, variable_of

OLD = "0123456789abcdef"
SPECIFIED = {
    "CONSTITUTIONAL_HASH": f"{CONSTITUTIONAL_HASH}, {OLD}",
    "FAST_PATH_ENABLED": "false",
    "BATCH_PROCESSING_ENABLED": "off",
    "DATABASE_URL": "postgresql://ann:s3cr3t@db/app",
    "DB_POOL_MIN_SIZE": "2",
    "DB_POOL_MAX_SIZE": " 50 ",
    "DB_STATEMENT_CACHE_SIZE": "0",
    "DB_COMMAND_TIMEOUT": "2.5",
    "DB_POOL_HEALTH_CHECK_INTERVAL": "15",
    "REDIS_URL": "redis://localhost:6389/0",
    "L1_CACHE_SIZE": "1000",
    "L1_CACHE_SIZE_MIN": "500",
    "L1_CACHE_SIZE_MAX": "200000",
    "L1_POLICY": " LRU ",
    "L1_PREDICTION": "no",
    "L2_TTL_DEFAULT": "60",
    "CACHE_NAMESPACE": "shop",
    "CACHE_HIT_RATE_TARGET": "0.9",
    "P50_LATENCY_TARGET_MS": "0.5",
    "P95_LATENCY_TARGET_MS": "1.5",
    "P99_LATENCY_TARGET_MS": "4",
    "THROUGHPUT_TARGET_RPS": "500",
    "MONITORING_INTERVAL_S": "5",
    "OPTIMIZATION_INTERVAL_S": "7.5",
    "FLEET_ENABLED": "false",
    "FLEET_TUNING_ENABLED": "false",
    "TRENDS_ENABLED": "false",
    "SERVICE_VERSION": "1.4.2",
    "WORKERS_DIRECTORY": "/run/shop",
}


def test_every_variable_sets_its_field():
    assert Settings.from_environment(SPECIFIED) == Settings(
        constitutional_hashes=(CONSTITUTIONAL_HASH, OLD),
        fast_path_enabled=False,
        batch_processing_enabled=False,
        database_url="postgresql://ann:s3cr3t@db/app",
        db_pool_min_size=2,
        db_pool_max_size=50,
        db_statement_cache_size=0,
        db_command_timeout=2.5,
        db_pool_health_check_interval=15.0,
        redis_url="redis://localhost:6389/0",
        l1_cache_size=1000,
        l1_cache_size_min=500,
        l1_cache_size_max=200000,
        l1_policy="lru",
        l1_prediction=False,
        l2_ttl_default=60.0,
        cache_namespace="shop",
        cache_hit_rate_target=0.9,
        p50_latency_target_ms=0.5,
        p95_latency_target_ms=1.5,
        p99_latency_target_ms=4.0,
        throughput_target_rps=500.0,
        monitoring_interval_s=5.0,
        optimization_interval_s=7.5,
        fleet_enabled=False,
        fleet_tuning_enabled=False,
        trends_enabled=False,
        service_version="1.4.2",
        workers_directory="/run/shop",
    )
    assert {variable_of(field.name) for field in dataclasses.fields(Settings)} == set(SPECIFIED)


def test_each_variable_changes_its_field_alone():
    for variable, value in SPECIFIED.items():
        changed, default = Settings.from_environment({variable: value}), Settings()
        names = [f.name for f in dataclasses.fields(Settings) if getattr(changed, f.name) != getattr(default, f.name)]
        assert [variable_of(name) for name in names] == [variable]


def test_an_empty_environment_gives_the_defaults():
    assert Settings.from_environment({}) == Settings()
    assert (Settings().redis_url, Settings().database_url) == (None, None)


def test_the_process_environment_is_read_by_default(monkeypatch):
    monkeypatch.setenv("L1_CACHE_SIZE", "77")
    assert Settings.from_environment().l1_cache_size == 77


@pytest.mark.parametrize("variable", ["REDIS_URL", "DATABASE_URL", "SERVICE_VERSION"])
def test_an_empty_address_or_version_is_none(variable):
    assert Settings.from_environment({variable: " "}) == Settings()


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("CONSTITUTIONAL_HASH", "CDD01EF066BC6CF2", "1 to 16 hashes of 16 digits 0-9a-f, separated by commas"),
        ("FAST_PATH_ENABLED", "2", "true or false"),
        ("DB_POOL_MIN_SIZE", "-1", "an integer of at least 0"),
        ("DB_POOL_MAX_SIZE", "0", "an integer of at least 1"),
        ("DB_POOL_MAX_SIZE", "1e2", "an integer of at least 1"),
        ("DB_STATEMENT_CACHE_SIZE", "-1", "an integer of at least 0"),
        ("DB_COMMAND_TIMEOUT", "0", "a finite number greater than 0"),
        ("DB_POOL_HEALTH_CHECK_INTERVAL", "0", "a finite number greater than 0"),
        ("L1_CACHE_SIZE", "0", "an integer from 1 to 2**30"),
        ("L1_CACHE_SIZE_MIN", "0", "an integer from 1 to 2**30"),
        ("L1_CACHE_SIZE_MAX", "", "an integer from 1 to 2**30"),
        ("L1_POLICY", "arc", "adaptive, s3fifo or lru"),
        ("L1_PREDICTION", "2", "true or false"),
        ("L1_CACHE_SIZE", str(2**30 + 1), "an integer from 1 to 2**30"),
        ("L1_CACHE_SIZE", "9" * 5000, "an integer from 1 to 2**30"),
        ("L2_TTL_DEFAULT", "inf", "a finite number greater than 0"),
        ("CACHE_HIT_RATE_TARGET", "95", "a number greater than 0 and at most 1"),
        ("CACHE_HIT_RATE_TARGET", "95%", "a number greater than 0 and at most 1"),
        ("P99_LATENCY_TARGET_MS", "nan", "a finite number greater than 0"),
        ("P99_LATENCY_TARGET_MS", "5ms", "a finite number greater than 0"),
        ("THROUGHPUT_TARGET_RPS", "", "a finite number greater than 0"),
        ("SERVICE_VERSION", "1\n2", "1 to 200 printable characters"),
        ("SERVICE_VERSION", "x" * 201, "1 to 200 printable characters"),
        ("MONITORING_INTERVAL_S", "-30", "a finite number greater than 0"),
        ("OPTIMIZATION_INTERVAL_S", "1e999", "a finite number greater than 0"),
    ],
)
def test_a_bad_variable_is_named_with_its_value_and_what_was_expected(variable, value, expected):
    with pytest.raises(SettingsError) as caught:
        Settings.from_environment({variable: value})
    assert (caught.value.variable, caught.value.value, caught.value.expected) == (variable, value, expected)


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"DB_POOL_MIN_SIZE": "200"}, "DB_POOL_MIN_SIZE must be at most DB_POOL_MAX_SIZE, which is 100, got '200'"),
        (
            {"L1_CACHE_SIZE_MAX": "1000"},
            "L1_CACHE_SIZE_MAX must be at least L1_CACHE_SIZE, which is 100000, got '1000'",
        ),
        (
            {"L1_CACHE_SIZE_MIN": "1000", "L1_CACHE_SIZE": "10"},
            "L1_CACHE_SIZE_MIN must be at most L1_CACHE_SIZE, which is 10, got '1000'",
        ),
        ({"DB_POOL_MAX_SIZE": "10"}, "DB_POOL_MAX_SIZE must be at least DB_POOL_MIN_SIZE, which is 20, got '10'"),
        (
            {"DB_POOL_MIN_SIZE": "9", "DB_POOL_MAX_SIZE": "8"},
            "DB_POOL_MIN_SIZE must be at most DB_POOL_MAX_SIZE, which is 8, got '9'",
        ),
    ],
)
def test_sizes_that_contradict_each_other_are_one_error_about_one_that_was_set(environ, message):
    with pytest.raises(SettingsError, match=re.escape(message)):
        Settings.from_environment(environ)


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("constitutional_hashes", (), ValueError),
        ("constitutional_hashes", 5, TypeError),
        ("fast_path_enabled", 1, TypeError),
        ("batch_processing_enabled", "true", TypeError),
        ("database_url", b"postgresql://db", TypeError),
        ("database_url", "mysql://db", ValueError),
        ("database_url", "postgresql://ann:12#s3cr3t@db/orders", ValueError),
        ("database_url", "postgresql://db:99999/orders", ValueError),
        ("database_url", "postgresql:///orders?host=db&port=abc", ValueError),
        ("database_url", "postgresql://db/orders?sslmode=perhaps", ValueError),
        ("db_pool_min_size", 200, ValueError),
        ("db_pool_min_size", True, TypeError),
        ("db_pool_max_size", 2.0, TypeError),
        ("db_pool_health_check_interval", "30", TypeError),
        ("redis_url", 6379, TypeError),
        ("redis_url", "localhost:6379", ValueError),
        ("redis_url", "redis://localhost:0", ValueError),
        ("redis_url", "redis://localhost:99999", ValueError),
        ("redis_url", "redis://localhost/sessions", ValueError),
        ("redis_url", "rediss://localhost/0/1", ValueError),
        ("redis_url", "redis://localhost/-1", ValueError),
        ("redis_url", "unix://", ValueError),
        ("db_command_timeout", 0, ValueError),
        ("cache_namespace", "", ValueError),
        ("l1_cache_size", 0, ValueError),
        ("l1_policy", "arc", ValueError),
        ("l1_policy", None, TypeError),
        ("l1_prediction", 1, TypeError),
        ("l2_ttl_default", None, TypeError),
        ("cache_hit_rate_target", 1.01, ValueError),
        ("cache_hit_rate_target", float("nan"), ValueError),
        ("p50_latency_target_ms", float("inf"), ValueError),
        ("monitoring_interval_s", 0, ValueError),
    ],
)
def test_a_bad_field_is_named(name, value, error):
    with pytest.raises(error, match=f"^{name} must "):
        Settings(**{name: value})
    with pytest.raises(error, match=f"^{name} must "):
        dataclasses.replace(Settings(), **{name: value})


def test_settings_are_a_frozen_value():
    settings = Settings.from_environment(SPECIFIED)
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.l1_cache_size = 5
    assert not hasattr(settings, "__dict__")
    assert pickle.loads(pickle.dumps(settings)) == copy.deepcopy(settings) == settings
    assert hash(settings) == hash(dataclasses.replace(settings))


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://ann:s3cr3t@db:5432/app?sslmode=require", "postgresql://ann:***@db:5432/app?sslmode=require"),
        ("postgresql://ann:s3c@r3t@db/app", "postgresql://ann:***@db/app"),
        ("postgresql://ann@a:1,b:2/app?PASS%77ord=s3cr3t&user=x", "postgresql://ann@a:1,b:2/app?PASS%77ord=***"),
        ("redis://:s3cr3t@cache/0", "redis://:***@cache/0"),
        ("redis://cache:6379?password=s3%40cr3t&db=1", "redis://cache:6379?password=***"),
        ("redis://cache:6379?password=s3@cr3t", "redis://***"),
        ("redis://:12?a=s3cr3t@cache", "redis://***"),
        ("rediss://localhost:6389/0", "rediss://localhost:6389/0"),
        ("redis://cache?password=s3&cr3t=s3cr3t", "redis://cache?password=***"),
        ("unix:///run/redis.sock?db=2&password=s3cr3t", "unix:///run/redis.sock?db=2&password=***"),
        ("postgresql:ann:s3cr3t@db", "***"),
    ],
)
def test_an_address_is_shown_without_its_passwords(url, shown):
    assert masked(url) == shown
    settings = Settings(**{"redis_url" if url.startswith(("r", "u")) else "database_url": url})
    assert repr(shown) in repr(settings)
    assert "s3cr3t" not in repr(settings)


@settings(deadline=None)
@given(st.text(min_size=1), st.sampled_from(["redis://:{}@h", "redis://u:{}@h/0", "redis://h?password={}", "redis:{}"]))
def test_no_character_in_a_password_makes_it_visible(characters, form):
    secret = f"s3cr3t{characters}s3cr3t"
    url = form.format(secret)
    try:
        shown = repr(Settings(redis_url=url))
    except ValueError as error:
        shown = str(error)
    assert "s3cr3t" not in shown
    try:
        shown = repr(Settings.from_environment({"REDIS_URL": url}))
    except SettingsError as error:
        shown = str(error) + repr(error)
    assert "s3cr3t" not in shown


@pytest.mark.parametrize(
    ("variable", "url", "shown"),
    [
        ("DATABASE_URL", "postgresql://ann:s3/cr3t@db", "postgresql://***"),
        ("DATABASE_URL", "mysql://ann:s3cr3t@db", "mysql://***"),
        ("DATABASE_URL", "s3cr3t", "***"),
        ("REDIS_URL", "redis://:s3/cr3t@cache", "redis://***"),
        ("REDIS_URL", "redis://ann:12/s3cr3t@cache", "redis://***"),
        ("REDIS_URL", "redis://:12#s3cr3t", "redis://***"),
        ("REDIS_URL", "http://cache?password=s3cr3t", "http://***"),
        ("REDIS_URL", "redis://cache:0/s3cr3t", "redis://***"),
        ("REDIS_URL", "redis://[s3cr3t", "redis://***"),
    ],
)
def test_an_error_about_an_address_shows_only_its_scheme(variable, url, shown):
    with pytest.raises(SettingsError) as caught:
        Settings.from_environment({variable: url})
    assert (caught.value.variable, caught.value.value) == (variable, shown)
    told = "".join(traceback.format_exception(caught.value))
    assert "cr3t" not in told


def test_the_page_lists_every_variable_with_its_default():
    page = (Path(__file__).parents[1] / "docs" / "settings.md").read_text()
    rows = dict(re.findall(r"^\| `([A-Z0-9_]+)` \| (.*?) \|", page, re.MULTILINE))
    assert set(rows) == set(SPECIFIED)
    for field in dataclasses.fields(Settings):
        written = rows[variable_of(field.name)]
        if field.default is None:
            assert written == "none"
        else:
            read = Settings.from_environment({variable_of(field.name): written.strip("`")})
            assert read == Settings()


def test_a_list_of_servers_with_an_empty_name_is_named():
    with pytest.raises(
        SettingsError, match=r"DATABASE_URL must be .*host:port/database with a host for each of its"
    ) as caught:
        Settings.from_environment({"DATABASE_URL": "postgresql://me:hunter2@one,,two/db"})
    assert "hunter2" not in str(caught.value)
    with pytest.raises(ValueError, match="database_url must have a host for each of its servers"):
        Settings(database_url="postgresql://me:hunter2@,two/db")
