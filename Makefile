# The two commands of this repository are `make run` and `make test`; `make help` lists the rest.
#
# They need make and a Python >= 3.11 with venv. The newest one that works is found by running
# each candidate on PATH and in pyenv's versions folder; PYTHON=/path/to/python overrides.

.DEFAULT_GOAL := help
.SUFFIXES:

VENV = .venv
PY = $(VENV)/bin/python
# Twice --quiet: errors only, so that the server's or the tests' first line is the first line.
PIP = $(PY) -m pip --quiet --quiet --disable-pip-version-check --no-input

# --- finding a Python ------------------------------------------------------------------------
# An executable of the right name proves nothing (a pyenv shim of an inactive version exists and
# fails), so each candidate has to import what `venv` needs and to tell its version: 3.11.7 is 31107.
PROBE = import sys, venv, ensurepip; v = tuple(sys.version_info); print("%d%02d%02d" % v[:3])
AUTO = $(PROBE); sys.exit(sys.implementation.name != "cpython" or v[3] != "final")

# A shell fragment: sets $found to the newest candidate, or leaves it empty; $want (312) narrows.
SEARCH = best=31099; found=; \
	look() { \
		for candidate in "$$1"/python3 "$$1"/python3.1[1-9]; do \
			[ -x "$$candidate" ] || continue; \
			number=$$("$$candidate" -c '$(AUTO)' </dev/null 2>/dev/null) || continue; \
			[ -z "$$want" ] || [ "$${number%??}" = "$$want" ] || continue; \
			if [ "$$number" -gt "$$best" ] 2>/dev/null; then best=$$number; found=$$candidate; fi; \
		done; \
	}; \
	IFS=:; for folder in $$PATH; do look "$$folder"; done; unset IFS; \
	for folder in "$${PYENV_ROOT:-$$HOME/.pyenv}"/versions/*/bin; do look "$$folder"; done

# A shell fragment: sets $found from PYTHON= or the search, or ends with a message.
FIND = want=; found="$(PYTHON)"; \
	if [ -n "$$found" ]; then \
		number=$$("$$found" -c '$(PROBE)' </dev/null 2>/dev/null) || { \
			echo "PYTHON=$$found cannot be used: it does not run, or it has no venv and ensurepip." >&2; \
			echo "Name a Python >= 3.11, or leave PYTHON out." >&2; exit 1; }; \
		[ "$$number" -ge 31100 ] 2>/dev/null || { \
			echo "PYTHON=$$found is too old: deferred needs Python >= 3.11." >&2; exit 1; }; \
	else \
		$(SEARCH); \
		[ -n "$$found" ] || { \
			echo "No working Python >= 3.11 with venv on PATH or in pyenv's versions folder." >&2; \
			echo "Install one (on Debian: python3 and python3-venv) or say PYTHON=/path/to/python." >&2; \
			exit 1; }; \
	fi

# --- the virtual environments ----------------------------------------------------------------
# .made-by says which Python made the environment, and where. It is rebuilt when that is no
# longer true: another PYTHON=, a Python that was removed, a checkout that was moved.
IDENTITY = import os, sys; print(os.path.realpath(sys.base_prefix), "%d.%d" % sys.version_info[:2], os.getcwd())
STALE := $(shell made=$$(cat "$(VENV)/.made-by" 2>/dev/null) \
	&& [ "$$made" = "$$("$(PY)" -c '$(IDENTITY)' 2>/dev/null)" ] \
	&& { [ -z "$(PYTHON)" ] || [ "$$made" = "$$("$(PYTHON)" -c '$(IDENTITY)' 2>/dev/null)" ]; } \
	|| echo stale)

# Two terminals may start at once (`make run` and `make test`), so whoever installs holds a lock:
# the file is inherited by the make below it, and free again when that has ended, however it ends.
LOCK = import fcntl, os, sys; lock = os.open(sys.argv[1], os.O_CREAT | os.O_RDWR); \
	fcntl.flock(lock, fcntl.LOCK_EX); os.set_inheritable(lock, True); os.execvp(sys.argv[2], sys.argv[2:])

ifndef LOCKED

$(VENV)/.run-stamp $(VENV)/.postgres-stamp $(VENV)/.dev-stamp: pyproject.toml Makefile $(if $(STALE),FORCE)
	@$(FIND); exec "$$found" -c '$(LOCK)' "$(VENV).lock" $(MAKE) --no-print-directory LOCKED=yes $@

else

$(VENV)/.made-by: $(if $(STALE),FORCE)
	@$(FIND); \
	echo "Making $(VENV) with $$found" >&2; \
	rm -rf "$(VENV)" && "$$found" -m venv "$(VENV)" && $(PIP) install --upgrade 'pip>=25.1' \
		&& $(PY) -c '$(IDENTITY)' >"$@.part" && mv "$@.part" "$@"

# The stamps are touched last: an install that was interrupted is started again.
$(VENV)/.run-stamp: $(VENV)/.made-by pyproject.toml Makefile
	@echo "Installing what the app needs (once)" >&2
	@$(PIP) install --editable . --group marathon
	@touch "$@"

$(VENV)/.postgres-stamp: $(VENV)/.run-stamp
	@echo "Installing PostgreSQL (once)" >&2
	@$(PIP) install --group marathon-postgres
	@touch "$@"

$(VENV)/.dev-stamp: $(VENV)/.run-stamp
	@echo "Installing what the tests and linters need (once)" >&2
	@$(PIP) install --editable . --group dev
	@touch "$@"

endif

.PHONY: FORCE
FORCE:

# --- the commands ----------------------------------------------------------------------------
.PHONY: run
run: $(VENV)/.run-stamp ## start the marathon app (MARATHON_PORT=8123 make run)
	@MARATHON_DEMO_DELAYS="$${MARATHON_DEMO_DELAYS-insert=180,mail=350}" \
		MARATHON_DEMO_RESTART="$${MARATHON_DEMO_RESTART-yes}" exec $(PY) -m marathon_app

.PHONY: run-postgres
run-postgres: $(VENV)/.postgres-stamp ## the same on PostgreSQL, with a worker of its own (MARATHON_POSTGRES=folder)
	@MARATHON_DEMO_DELAYS="$${MARATHON_DEMO_DELAYS-insert=180,mail=350}" exec $(PY) -m marathon_app together

.PHONY: compare
compare: $(VENV)/.run-stamp ## measure the executions side by side (ARGS="-n 200")
	@MARATHON_DEMO_DELAYS="$${MARATHON_DEMO_DELAYS-insert=180,mail=350}" exec $(PY) -m marathon_app compare $(ARGS)

.PHONY: test
test: $(VENV)/.dev-stamp ## run the whole test suite (ARGS="-k drain -x")
	@exec $(PY) -m pytest $(ARGS)

.PHONY: setup
setup: $(VENV)/.dev-stamp ## make .venv with everything in it, and nothing else

.PHONY: lint
lint: $(VENV)/.dev-stamp ## check style, formatting and the direction of imports
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(VENV)/bin/lint-imports --no-logo

.PHONY: format
format: $(VENV)/.dev-stamp ## mend style and formatting
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

.PHONY: types
types: $(VENV)/.dev-stamp ## check types: mypy and pyright, both strict, and that the public ones are complete
	$(PY) -m mypy
	$(PY) -m pyright
	@# pyright looks for a package on this path alone; it fails below 100%.
	PYTHONPATH=.:$$($(PY) -c 'import sysconfig; print(sysconfig.get_path("purelib"))') \
		$(PY) -m pyright --verifytypes deferred --ignoreexternal

.PHONY: bench
bench: $(VENV)/.dev-stamp ## run the benchmarks (ARGS="-k defer")
	@exec $(PY) -m pytest benchmarks --benchmark-enable $(ARGS)

.PHONY: downstream
downstream: $(VENV)/.dev-stamp ## run Starlette's own suite with every app wrapped: no difference is allowed
	@exec $(PY) tests/downstream/run.py

.PHONY: servers
servers: $(VENV)/.dev-stamp ## test the servers as processes, what takes minutes too
	@exec $(PY) -m pytest tests/servers tests/servers/long.py $(ARGS)

.PHONY: docs
docs: $(VENV)/.dev-stamp ## build the documentation's site, strictly, into build/site
	@mkdir -p build
	@$(PY) -m towncrier build --draft --version Unreleased --date now >build/unreleased.md 2>build/towncrier.log \
		|| { cat build/towncrier.log >&2; exit 1; }
	@sed -i.bak "s,^## Unreleased (now)$$,## Unreleased," build/unreleased.md
	@$(VENV)/bin/zensical build --strict --clean

.PHONY: docs-serve
docs-serve: $(VENV)/.dev-stamp docs ## serve the site while it is written
	@exec $(VENV)/bin/zensical serve

.PHONY: test-all
test-all: ## run the test suite on every Python found of 3.11, 3.12 and 3.13
	@ran=; failed=; \
	for version in 3.11 3.12 3.13; do \
		want=3$${version#3.}; $(SEARCH); \
		if [ -z "$$found" ]; then echo "== Python $$version: not found, skipped"; continue; fi; \
		echo "== Python $$version: $$found"; ran="$$ran $$version"; \
		$(MAKE) --no-print-directory test VENV=.venv-$$version PYTHON="$$found" || failed="$$failed $$version"; \
	done; \
	[ -n "$$ran" ] || { echo "None of Python 3.11, 3.12 and 3.13 was found." >&2; exit 1; }; \
	[ -z "$$failed" ] || { echo "Failed on:$$failed" >&2; exit 1; }; \
	echo "Passed on:$$ran"

CORE = $(wildcard tests/contract tests/durable tests/engines/test_payload.py tests/engines/test_registry.py tests/faults tests/integrations tests/proof tests/unit)

.PHONY: test-oldest
test-oldest: ## run the core's tests on Python 3.11, where one is found
	@want=311; $(SEARCH); [ -n "$$found" ] || { echo "Python 3.11: not found, skipped"; exit 0; }; \
	echo "== Python 3.11: $$found"; \
	exec $(MAKE) --no-print-directory test VENV=.venv-3.11 PYTHON="$$found" ARGS="$(CORE) $(ARGS)"

DURABLE = tests/durable tests/engines/test_payload.py tests/engines/test_registry.py

.PHONY: coverage
coverage: $(VENV)/.dev-stamp ## measure the branches of the core and of its tests; fails below 100%
	@$(PY) -m coverage erase
	$(PY) -m coverage run -m pytest -q $(CORE) $(DURABLE) --ignore tests/proof/test_endurance.py $(ARGS)
	@$(PY) -m coverage combine --quiet
	@$(PY) -m coverage report

.PHONY: mutation
mutation: $(VENV)/.dev-stamp ## change the core bit by bit and see that a test notices (ARGS="_retry --sample 50")
	@$(PIP) install --group mutation
	@exec nice -n 19 $(PY) tests/mutate.py $(ARGS)

.PHONY: chaos
chaos: $(VENV)/.dev-stamp ## kill workers and databases for minutes; build/chaos.md says what came of it
	@$(PY) -m pytest -q -m chaos tests/engines $(ARGS); code=$$?; cat build/chaos.md; exit $$code

# Each round has a seed of its own, which `make test ARGS=--randomly-seed=...` repeats.
.PHONY: random
random: $(VENV)/.dev-stamp ## run the suite in 20 random orders, until one fails (N=5 ARGS=tests/proof)
	@for round in $$(seq $(or $(N),20)); do \
		seed=$$($(PY) -c 'import secrets; print(secrets.randbelow(2**32))'); \
		echo "== $$round of $(or $(N),20): --randomly-seed=$$seed"; \
		$(PY) -m pytest -q -x --randomly-seed=$$seed $(ARGS) || { \
			echo "Failed: make test ARGS='--randomly-seed=$$seed $(ARGS)'" >&2; exit 1; }; \
	done

.PHONY: compat
compat: $(VENV)/.dev-stamp ## run the integrations' tests on the lowest and newest framework versions (ARGS="--only starlette")
	@exec $(PY) tests/compat/run.py $(ARGS)

.PHONY: print-python
print-python: ## print the Python that the environment would be made with
	@$(FIND); echo "$$found"

.PHONY: clean
clean: ## remove the environments, caches and build results
	rm -rf .venv .venv.lock .venv-* .benchmarks .cache .coverage .coverage.* .hypothesis .import_linter_cache \
		.mypy_cache .pytest_cache .ruff_cache build dist htmlcov
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: help
help: ## list these commands
	@sed -n 's/^\([a-z][a-z-]*\):[^#]*## \(.*\)/\1|\2/p' Makefile \
		| while IFS='|' read -r name text; do printf 'make %-13s %s\n' "$$name" "$$text"; done
