# Everything here works on a fresh machine: each target makes what it needs.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q

# Tests that fork the process they are in: it should have seen little.
FORKING := tests/unit tests/security/test_matrix.py

SOURCES := $(shell git ls-files csrc proto vortex_worker examples/digits examples/meson.build meson.build meson.options 2>/dev/null)

.PHONY: help demo test test-c test-python count count-update bench compare wheel wheel-twice docs lint clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' Makefile | sed 's/:.*##/\t/' | expand -t 16

demo: $(VENV)/.installed  ## draw digits in a locked-down worker, and show the picture
	@$(BIN)/vortex-worker run examples/digits/workflow.json -o out
	@$(BIN)/python examples/show.py out

test: $(VENV)/.installed test-c test-python  ## every test there is

test-c: $(VENV)/.installed  ## the core's C tests: plain, and under the address, undefined and thread sanitizers
	@[ -d builddir ] || PATH="$(CURDIR)/$(BIN):$$PATH" meson setup -Dtests=true builddir >/dev/null
	@PATH="$(CURDIR)/$(BIN):$$PATH" meson test -C builddir --print-errorlogs

count: $(VENV)/.installed  ## instructions of the core's hot functions, beside those that are kept
	@[ -d builddir ] || PATH="$(CURDIR)/$(BIN):$$PATH" meson setup -Dtests=true builddir >/dev/null
	@PATH="$(CURDIR)/$(BIN):$$PATH" meson test -C builddir --suite count --verbose

count-update: $(VENV)/.installed  ## keep what they are now
	@[ -d builddir ] || PATH="$(CURDIR)/$(BIN):$$PATH" meson setup -Dtests=true builddir >/dev/null
	@PATH="$(CURDIR)/$(BIN):$$PATH" ninja -C builddir count-update

test-python: $(VENV)/.installed
	@$(BIN)/pytest $(FORKING)
	@$(BIN)/pytest $(FORKING:%=--ignore=%)

bench: $(VENV)/.installed  ## measure this machine
	@$(BIN)/python -m vortex_worker.bench

compare: $(VENV)/.installed  ## measure what people use today beside it: bench/results, docs/performance.md
	@$(BIN)/python bench/compare.py setup
	@$(BIN)/python bench/compare.py run
	@$(BIN)/python bench/compare.py plot

wheel: $(VENV)/.installed  ## build sdist and wheel into dist/, and try the wheel on a bare machine
	@$(PIP) install -c constraints.txt --group wheels
	@scripts/wheel.sh $(VENV) dist
	@scripts/bare-machine.sh dist build/bare

wheel-twice: $(VENV)/.installed  ## build them twice, in two places: the bytes must be the same
	@$(PIP) install -c constraints.txt --group wheels
	@scripts/wheel.sh $(VENV) build/once
	@rm -rf build/elsewhere && git clone -q . build/elsewhere
	@cd build/elsewhere && scripts/wheel.sh $(CURDIR)/$(VENV) $(CURDIR)/build/twice
	@diff -r build/once build/twice && echo "the same bytes"

docs: $(VENV)/.installed  ## the documentation site, in site/; a broken link or docstring fails it
	@$(BIN)/python -m sphinx -b html -W --keep-going -q -c docs . site && echo "open site/index.html"

lint: $(VENV)/.installed  ## format check, lint, types
	@$(PIP) install -c constraints.txt ruff mypy cython-lint types-protobuf
	@$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/mypy && $(BIN)/cython-lint vortex_worker

$(VENV)/.installed: pyproject.toml constraints.txt scripts/bootstrap.sh $(SOURCES)
	@scripts/bootstrap.sh $(PYTHON) $(VENV)
	@touch $@

clean:  ## forget everything that was built
	rm -rf $(VENV) build builddir dist out site
