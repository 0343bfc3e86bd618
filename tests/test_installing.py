"""What pip builds and installs from a clone of the repository, and what `python` then imports."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WHERE = "import acgsperf, json; print(json.dumps([acgsperf.IMPLEMENTATION, acgsperf.__file__]))"
COMPILED = {
    "acgsperf/_core",
    "acgsperf/_native/caches",
    "acgsperf/_native/canonical",
    "acgsperf/_native/envelope",
    "acgsperf/_native/hits",
    "acgsperf/_native/pg_dialogue",
    "acgsperf/_native/predictor",
    "acgsperf/_native/read_path",
    "acgsperf/_native/resp",
    "acgsperf/_native/weigh",
}

pytestmark = pytest.mark.skipif(
    os.environ.get("ACGSPERF_NO_EXTENSIONS") == "1", reason="the environment asks for no extensions"
)


def run(*command, **options):
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("ACGSPERF_", "PYTHONPATH"))}
    environment = clean | options.pop("env", {})
    return subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment, **options)


def pip(*arguments, **options):
    return run(sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments, **options)


def build(source, target, **environment):
    """Build a wheel with the tools of this environment, and return its path."""
    built = pip("wheel", "--no-deps", "--no-build-isolation", "-w", str(target), str(source), env=environment)
    assert built.returncode == 0, built.stdout + built.stderr
    (wheel,) = target.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def make_clone(tmp_path_factory):
    """Copy what git holds of the package."""
    generated_c = ROOT / "build" / "cython"

    def make():
        clone = tmp_path_factory.mktemp("clone")
        for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
            shutil.copy(ROOT / name, clone)
        generated = shutil.ignore_patterns("*.so", "*.c", "*.html", "__pycache__", "built_pure.py")
        shutil.copytree(ROOT / "acgsperf", clone / "acgsperf", ignore=generated)
        page = Path("acgsperf", "dashboard", "static", "index.html")
        shutil.copy(ROOT / page, clone / page)
        if generated_c.exists():
            # Copies keep their times. So Cython translates a source again only if it is newer than its C code.
            shutil.copytree(generated_c, clone / "build" / "cython")
        return clone

    return make


@pytest.fixture(scope="module")
def clone(make_clone):
    return make_clone()


@pytest.fixture(scope="module")
def wheel(clone, tmp_path_factory):
    return build(clone, tmp_path_factory.mktemp("compiled"))


def test_a_wheel_has_the_files_of_the_dashboard(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    folder = ROOT / "acgsperf" / "dashboard" / "static"
    files = {path.relative_to(ROOT).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {Path(name).suffix for name in files} == {".html", ".js", ".css", ".svg", ".LICENSE"}
    assert files <= names


def test_a_wheel_has_the_compiled_modules_and_no_sources_of_them(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    compiled = {name.split(".")[0] for name in names if Path(name).suffix in (".so", ".pyd")}
    assert compiled == COMPILED
    assert {f"{module}.pyi" for module in COMPILED} | {"acgsperf/py.typed"} <= set(names)
    assert not [name for name in names if Path(name).suffix in (".c", ".pyx", ".pxd", ".h")]
    assert [name for name in names if name.endswith(".html")] == ["acgsperf/dashboard/static/index.html"]
    assert "acgsperf/_native/built_pure.py" not in names


def test_a_wheel_carries_no_debug_information(wheel):
    with zipfile.ZipFile(wheel) as archive:
        binaries = [archive.read(name) for name in archive.namelist() if name.endswith(".so")]
    # The names of an ELF file's sections are text in it.
    assert binaries
    assert not [binary for binary in binaries if b".debug_info" in binary]


def test_a_wheels_metadata_names_the_project(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("METADATA"))
        metadata = archive.read(name).decode()
    for field in ("Project-URL: Documentation,", "Project-URL: Source,", "Project-URL: Changelog,", "Maintainer:"):
        assert field in metadata


@pytest.fixture(scope="module")
def make_python(tmp_path_factory):
    """Make an interpreter that has the dependencies and build tools of this one, but not the package."""

    def make():
        folder = tmp_path_factory.mktemp("venv")
        made = run(sys.executable, "-m", "venv", "--without-pip", str(folder))
        assert made.returncode == 0, made.stderr
        python = str(folder / ("Scripts" if sys.platform == "win32" else "bin") / "python")
        others = tmp_path_factory.mktemp("others")
        for site_packages in (Path(path) for path in sys.path if "site-packages" in path):
            for entry in site_packages.iterdir():
                if "acgsperf" not in entry.name and not (others / entry.name).exists():
                    (others / entry.name).symlink_to(entry)
        site = {"PYTHONPATH": str(others)}
        return lambda *arguments, **options: run(python, *arguments, **options | {"env": site | options.get("env", {})})

    return make


def install(python, clone, choice):
    """Install a clone without optimization, which takes a third of the time."""
    installed = python(
        *("-m", "pip", "install", "--no-deps", "--no-build-isolation", "-e", str(clone)),
        env={"ACGSPERF_DEBUG": "1", "ACGSPERF_NO_EXTENSIONS": choice},
    )
    assert installed.returncode == 0, installed.stdout + installed.stderr


@pytest.fixture(scope="module")
def editable(clone, make_python):
    """An interpreter with an editable install of the clone."""
    python = make_python()
    install(python, clone, "0")
    return python


def test_after_an_editable_install_python_runs_the_compiled_core_in_the_clone_too(clone, editable, tmp_path):
    for folder in (clone, tmp_path):
        done = editable("-W", "error", "-c", WHERE, cwd=folder)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout) == ["c", str(clone / "acgsperf" / "__init__.py")]


APPLICATION = """
from acgsperf import LRUCache, TieredCache

