"""Every code block of the README and the documentation runs."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page, language):
    return [code for found, code in BLOCK.findall(page.read_text()) if found == language]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_python_of_a_page_runs_from_top_to_bottom(page):
    code = "".join(blocks(page, "python"))
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=60)


COMMANDS = [
    (page.name, line) for page in PAGES for block in blocks(page, "sh") for line in block.splitlines() if line.strip()
]


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_a_command_of_a_page_succeeds(page, command):
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(["bash", "-c", command], check=False, timeout=120, env=os.environ | {"PATH": path})
    # A replay that ran and missed a target has succeeded here: how fast this machine is, is no matter for a test.
    assert done.returncode in ({0, 1} if command.startswith("acgsperf replay") else {0})


def test_every_block_says_its_language():
    assert {language for page in PAGES for language, _ in BLOCK.findall(page.read_text())} == {"python", "sh"}


def test_links_within_the_repository_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?://)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_make_target_that_a_page_names_exists():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        named = set(re.findall(r"`(?:\w+=\S+ )*make ([\w-]+)`", page.read_text()))
        assert named <= targets, f"{page.name} names {named - targets}"
