# Two commands matter: `make run` and `make test`.  Each does its own set-up in .venv.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
SOURCE := setup.py pyproject.toml $(wildcard acgsperf/*.pyx acgsperf/_native/*.pyx acgsperf/_native/*.pxd acgsperf/_native/*.h)

.PHONY: run test soak test-all http-conformance lint types bench docs dist clean

run: $(VENV)/.run
	@echo "Replaying 100,000 requests in each of two processes that share Redis and PostgreSQL (about 20 seconds)."
	$(BIN)/acgsperf replay --processes 2 --requests 100000 --concurrency 2

test: $(VENV)/.test
	$(BIN)/python -m pytest

# The tests that take minutes. `make test` runs short versions of them.
soak: $(VENV)/.test
	$(BIN)/python -m pytest -m soak

test-all:
	.ci/test-all

# Runs the public suite for HTTP caches against the response cache of the middleware. Needs Node.js and npm.
HTTP_CACHE_TESTS ?= 0.4.5
SUITE := $(VENV)/http-cache-tests-$(HTTP_CACHE_TESTS)

http-conformance: $(VENV)/.test
	@command -v npm >/dev/null || { echo "http-conformance needs Node.js and npm"; exit 1; }
	test -d $(SUITE)/node_modules/http-cache-tests || npm install --silent --no-save --no-audit --no-fund --prefix $(SUITE) http-cache-tests@$(HTTP_CACHE_TESTS)
	$(BIN)/python tests/asgi/conformance/run.py $(SUITE)/node_modules/http-cache-tests

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Fails if one public name has no known type. Run outside of the tree, pyright treats the package as an installed one;
# it finds it by PYTHONPATH, because it does not follow the hooks of an editable installation.
VERIFY_TYPES = cd $(VENV) && PATH="$(abspath $(BIN)):$$PATH" PYTHONPATH="$(CURDIR)" pyright --verifytypes acgsperf --ignoreexternal

types: $(VENV)/.lint
	$(BIN)/mypy
	rm -rf build/examples
	$(BIN)/python docs/tools/example_files.py build/examples
	MYPYPATH=build/examples/tutorial $(BIN)/mypy --strict build/examples/tutorial
	$(BIN)/mypy --config-file= --check-untyped-defs build/examples/decorated
	$(BIN)/pyright --pythonpath $(BIN)/python tests/typing build/examples
	$(BIN)/stubtest --allowlist tests/stubtest-allowlist.txt acgsperf._native.canonical acgsperf._core acgsperf._native.envelope acgsperf._native.predictor acgsperf._native.read_path acgsperf._native.weigh acgsperf._native.resp
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

$(VENV)/.test: $(BIN)/python $(SOURCE)
	@echo "Compiling the extension, and installing everything that the tests need (about half a minute)."
	$(BIN)/pip install -q -e '.[test]'
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
