# make demo    install, train a small OCRNet on the built-in scenes, evaluate it, draw predictions
# make test    install and run the test suite
# make lint    formatting and static checks
# make ext     rebuild the kernels in place after a change in csrc/
# make gpu     build for this machine's GPU with the torch of PYTHON, test and measure there;
#              a part of it, or for so long alone: STEPS="tests attention ops --minutes 9"
#
# Set PYTHON to choose the interpreter (3.10 or newer), TORCH to choose the torch that is installed
# (`make demo TORCH="torch==2.15.0"`), VENV to install into another virtual environment.

PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV ?= .venv
BIN := $(abspath $(VENV))/bin
DEMO := runs/demo
# pip builds with this ninja too; another version would build everything again
export PATH := $(BIN):$(PATH)

.DELETE_ON_ERROR:
.PHONY: demo test lint format ext gpu clean

$(VENV)/torch.installed:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "error: $(PYTHON) is older than Python 3.10; set PYTHON=/path/to/python3.x"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$(TORCH)" ninja "setuptools>=77"
	@touch $@

# The kernels are built in place, incrementally; a failed build stops here with the compiler's words.
$(VENV)/openseg.installed: $(VENV)/torch.installed pyproject.toml setup.py
	OPENSEG_REQUIRE_EXT=1 $(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[plot]"
	@touch $@

$(VENV)/tools.installed: $(VENV)/openseg.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[test,dev]"
	@touch $@

ext: $(VENV)/openseg.installed
	OPENSEG_REQUIRE_EXT=1 $(BIN)/python setup.py --quiet build_ext --inplace

demo: ext
	$(BIN)/python -m openseg.train --cfg scenes/demo run.folder=$(DEMO) run.overwrite=true
	$(BIN)/python -m openseg.evaluate --checkpoint $(DEMO)/checkpoints/best.pt --output $(DEMO)/evaluation
	$(BIN)/python -m openseg.export_scenes --output $(DEMO)/scenes --count 8
	$(BIN)/python -m openseg.predict --checkpoint $(DEMO)/checkpoints/best.pt --output $(DEMO)/predictions --overwrite $(DEMO)/scenes/images/val
	@echo
	@echo "Curves:       $(DEMO)/curves.png"
	@echo "Evaluation:   $(DEMO)/evaluation/"
	@echo "Predictions:  $(DEMO)/predictions/"

test: ext $(VENV)/tools.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 tests

# Nothing is installed: a machine with a GPU has its own torch, and perhaps no way out.
gpu:
	arch=$$($(PYTHON) -c 'import torch; print("%d.%d" % torch.cuda.get_device_capability())') && \
	OPENSEG_CUDA=1 OPENSEG_REQUIRE_EXT=1 TORCH_CUDA_ARCH_LIST=$$arch \
	  $(PYTHON) setup.py --quiet build_ext --inplace
	PYTHONPATH=$(CURDIR) $(PYTHON) benchmarks/run_gpu.py $(STEPS)

lint: $(VENV)/tools.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	git ls-files '*.cpp' '*.h' '*.cu' '*.cuh' | xargs -r $(BIN)/clang-format --dry-run --Werror
	$(BIN)/mypy

format: $(VENV)/tools.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	git ls-files '*.cpp' '*.h' '*.cu' '*.cuh' | xargs -r $(BIN)/clang-format -i

clean:
	rm -rf build openseg/_C.abi3.so openseg/_build_info.json