cache: TieredCache[int] = TieredCache(LRUCache(10), namespace="types")


@cache.cached(key=str, ttl=60)
async def double(number: int) -> int:
    return 2 * number


async def main() -> None:
    reveal_type(await double(3))
    await double("3")
"""


@pytest.mark.skipif(importlib.util.find_spec("mypy") is None, reason="needs mypy, which the extra `lint` installs")
def test_after_an_editable_install_a_type_checker_finds_the_types_outside_the_clone(editable, tmp_path):
    (tmp_path / "application.py").write_text(APPLICATION)
    checked = editable("-m", "mypy", "--strict", "--no-incremental", "application.py", cwd=tmp_path)
    assert re.findall(r"^application\.py:(\d+): (?:note|error): (.*)$", checked.stdout, re.MULTILINE) == [
        ("13", 'Revealed type is "int"'),
        ("14", 'Argument 1 to "__call__" of "CachedFunction" has incompatible type "str"; expected "int"  [arg-type]'),
    ]


def test_an_editable_install_without_extensions_replaces_one_with_them(clone, editable, tmp_path):
    for choice, implementation in (("1", "python"), ("0", "c")):
        install(editable, clone, choice)
        done = editable("-W", "error", "-c", WHERE, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)[0] == implementation


def test_a_clone_that_was_not_built_warns_with_the_reason_and_the_remedy(make_clone, make_python):
    clone, bare_python = make_clone(), make_python()
    done = bare_python("-c", WHERE, cwd=clone)
    assert json.loads(done.stdout) == ["python", str(clone / "acgsperf" / "__init__.py")]
    assert "RuntimeWarning: acgsperf runs its pure-Python twin" in done.stderr
    assert "No module named 'acgsperf._core'" in done.stderr
    assert f"-m pip install -e {clone}" in done.stderr
    quiet = bare_python("-W", "error", "-c", WHERE, cwd=clone, env={"ACGSPERF_NO_EXTENSIONS": "1"})
    assert (json.loads(quiet.stdout)[0], quiet.stderr) == ("python", "")


def test_a_wheel_that_was_built_without_extensions_runs_the_twin_without_a_warning(make_clone, tmp_path):
    wheel = build(make_clone(), tmp_path / "wheel", ACGSPERF_NO_EXTENSIONS="1")
    assert wheel.name.endswith("-py3-none-any.whl")
    installed = pip("install", "--no-deps", "--target", str(tmp_path / "site"), str(wheel))
    assert installed.returncode == 0, installed.stderr
    done = run(sys.executable, "-W", "error", "-c", WHERE, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path / "site")})
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == ["python", str(tmp_path / "site" / "acgsperf" / "__init__.py")]


@pytest.mark.skipif(sys.platform == "win32", reason="the compiler cannot be replaced by an environment variable")
def test_a_failing_compiler_names_the_way_without_one(make_clone, tmp_path):
    done = pip(
        "wheel", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), str(make_clone()), env={"CC": "false"}
    )
    assert done.returncode != 0
    assert "ACGSPERF_NO_EXTENSIONS=1 pip install acgsperf" in done.stdout + done.stderr
