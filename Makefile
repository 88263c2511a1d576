# `make demo` and `make test` need nothing but Python 3.11 or newer with venv, and pip's access to packages.
# torch is installed as the constraints pin it; where pip would bring a CUDA build and a CPU build is wanted,
# point pip at PyTorch's CPU packages (PIP_EXTRA_INDEX_URL) before the first `make`.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
PYTEST = $(BIN)/python -m pytest
INSTALLED = $(VENV)/.installed

.PHONY: venv demo docs screenshots test test-long test-foreign lint clean

venv: $(INSTALLED)

$(INSTALLED): pyproject.toml setup.cfg constraints.txt
	@echo "Creating the virtual environment $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@echo "Installing torch (the largest package)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	@echo "Installing lq_plugin with all extras and loggers"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[all,loggers]'
	@touch $@

demo: venv
	$(BIN)/lq-train recipe=mnist_cnn

lint: venv
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

test: lint
	OMP_NUM_THREADS=1 $(PYTEST) -n 2 --dist loadscope --no-loadscope-reorder

# What takes long by its nature; docs/reliability.md holds its results.
test-long: venv
	OMP_NUM_THREADS=1 $(PYTEST) -n 2 -rA $(wildcard tests/long/*.py)

# Third-party packages that train with Lightning, each in an environment of its own; writes docs/compatibility.md.
# They stay in build/foreign (several GB), so that another run starts at once.
test-foreign: venv
	$(BIN)/python tests/foreign/compatibility.py

# The documentation, for a browser; it needs no server and no network. The variable silences an advertisement.
docs: venv
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo build/docs/index.html

# Of the pages in docs/: RUN is the folder of a run, SWEEP one above several; needs Chromium, on PATH or in LQ_CHROMIUM.
screenshots: venv
	$(BIN)/python docs/screenshots.py "$(RUN)" "$(SWEEP)"

clean:
	rm -rf $(VENV) build dist fits outputs multirun *.egg-info .mypy_cache .pytest_cache .ruff_cache
