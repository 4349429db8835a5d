# make demo    set up everything from nothing, then train the digits and the documents' MLP beside torch.nn, and compare
# make test    set up, then run the tests
# make stand-in   the tests of what needs a GPU, on two that are made of host memory and the emulator
# make lint    ruff, clang-format, mypy
# make try KERNEL=dense    after an edit in csrc/kernels: its tests, then a training on the emulator beside torch.nn
# make cuda-build   the CUDA extension from nothing, beside a CUDA torch in an environment of its own, and its tests
# make install-check   install in the ways and circumstances that are known to go wrong elsewhere, in fresh environments;
#              and add an activation to a copy, as CONTRIBUTING.md says
# make sanitize   the kernel tests under AddressSanitizer and UndefinedBehaviorSanitizer, and under ThreadSanitizer
# make kernel-report   registers, occupancy and instructions of each kernel, by nvcc, into docs/kernels.md
# make mutants    break each kernel line by line, and see whether the tests notice, into docs/emulator.md
# make gpu-check   on a machine with a GPU: build, measure and prove beside its Python and torch, in 5 minutes; RUN=second
#              for the rest, in 5 more
# make format   apply what ruff and clang-format would change;   make clean   remove what the others have made
# make bench   time fits and steps beside torch.nn, torch.compile, JAX, scikit-learn and the documents' code, whichever
#              are installed, in a quarter of an hour; ARGS="fits --workload mlp" for less, ARGS="--json FILE" to keep it
# make notebooks   run the examples' notebooks, and keep their outputs
# make bench-report   write the tables and plots of all results in benchmarks/results

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.PHONY: demo test stand-in try cuda-build install-check sanitize mutants kernel-report gpu-check lint format bench \
  bench-report notebooks clean

demo: $(READY)
	$(BIN)/scratchcuda compare digits mlp --repeats 2

# A process of tests for each core; ARGS=-n0 puts all into one, as a debugger wants it.
WORKERS := -n logical --dist worksteal

test: $(READY)
	$(BIN)/python -m pytest $(WORKERS) $(ARGS)

stand-in: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(WORKERS) -p tests.stand_in.plugin --backend kernels $(ARGS)

# As the kernel asks for, if empty.
WORKLOAD ?=

try: $(READY)
	@$(BIN)/python tools/try_kernel.py '$(KERNEL)' --workload '$(WORKLOAD)' $(ARGS)

CUDA_VENV     ?= .venv-cuda
CUDA_TORCH    ?= torch==2.11.0
# As TORCH_CUDA_ARCH_LIST: ARCHITECTURES="9.0+PTX"; as without that, if empty.
ARCHITECTURES ?=

cuda-build: $(CUDA_VENV)/.ready
	rm -rf build
	FORCE_CUDA=1 TORCH_CUDA_ARCH_LIST='$(ARCHITECTURES)' $(CUDA_VENV)/bin/pip install -v --no-build-isolation --no-deps \
	  --target build/cuda . > $(CUDA_VENV)/build.log 2>&1 || { cat $(CUDA_VENV)/build.log; exit 1; }
	@grep -o 'scratchcuda: building .*' $(CUDA_VENV)/build.log
	PYTHONPATH=build/cuda $(CUDA_VENV)/bin/pytest -q -m '' --backend tensor,kernels tests/builds/test_extension.py \
	  tests/builds/test_nvcc.py tests/test_gpu.py

install-check: $(READY) $(CUDA_VENV)/.ready
	CUDA_VENV=$(CUDA_VENV) $(BIN)/python -m pytest -m slow --backend tensor tests/builds/test_install.py $(ARGS)
	$(BIN)/python -m pytest -m slow --backend emulator tests/test_contributing.py

# A CUDA build of torch and what tests need, without this package.
$(CUDA_VENV)/.ready: constraints.txt
	$(PYTHON) -m venv $(CUDA_VENV)
	sed '/^torch==/d' constraints.txt > $(CUDA_VENV)/constraints.txt
	$(CUDA_VENV)/bin/pip install -q --disable-pip-version-check -c $(CUDA_VENV)/constraints.txt '$(CUDA_TORCH)' \
	  'setuptools>=77,<82' ninja pybind11 nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm pytest hypothesis scikit-learn
	@touch $@

# Watching is slow, so races are looked for in one dtype of 4 bytes and one of 2.
RACES := (float32 and (layouts or shared_out or (rows and (softmax or activations or batch)))) or (float16 and layouts and small) \
  or losses_bits or entropy_bits or (rows and (nesterov or (adam and amsgrad)))

sanitize: $(READY)
	variables=$$($(BIN)/python -W ignore -m scratchcuda._build.emulator address) && env $$variables \
	  $(BIN)/python -m pytest $(WORKERS) -s -q tests/ops -m kernels $(ARGS)
	variables=$$($(BIN)/python -W ignore -m scratchcuda._build.emulator thread) && env $$variables \
	  $(BIN)/python -m pytest $(WORKERS) -s -q tests/ops -m kernels -k "$(RACES)" $(ARGS)

# Reports go to OUT; RUN is first or second, PARTS="build gpu" some parts, ARGS=--dry goes through it without a GPU.
OUT ?= build/gpu-check
RUN ?= first
# What the sanitizers watch on a GPU, where it is in no hurry as here.
WATCHED := $(RACES) or (float32 and (losses or entropy or batch or activation_below) and (rows or of_a_step))

gpu-check:
	$(PYTHON) tools/gpu_check.py $(or $(PARTS),$(RUN)) --out '$(OUT)' --select '$(WATCHED)' $(ARGS)

mutants: $(READY)
	$(BIN)/python tools/mutants.py --write docs/emulator.md

kernel-report: $(READY)
	$(BIN)/python tools/kernel_report.py --write docs/kernels.md

lint: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	git ls-files -z '*.cu' '*.cuh' '*.cpp' '*.h' | xargs -0 -r $(BIN)/clang-format --dry-run --Werror
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	git ls-files -z '*.cu' '*.cuh' '*.cpp' '*.h' | xargs -0 -r $(BIN)/clang-format -i

bench: $(READY)
	$(BIN)/scratchcuda bench $(ARGS)

bench-report: $(READY)
	$(BIN)/python tools/bench_report.py

notebooks: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python tools/notebooks.py

clean:
	rm -rf $(VENV) $(CUDA_VENV) build dist *.egg-info scratchcuda/_C.*

# One editable install of everything, in the versions of constraints.txt; made anew when these files change.
$(READY): pyproject.toml setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed: make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
