# Everything a developer or a first-time user runs. `make help` lists the targets.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules

# BCC is a distribution package for the distribution's own Python, so that Python it must be.
PYTHON ?= /usr/bin/python3
VENV := .venv
BIN := $(VENV)/bin
# BCC and its clang; what the C extensions are built with; the VM of the lab and what its disk is made of;
# systemd-analyze, which checks the unit.
PACKAGES := python3-bpfcc python3-venv python3-dev gcc libc6-dev qemu-system-x86 busybox-static \
	e2fsprogs systemd
NATIVE := $(wildcard $(addsuffix /*.[ch],replay/native tracer/engine) */*/build_*.py)

.PHONY: help setup demo test fuzz bench clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/.stamp-python ## install what is missing: system packages, a venv, aerostat itself
	@:

# dpkg-query is asked first: a machine that has it all needs neither root nor the network.
$(VENV)/.stamp-system: Makefile
	@missing=(); for name in $(PACKAGES); do \
	    status=$$(dpkg-query -W -f '$${Status}' "$$name" 2>/dev/null || true); \
	    [ "$$status" = "install ok installed" ] || missing+=("$$name"); \
	done; \
	if [ $${#missing[@]} -gt 0 ]; then \
	    if [ "$$(id -u)" != 0 ]; then \
	        echo "make setup: as root: apt-get update && apt-get install $${missing[*]}" >&2; \
	        exit 6; \
	    fi; \
	    export DEBIAN_FRONTEND=noninteractive; \
	    apt-get update -q; \
	    apt-get install -q -y --no-install-recommends "$${missing[@]}"; \
	fi
	@mkdir -p $(VENV) && touch $@

$(VENV)/.stamp-venv: $(VENV)/.stamp-system
	@[ -x $(BIN)/python ] || $(PYTHON) -m venv --system-site-packages $(VENV)
	@touch $@

$(VENV)/.stamp-python: $(VENV)/.stamp-venv pyproject.toml setup.py $(NATIVE)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[lab,notebook,dev]'
	@touch $@

demo: setup ## boot the lab's VM, record both sides, join, replay, compare strategies
	@$(BIN)/aerostat lab --demo --force -o out/demo.balloon

# First what looks at every VM of this host, before others have any. Then side by side the two that
# take longest: guests recorded from their host, and what loads BPF here, which mostly waits, with
# the guests that record themselves behind it. Beside them, in what CPU time they leave, go the
# tiers that only compute, shared out among the CPUs, and then those that map guest memory.
# Everything runs, whatever failed before it; a closing line of pytest is the last.
PYTEST := $(BIN)/python -m pytest
COMPUTING := $(addprefix tests/,fuzz golden hostile notebooks property unit)
ALL_VMS := tests/kernel/all_vms
IN_GUEST := tests/vm/in_guest
ELSEWHERE := $(COMPUTING) tests/kernel tests/memory $(IN_GUEST)
test: setup ## lint, types, and every tier of tests this machine can run
	@status=0; mkdir -p out; \
	$(BIN)/ruff check . || status=1; \
	$(BIN)/ruff format --check . || status=1; \
	$(BIN)/mypy || status=1; \
	[ $$status = 0 ] || echo "make test: lint or types FAILED, see above"; \
	( failed=0; \
	  nice -n 10 $(PYTEST) -n logical --dist loadfile $(COMPUTING) || failed=1; \
	  nice -n 10 $(PYTEST) tests/memory || failed=1; \
	  exit $$failed ) >out/computing.log 2>&1 & computing=$$!; \
	$(PYTEST) $(ALL_VMS) || status=1; \
	( failed=0; \
	  $(PYTEST) tests/kernel --ignore=$(ALL_VMS) || failed=1; \
	  $(PYTEST) $(IN_GUEST) || failed=1; \
	  exit $$failed ) >out/kernel.log 2>&1 & kernel=$$!; \
	$(PYTEST) $(addprefix --ignore=,$(ELSEWHERE)) || status=1; \
	for beside in $$kernel $$computing; do wait $$beside || status=1; done; \
	cat out/kernel.log out/computing.log; \
	[ $$status = 0 ] || echo "make test: FAILED, see above"; \
	exit $$status

fuzz: setup ## fuzz what reads untrusted bytes; SECONDS=600 for each target (10 when left out)
	@AEROSTAT_FUZZ_SECONDS=$(or $(SECONDS),10) $(BIN)/python -m pytest -s tests/fuzz

bench: setup ## measure speed and memory against the goals; BENCH="drain memory" runs those alone
	@mkdir -p out && $(BIN)/python -m tests.bench $(BENCH)

clean: ## remove build products and outputs; keeps the lab's image cache
	rm -rf build out *.egg-info {replay/native,tracer/engine}/*.{so,o} .mypy_cache .ruff_cache \
	    .pytest_cache $(VENV)
