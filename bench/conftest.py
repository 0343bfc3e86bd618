"""Who takes part."""

from acgsperf.workbench.compare import contestants


def pytest_report_header() -> str:
    _, left_out = contestants()
    return f"not installed, left out: {', '.join(left_out) or 'none'}"
