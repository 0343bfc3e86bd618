"""The order of the package's folders: imports point downwards only, and nowhere in a circle."""

import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import grimp
import pytest

import acgsperf

PACKAGE = Path(acgsperf.__file__).parent

# Top to bottom. What shares a line does not import each other.
FLOORS = [
    {"__main__"},
    {"cli"},
    {"compat"},
    {"dashboard"},
    {"workbench"},
    {"testing"},
    {"asgi"},
    {"service"},
    {"trends"},
    {"fleet"},
    {"metrics"},
    {"cache"},
    {"backplane"},
    {"tiers"},
    {"pool"},
    {"balance"},
    {"monitor"},
    {"validator"},
    {"fingerprint", "settings"},
    {"hooks"},
    {"dispatch"},
    {"_core"},
    {"_native"},
    {"addresses", "counting", "errors", "interrupts", "names", "printable", "timeouts"},
]
FLOOR_OF = {name: floor for floor, names in enumerate(FLOORS) for name in names}

# Which modules may import the client of a server.
CLIENTS = {
    "redis": ("tiers.redis", "backplane.redis", "fleet", "compat", "workbench"),
    "hiredis": ("tiers.redis", "backplane.redis"),
    "asyncpg": ("pool", "tiers.postgres", "backplane.postgres", "fleet", "trends", "compat", "workbench"),
}
COMPILED = {
    "acgsperf._core",
    "acgsperf._native.caches",
    "acgsperf._native.canonical",
    "acgsperf._native.envelope",
    "acgsperf._native.weigh",
}
LONGEST_MODULE = 450


def compiled_imports():
    """What each Cython module imports and cimports, which no tool for Python reads."""
    line = re.compile(r"^\s*(?:from\s+([\w.]+)\s+c?import\s+\(?([\w, ]*)|c?import\s+([\w.]+))", re.MULTILINE)
    found = {}
    for path in sorted([*PACKAGE.rglob("*.pyx"), *PACKAGE.rglob("*.pxd")]):
        module = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        imported = found.setdefault(module, set())
        for source, names, whole in line.findall(path.read_text()):
            parent = PACKAGE.parent.joinpath(*source.split("."))
            # `from package import module` imports the module.
            inner = {f"{source}.{name}" for name in re.findall(r"\w+", names) if _is_module(parent / name)}
            imported |= inner or {source or whole}
    return found


def _is_module(path):
    return any(path.with_suffix(suffix).exists() for suffix in (".py", ".pyx", ".pxd")) or path.is_dir()


@pytest.fixture(scope="module")
def imports():
    """Module by module what it imports, also where only a type checker looks."""
    graph = grimp.build_graph("acgsperf", include_external_packages=True, cache_dir=None)
    found = {module: set(graph.find_modules_directly_imported_by(module)) for module in graph.modules}
    # grimp takes a compiled module for the package around it.
    found["acgsperf.dispatch"] = found["acgsperf.dispatch"] - {"acgsperf", "acgsperf._native"} | COMPILED
    for module, imported in compiled_imports().items():
        found.setdefault(module, set()).update(imported)
    return found


def inside(modules):
    return {module for module in modules if module.split(".")[0] == "acgsperf"}


def floor_of(module):
    parts = module.split(".")
    return FLOOR_OF[parts[1]] if len(parts) > 1 else -1


def test_every_file_and_folder_has_a_floor():
    entries = {
        path.stem for path in PACKAGE.iterdir() if path.suffix in (".py", ".pyx") or (path / "__init__.py").exists()
    }
    assert entries - {"__init__"} <= set(FLOOR_OF)


def test_no_import_points_upwards(imports):
    upwards = {
        f"{module} imports {other}"
        for module in inside(imports)
        for other in inside(imports[module])
        if floor_of(other) < floor_of(module)
        or (floor_of(other) == floor_of(module) and other.split(".")[1] != module.split(".")[1])
    }
    assert not upwards


def test_there_is_no_import_cycle(imports):
    try:
        TopologicalSorter({module: inside(imports[module]) for module in inside(imports)}).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(error.args[1]))


def test_the_compiled_modules_are_looked_at(imports):
    assert "acgsperf._native.table" in imports["acgsperf._native.caches"]
    assert "acgsperf._native.hdr_codec" in imports["acgsperf._core"]
    assert "acgsperf._native.envelope_format" in imports["acgsperf._native.envelope"]


def test_the_core_knows_nothing_of_event_loops_and_servers(imports):
    core = [module for module in inside(imports) if module.startswith(("acgsperf._core", "acgsperf._native"))]
    assert len(core) > 10
    assert {"asyncio", "asyncpg", "redis", "hiredis"}.isdisjoint(set().union(*(imports[module] for module in core)))


@pytest.mark.parametrize("client", CLIENTS)
def test_a_servers_client_is_imported_at_home_only(imports, client):
    importers = {module.removeprefix("acgsperf.") for module in inside(imports) if client in imports[module]}
    assert importers
    assert [name for name in sorted(importers) if not name.startswith(CLIENTS[client])] == []


@pytest.mark.parametrize("folder", ["cli", "compat", "dashboard", "testing", "workbench"])
def test_the_package_proper_imports_nothing_that_people_run(imports, folder):
    allowed = {"acgsperf.__main__", "acgsperf.cli", "acgsperf.compat"}
    if folder == "workbench":
        # It reads pages of metrics, and has commands and a demo.
        allowed |= {f"acgsperf.dashboard.{name}" for name in ("commands", "demo", "page_source")}
    if folder == "testing":
        # It has the private servers.
        allowed |= {"acgsperf.workbench.embedded"}
    importers = {
        module
        for module in inside(imports)
        for other in inside(imports[module])
        if other.split(".")[1:2] == [folder] and module.split(".")[1:2] != [folder]
    }
    assert importers <= allowed


def test_no_module_is_too_long():
    # The twin of three compiled classes mirrors their one file.
    lengths = {
        path.relative_to(PACKAGE).as_posix(): len(path.read_text().splitlines())
        for path in PACKAGE.rglob("*.py")
        if path.name != "core_py.py"
    }
    assert {name: lines for name, lines in lengths.items() if lines > LONGEST_MODULE} == {}


@pytest.mark.parametrize("module", sorted(PACKAGE.rglob("*.pyx")), ids=lambda path: path.stem)
def test_compiled_modules_have_no_list_comprehensions(module):
    """Cython 3.3.1 releases an item twice if there is no memory for the list: see test_memory.py."""
    found = re.search(r"\[[^\[\]]*(\[[^\[\]]*\][^\[\]]*)*\sfor\s[^\[\]]*\sin\s[^\[\]]*\]", module.read_text())
    assert found is None, found[0]
