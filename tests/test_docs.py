"""Every code block of the README and the documentation runs, and every link leads somewhere."""

import ast
import dataclasses
import inspect
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

import acgsperf
import acgsperf.asgi
from acgsperf.cache.parts import AUTOMATIC
from acgsperf.workbench.embedded import Servers

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
SITE_PAGES = sorted(DOCS.rglob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *SITE_PAGES]
REPOSITORY = "https://github.com/acgs2/acgsperf"
FILES_ON_THE_CODE_HOST = f"{REPOSITORY}/blob/main/"
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")


def name_of(page):
    return str(page.relative_to(ROOT))


def blocks(page, language):
    return [code for found, code in BLOCK.findall(page.read_text()) if found == language]


def prose(page):
    """The text without its code blocks."""
    return BLOCK.sub("", page.read_text())


def anchors(page):
    """The anchors of the headings of a page, as code hosts and the site make them."""
    titles = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title).strip().lower().replace(" ", "-") for title in titles}


EXAMPLES = [
    pytest.param(code, id=f"{name_of(page)}-{number}")
    for page in PAGES
    for number, code in enumerate(blocks(page, "python"))
    # Blocks with the name of a file belong to the application of the tutorial, see test_tutorial.py.
    if not re.match(r"# \w+\.py\n", code)
]


@pytest.mark.parametrize("code", EXAMPLES)
def test_an_example_runs_alone(code):
    """A reader copies one block, not the page."""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=60)


def test_the_example_of_the_readme_shares_one_load_through_redis(servers: Servers):
    code = blocks(ROOT / "README.md", "python")[0]
    environment = os.environ | {"REDIS_URL": str(servers.redis_url)}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        check=True,
        timeout=60,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert re.fullmatch(r"1,000 calls, loads: [01]\ndeleted from Redis: True\n", done.stdout)
    assert done.stderr == ""


COMMANDS = {
    line: name_of(page)
    for page in reversed(PAGES)
    for block in blocks(page, "sh")
    for line in block.splitlines()
    if line.strip()
}


@pytest.mark.parametrize(("command", "page"), COMMANDS.items())
def test_a_command_of_a_page_succeeds(command, page):
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(["bash", "-c", command], check=False, timeout=120, env=os.environ | {"PATH": path})
    # A replay that missed a target has run, which is enough here: this test does not judge the speed of the machine.
    assert done.returncode in ({0, 1} if command.startswith("acgsperf replay") else {0})


def test_every_block_says_its_language():
    for page in PAGES:
        languages = {language for language, _ in BLOCK.findall(page.read_text())}
        # The block in SQL is run by tests/tiers/test_postgres_rights.py.
        assert languages <= {"python", "sh", "mermaid", "text", "sql"}, name_of(page)


def test_links_within_the_repository_lead_somewhere():
    for page in PAGES:
        for written in LINK.findall(prose(page)):
            link = written.replace(f"{REPOSITORY}#", f"{FILES_ON_THE_CODE_HOST}README.md#")
            if re.match(r"https?://", link) and not link.startswith(FILES_ON_THE_CODE_HOST):
                continue
            start = ROOT if link.startswith(FILES_ON_THE_CODE_HOST) else page.parent
            target, _, anchor = link.removeprefix(FILES_ON_THE_CODE_HOST).partition("#")
            path = start / target if target else page
            assert path.exists(), f"{name_of(page)} links to {link}"
            if anchor:
                assert anchor in anchors(path), f"{name_of(page)} links to {link}"


def test_links_of_the_readme_work_on_the_package_index():
    links = LINK.findall(prose(ROOT / "README.md"))
    assert [link for link in links if not link.startswith("https://")] == []


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text().partition("\nnav:\n")[2]
    listed = re.findall(r"([\w/]+\.md)$", navigation, re.MULTILINE)
    assert sorted(listed) == [str(page.relative_to(DOCS)) for page in SITE_PAGES]


def test_the_reference_lists_every_public_name():
    pages = (DOCS / "reference").glob("*.md")
    listed = {name for page in pages for name in re.findall(r"^::: ([\w.]+)$", page.read_text(), re.MULTILINE)}
    # `acgsperf.fingerprint` is a module too.
    listed |= {"acgsperf.fingerprint"} if "acgsperf.fingerprint.fingerprint" in listed else set()
    assert {f"acgsperf.{name}" for name in acgsperf.__all__} - listed == set()


def test_the_page_of_the_cache_lists_every_option_with_its_default():
    empty = inspect.Parameter.empty
    named = {"required": empty, "none": empty, "automatic": AUTOMATIC, "`time.monotonic`": time.monotonic}
    section = (DOCS / "cache.md").read_text().partition("\n## Options\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| [^|]+ \| ([^|]+) \| [^|]+ \|$", section, re.MULTILINE)
    listed = {
        name: named[default] if default in named else ast.literal_eval(default.strip("`")) for name, default in rows
    }
    parameters = inspect.signature(acgsperf.TieredCache).parameters
    assert list(listed) == list(parameters)
    assert listed == {name: parameter.default for name, parameter in parameters.items()}


def test_the_page_of_the_middleware_lists_every_option():
    pages = re.findall(r"^\| `(\w+)` \| [^|]+ \| [^|]+ \|$", (DOCS / "asgi.md").read_text(), re.MULTILINE)
    assert set(inspect.signature(acgsperf.asgi.PerformanceMiddleware).parameters) - {"app"} <= set(pages)


def test_the_page_of_the_cache_lists_every_option_of_entries_with_its_default():
    section = (DOCS / "cache.md").read_text().partition("\n### Options of entries\n")[2].partition("\n## ")[0]
    listed = dict(re.findall(r"^\| `(\w+)` \| `([^|`]+)` \| [^|]+ \|$", section, re.MULTILINE))
    options = acgsperf.TieredCache(acgsperf.LRUCache(1), namespace="n").options
    assert {name: ast.literal_eval(default) for name, default in listed.items()} == dataclasses.asdict(options)


def test_every_make_target_that_a_page_names_exists():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        named = set(re.findall(r"`(?:\w+=\S+ )*make ([\w-]+)`", page.read_text()))
        assert named <= targets, f"{name_of(page)} names {named - targets}"


def test_the_map_of_the_source_has_every_folder():
    folders = {path.parent.name for path in (ROOT / "acgsperf").glob("*/__init__.py")}
    mapped = set(re.findall(r"^\| `(\w+)/`", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE))
    assert mapped == folders
