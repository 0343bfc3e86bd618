# Two commands matter: `make run` and `make test`.  Each does its own set-up in .venv.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
SOURCE := setup.py pyproject.toml $(wildcard acgsperf/*.pyx acgsperf/_native/*.pyx acgsperf/_native/*.pxd acgsperf/_native/*.h)

.PHONY: run run-cluster demo test test-browser soak week test-all http-conformance http-cache-tests sanitize sanitize-threads fuzz coverage mutants instructions \
        lint types bench docs dist clean

run: $(VENV)/.run
	@echo "Replaying 100,000 requests in each of two processes that share Redis and PostgreSQL (about 25 seconds)."
	$(BIN)/acgsperf replay --processes 2 --requests 100000 --concurrency 1

run-cluster: $(VENV)/.run
	@echo "Replaying 100,000 requests in each of two processes that share a Redis Cluster and PostgreSQL (about 30 seconds)."
	$(BIN)/acgsperf replay --cluster --processes 2 --requests 100000 --concurrency 1

demo: $(VENV)/.demo
	@echo "Starting Redis, PostgreSQL and three instances of a service (about 10 seconds)."
	$(BIN)/python -m acgsperf.dashboard.demo

# Most tests wait for servers, so four processes keep two cores busy. The modes of the history checker run three at a
# time, and a test that measures times or needs all cores runs by itself.
JOBS ?= 4

test: $(VENV)/.test
	$(BIN)/python -m pytest -n $(JOBS) --dist loadscope --no-loadscope-reorder -m "not soak and not alone and not few_at_once"
	$(BIN)/python -m pytest -n 3 -m "few_at_once and not soak" tests/history
	$(BIN)/python -m pytest -m "alone and not soak"

# The tests of the dashboard in Chromium, which must be installed. `make test` skips them without Playwright.
test-browser: $(VENV)/.browser
	$(BIN)/python -m pytest tests/dashboard/test_browser.py

# The tests that take minutes. `make test` runs short versions of them.
soak: $(VENV)/.test
	$(BIN)/python -m pytest -m soak

# Three instances for eight days, a hundred times faster: almost two hours. `DAYS=2` takes half an hour.
DAYS ?= 8
week: $(VENV)/.test
	cd tests && ../$(BIN)/python -m faults.week --days $(DAYS)

test-all:
	.ci/test-all

# Runs the public suite for HTTP caches against the response cache of the middleware. Needs Node.js and npm. Another
# version of the suite: `make http-conformance HTTP_CACHE_TESTS=1.2.3`.
HTTP_CACHE_TESTS ?= 0.4.5
SUITE := $(VENV)/http-cache-tests-$(HTTP_CACHE_TESTS)

http-conformance: $(VENV)/.test http-cache-tests
	$(BIN)/python tests/asgi/conformance/run.py $(SUITE)/node_modules/http-cache-tests

# Installs the suite.
http-cache-tests:
	@command -v npm >/dev/null || { echo "http-conformance needs Node.js and npm"; exit 1; }
	test -d $(SUITE)/node_modules/http-cache-tests || npm install --silent --no-save --no-audit --no-fund --ignore-scripts --prefix $(SUITE) http-cache-tests@$(HTTP_CACHE_TESTS)

# How long each fuzzer runs. `FUZZ=--keep` adds what it finds to the corpus.
FUZZ_SECONDS ?= 60
FUZZ ?=

# Needs gcc with its sanitizers.
sanitize: $(VENV)/.test
	$(BIN)/python tools/sanitize.py addresses --fuzz-seconds $(if $(filter file,$(origin FUZZ_SECONDS)),20,$(FUZZ_SECONDS))

# Needs an interpreter that was built under ThreadSanitizer and without the GIL:
# `make sanitize-threads VENV=.venv-tsan PYTHON=/opt/python-tsan/bin/python3`.
sanitize-threads:
	@$(PYTHON) tools/sanitize.py check-threads
	$(MAKE) $(VENV)/.sanitize-threads
	$(BIN)/python tools/sanitize.py threads

fuzz: $(VENV)/.fuzz
	$(BIN)/python tests/fuzz/run.py --seconds $(FUZZ_SECONDS) $(FUZZ)

# Branches of Python and lines of Cython. `COVERED=tests/core` runs these tests only, and reports what they run.
COVERED ?= tests
coverage: $(VENV)/.coverage
	$(BIN)/python tools/coverage_report.py $(COVERED)

# `SUBJECTS="breaker ordering"` changes these modules only.
SUBJECTS ?=
mutants: $(VENV)/.test
	$(BIN)/python tools/mutants.py $(SUBJECTS)

# Compares the instructions of the hot calls with those of another commit. Needs valgrind.
BASE ?= main
instructions: $(VENV)/.test
	$(BIN)/python tools/instructions.py $(BASE)

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/zizmor --offline --quiet .

# Fails if one public name has no known type. Run outside of the tree, pyright treats the package as an installed one.
VERIFY_TYPES = cd $(VENV) && PATH="$(abspath $(BIN)):$$PATH" pyright --verifytypes acgsperf --ignoreexternal

types: $(VENV)/.lint
	$(BIN)/mypy
	rm -rf build/examples
	$(BIN)/python docs/tools/example_files.py build/examples
	MYPYPATH=build/examples/tutorial $(BIN)/mypy --strict build/examples/tutorial
	$(BIN)/mypy --config-file= --check-untyped-defs build/examples/decorated
	$(BIN)/pyright --pythonpath $(BIN)/python tests/typing build/examples/decorated
	$(BIN)/pyright --pythonpath $(abspath $(BIN))/python --project build/examples/tutorial
	$(BIN)/stubtest --allowlist tests/stubtest-allowlist.txt acgsperf._native.canonical acgsperf._core acgsperf._native.caches acgsperf._native.envelope acgsperf._native.hits acgsperf._native.pg_dialogue acgsperf._native.predictor acgsperf._native.read_path acgsperf._native.weigh acgsperf._native.resp
	$(VERIFY_TYPES)

bench: $(VENV)/.bench
	$(BIN)/acgsperf bench

docs: $(VENV)/.docs
	$(BIN)/zensical build --clean --strict
	$(BIN)/python docs/tools/check_site.py

dist: $(VENV)/.dist
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*

clean:
	rm -rf $(VENV) .cache build dist site *.egg-info acgsperf/*.so acgsperf/*/*.so

$(BIN)/python:
	@echo "Creating a virtual environment in $(VENV)."
	$(PYTHON) -m venv $(VENV)

# Each stamp is an editable install with the extras that its target needs, made again when the extension changes.
$(VENV)/.run: $(BIN)/python $(SOURCE)
	@echo "Compiling the extension, and installing the command line and the private servers (about half a minute)."
	$(BIN)/pip install -q -e '.[cli,embedded]'
	touch $@

$(VENV)/.demo: $(BIN)/python $(SOURCE)
	@echo "Compiling the extension, and installing the command line, the dashboard and the private servers (about half a minute)."
	$(BIN)/pip install -q -e '.[dashboard,embedded]'
	touch $@

$(VENV)/.browser: $(BIN)/python $(SOURCE)
	$(BIN)/pip install -q -e '.[browser]'
	touch $@

$(VENV)/.test: $(BIN)/python $(SOURCE)
	@echo "Compiling the extension, and installing everything that the tests need (about half a minute)."
	$(BIN)/pip install -q -e '.[test]'
	touch $@

$(VENV)/.fuzz: $(VENV)/.test pyproject.toml
	$(BIN)/pip install -q -e '.[fuzz]'
	touch $@

$(VENV)/.coverage: $(VENV)/.test pyproject.toml
	$(BIN)/pip install -q -e '.[coverage]'
	touch $@

# The package itself is compiled under the sanitizer, and the tests of the core need no servers.
$(VENV)/.sanitize-threads: $(BIN)/python pyproject.toml
	$(BIN)/pip install -q -e '.[test-core]' cython setuptools
	touch $@

$(VENV)/.lint: $(BIN)/python $(SOURCE)
	$(BIN)/pip install -q -e '.[lint]'
	touch $@

$(VENV)/.bench: $(BIN)/python $(SOURCE)
	$(BIN)/pip install -q -e '.[bench]'
	touch $@

$(VENV)/.docs: $(BIN)/python $(SOURCE)
	$(BIN)/pip install -q -e '.[docs]'
	touch $@

$(VENV)/.dist: $(BIN)/python pyproject.toml
	$(BIN)/pip install -q -e '.[build]'
	touch $@
