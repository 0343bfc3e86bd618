"""A service with a dashboard, and a browser."""

import os
import shutil

import pytest
from serving import running


@pytest.fixture(scope="module")
def served():
    with running() as found:
        yield found


@pytest.fixture(scope="module")
def browser():
    """Chromium, driven by Playwright. It asks for nothing but the page."""
    # Playwright's event loop runs until the end of this fixture, and no other loop can run in this thread meanwhile.
    chromium = os.environ.get("ACGSPERF_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium: apt-get install chromium, or name one in ACGSPERF_CHROMIUM")
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="no Playwright: pip install 'acgsperf[browser]'", exc_type=ImportError
    )
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking"]
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=arguments)
        yield browser
        browser.close()
