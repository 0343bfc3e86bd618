"""Runs the public suite for HTTP caches against the middleware, and compares the result with `gaps.py`.

    python tests/asgi/conformance/run.py FOLDER

FOLDER is that of the npm package `http-cache-tests`. Prints the table of `docs/asgi.md`. Exits with 1 if `gaps.py`
does not name a missing behaviour or names one that is not missing, or if fewer tests pass than REQUIRED and OPTIMAL.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

from gaps import GAPS, OF_HEURISTIC

HERE = Path(__file__).parent
REQUIRED, OPTIMAL = 140, 70
HEURISTIC = "0.1"


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def wait_for(port, process, log):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as client:
            if client.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    sys.exit(f"{' '.join(process.args)} does not listen on port {port}; its errors are in {log.name}")


def run_suite(folder, heuristic):
    """The result of each test of the suite, against a middleware with or without heuristic freshness."""
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        log = stack.enter_context((folder.parents[1] / "errors.log").open("w"))

        def start(arguments, port, **options):
            process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=log, **options)
            stack.callback(process.wait)
            stack.callback(process.terminate)
            wait_for(port, process, log)

        origin, proxy = free_port(), free_port()
        settings = {"npm_config_protocol": "http", "npm_config_port": str(origin)}
        settings |= {"npm_config_pidfile": str(scratch / "pid"), "npm_package_config_id": ""}
        settings["npm_config_base"] = f"http://127.0.0.1:{proxy}"
        environment = os.environ | settings
        start(["node", "server/server.mjs"], origin, cwd=folder, env=environment)
        options = ["--http", "httptools", "--no-server-header", "--no-date-header", "--log-level", "error"]
        # The suite reuses connections after pauses.
        options += ["--timeout-keep-alive", "60"]
        address = {"ORIGIN": f"http://127.0.0.1:{origin}"} | ({"HEURISTIC": HEURISTIC} if heuristic else {})
        start(
            [sys.executable, "-m", "uvicorn", "proxy:app", "--port", str(proxy), *options],
            proxy,
            cwd=HERE,
            env=os.environ | address,
        )
        results = scratch / "results.json"
        with results.open("w") as file:
            command = ["node", "--no-warnings", "cli.mjs"]
            subprocess.run(command, cwd=folder, env=environment, stdout=file, check=True, timeout=600)
        found = subprocess.run(
            ["node", "--no-warnings", HERE / "results.mjs", folder, results], stdout=subprocess.PIPE, check=True
        )
        return json.loads(found.stdout)


def run_twice_if_needed(folder, heuristic, known):
    """The result of each test. Tests depend on time: one that passes in the second run has failed on a slow machine."""
    tests = run_suite(folder, heuristic)
    if any(unknown(test, known) for test in tests):
        again = {test["id"]: test for test in run_suite(folder, heuristic)}
        tests = [again.get(test["id"], test) if unknown(test, known) else test for test in tests]
    return tests


def unknown(test, known):
    return not test["passed"] and test["kind"] != "check" and test["id"] not in known


def counted(tests):
    """How many tests there are of each kind, and how many passed."""
    total = Counter(test["kind"] for test in tests)
    passed = Counter(test["kind"] for test in tests if test["passed"])
    return {kind: (passed[kind], total[kind]) for kind in ("required", "optimal")}


def table(tests):
    """The table of the documentation: a row for each part of the suite that has required or optional behaviours."""
    lines = ["| part of the suite | required | optional | why not all |", "|---|---|---|---|"]
    for suite in dict.fromkeys(test["suite"] for test in tests):
        of_suite = [test for test in tests if test["suite"] == suite and test["kind"] != "check"]
        if of_suite:
            cells = [f"{passed} of {total}" if total else "" for passed, total in counted(of_suite).values()]
            missing = dict.fromkeys(GAPS.get(test["id"], "?") for test in of_suite if not test["passed"])
            lines.append(f"| {suite} | {' | '.join(cells)} | {'; '.join(missing)} |")
    (required, of_required), (optimal, of_optimal) = counted(tests).values()
    lines.append(f"| **all** | **{required} of {of_required}** | **{optimal} of {of_optimal}** | |")
    return "\n".join(lines)


def main(folder):
    plain = run_twice_if_needed(folder, False, GAPS.keys() | OF_HEURISTIC)
    tests = run_twice_if_needed(folder, True, GAPS.keys())
    print(table(tests))
    print("Without the option `heuristic`:", counted(plain))
    wrong = [test for test in tests if unknown(test, GAPS)]
    wrong += [test for test in plain if unknown(test, GAPS.keys() | OF_HEURISTIC)]
    for test in wrong:
        print(f"missing: {test['id']} ({test['kind']}): {test['detail']}")
    for test in tests:
        if test["passed"] and test["id"] in GAPS:
            print(f"passed, so remove it from gaps.py: {test['id']}")
            wrong.append(test)
    counts = counted(plain)
    enough = counts["required"][0] >= REQUIRED and counted(tests)["optimal"][0] >= OPTIMAL
    return 1 if wrong or not enough else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve()))
