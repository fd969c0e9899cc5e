# make demo    set up everything, then run untrusted code over a real file in a fresh microVM
# make test    set up everything, check, then all tests (what CI runs)
# make test-kvm  the contract on Firecracker with a Linux guest, where KVM runs one
# make frameworks  the examples of four agent frameworks, with the real libraries
# make check   lint, types, import contracts, spelling      make fix    what can be mended by itself
# make corpus  other people's examples in sandboxes, cell by cell beside a plain Jupyter (docs/corpus.md; some 45 min)
# make soak    all slow tests with machines, and every point of every sweep of faults, three times over
#              (make test takes a sample of both, another one each time)
# make bench   the figures, each beside its floor           make help   this list

SHELL  := bash
PYTHON ?= python3
BIN    := .venv/bin
OUT    := demo-out
CODE   := src tests examples bench tools
# One for each processor. At most 4: each has daemons and machines of its own
WORKERS ?= $(shell echo $$(($$(nproc) < 4 ? $$(nproc) : 4)))

SUDO   := $(shell test "$$(id -u)" = 0 || echo sudo)

.DELETE_ON_ERROR:
.PHONY: demo test test-kvm frameworks corpus images check fix bench soak help clean

help:
	@sed -n '/^#/!q; s/^# //p' Makefile

# A stamp per state of .venv: it is there exactly when its recipe went through, so a second make skips it.
.venv/made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo 'error: Casemate needs Python 3.11 or newer; say which: make PYTHON=python3.12 …' >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo 'This machine lacks python3-venv; installing it with apt.'; \
	  command -v apt-get >/dev/null || { echo 'error: install the venv module of $(PYTHON) by hand' >&2; exit 1; }; \
	  $(SUDO) apt-get update -qq && $(SUDO) apt-get install -y -qq --no-install-recommends python3-venv; }
	$(PYTHON) -m venv .venv
	@touch $@

.venv/installed: .venv/made pyproject.toml
	@echo 'Installing casemate into .venv …'
	@$(BIN)/python -m pip install -q --disable-pip-version-check -e .
	@touch $@

.venv/installed-dev: .venv/installed
	@echo 'Installing the tools of the tests into .venv …'
	@$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[dev]'
	@touch $@

# Without these the tests that want the real Firecracker skip, and say why; nothing else needs them.
.venv/firecracker/made: .venv/installed tests/firecracker/binaries.py
	@command -v gcc >/dev/null || { \
	  echo 'This machine lacks gcc for the guests of the tests; installing it with apt.'; \
	  $(SUDO) apt-get update -qq && $(SUDO) apt-get install -y -qq --no-install-recommends gcc; } || true
	@$(BIN)/python -m tests.firecracker.binaries && touch $@ || true

demo: .venv/installed
	@$(BIN)/casemate setup --yes
	@mkdir -p $(OUT)
	$(BIN)/casemate run --timings --put examples/co2.csv:co2.csv --get chart.png:$(OUT)/chart.png examples/co2.py co2.csv

check: .venv/installed-dev
	$(BIN)/ruff check $(wildcard $(CODE))
	$(BIN)/ruff format --check $(wildcard $(CODE))
	$(BIN)/mypy
	$(BIN)/lint-imports --config .importlinter.toml
	$(BIN)/codespell $(wildcard $(CODE) docs *.md Makefile)

images: .venv/installed-dev
	$(BIN)/casemate setup --yes

# The checks compute while the images wait for their packages
test: .venv/installed-dev .venv/firecracker/made
	@$(MAKE) --no-print-directory -j2 --output-sync check images
	$(BIN)/pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

test-kvm: .venv/installed-dev .venv/firecracker/made
	@$(BIN)/casemate setup --yes
	$(BIN)/pytest -m kvm tests/vm

frameworks: images
	@echo 'Installing the agent frameworks into .venv …'
	@$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[openai-agents,langchain,pydantic-ai,smolagents]'
	$(BIN)/pytest tests/vm/test_vm_frameworks.py tests/unit/integrations

# All anew; with WORDS=… only what has one of them in its name. What stopped half-way goes on without --again
corpus: images
	$(BIN)/python -m tests.corpus plain --again $(WORDS)
	$(BIN)/python -m tests.corpus ours --again $(WORDS)
	$(BIN)/python -m tests.corpus table $(WORDS)

soak: images
	CASEMATE_SOAK=1 $(BIN)/pytest tests/faults tests/vm

fix: .venv/installed-dev
	$(BIN)/ruff check --fix $(wildcard $(CODE))
	$(BIN)/ruff format $(wildcard $(CODE))

bench: .venv/installed
	@echo 'Installing what the bare host runs the cells with into .venv …'
	@$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[bench]'
	@$(BIN)/casemate setup --yes
	$(BIN)/casemate bench

clean:
	rm -rf .venv $(OUT)
