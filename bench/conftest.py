"""Reports which alternatives are not installed."""

from acgsperf.workbench.compare import contestants


def pytest_report_header() -> str:
    _, left_out = contestants()
    return f"not installed, skipped: {', '.join(left_out) or 'none'}"
