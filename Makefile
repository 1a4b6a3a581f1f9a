# Every target sets itself up in .venv; Python 3.11 to 3.13 and make are all that has to be there.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: bench test perf lint figures clean
bench: $(READY)
	@$(BIN)/bench run digits $(ARGS)

test: $(READY)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal $(ARGS)

perf: $(READY)
	@$(BIN)/python tests/performance/run_all.py $(ARGS)

lint: $(READY)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

figures: $(READY)
	@$(BIN)/bench figures $(ARGS)

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

# The first line says it in words where the interpreter is too old; the rest is plain pip.
$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info[:2] <= (3, 13) else "Python 3.11 to 3.13 is needed, this is " + sys.version.split()[0] + "; name another with: make PYTHON=python3.12 …")'
	@echo "setting up $(VENV): some GB are downloaded once, mostly PyTorch"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@
