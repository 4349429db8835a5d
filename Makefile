# make demo    set up everything from nothing, then train beside torch.nn and compare
# make test    set up, then run the tests
# make lint    ruff, clang-format, mypy
# make bench   time fits against torch.nn, torch.compile, JAX and the documents' code, whichever are installed

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.PHONY: demo test lint format bench clean

demo: $(READY)
	$(BIN)/scratchcuda compare mlp

test: $(READY)
	$(BIN)/python -m pytest $(ARGS)

lint: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	git ls-files -z 'csrc/*.c*' 'csrc/*.h' | xargs -0 -r $(BIN)/clang-format --dry-run --Werror
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	git ls-files -z 'csrc/*.c*' 'csrc/*.h' | xargs -0 -r $(BIN)/clang-format -i

bench: $(READY)
	$(BIN)/python benchmarks/fit.py $(ARGS)

clean:
	rm -rf $(VENV) build dist *.egg-info

# One editable install of everything, in the versions of constraints.txt; made anew when these files change.
$(READY): pyproject.toml setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed: make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
