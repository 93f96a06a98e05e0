# make test, make demo: from a fresh clone to all tests, or to the main demonstration. Needs Python >= 3.10, gcc and make.
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -q --disable-pip-version-check
# `make wheel LRPKERNELS_CUDA=1` builds the CUDA kernels in, and so does `make build LRPKERNELS_CUDA=1`, even beside this CPU torch.
export LRPKERNELS_CUDA ?= 0
SOURCES := $(shell find csrc -type f) setup.py lrpkernels/_build_config.py
CPP_FILES := $(shell find csrc tests -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')

.PHONY: docs help build demo test test-slow lint format kernels kernel-times linked peers random-networks ratios instructions wheel sdist newcomer clean

help:
	@echo "make docs     the documentation as a site: build/site/index.html"
	@echo "make build    environment in $(VENV) and the package in it, editable; tests, linters and peers come with the targets that need them"
	@echo "make demo     standard network and ISNets on biased MNIST, with a report"
	@echo "make test     all tests; COVERAGE=1 counts lines and branches"
	@echo "make test-slow the tests left out there: whole networks and the full product of cases on the CUDA sources, every mutant"
	@echo "make lint     ruff, mypy, clang-format"
	@echo "make format   what make lint can mend"
	@echo "make peers    zennit, captum, Quantus, lxt and autoLRP, which tests and benchmarks compare with, without their dependencies"
	@echo "make kernel-times  every op beside eager PyTorch on shapes of real layers, pytest-benchmark"
	@echo "make random-networks  2000 random networks against their reference"
	@echo "make ratios   cost of an ISNet step and of heatmaps beside the accepted figures"
	@echo "make instructions  the same counted in instructions by valgrind, which are the same from run to run; told and left out without it"
	@echo "make wheel    source distribution and the wheel built from it, in dist/; LRPKERNELS_CUDA=1 with the CUDA kernels"
	@echo "make sdist    source distribution alone"
	@echo "make newcomer a new environment from the wheel, and every step of a newcomer in it; TORCH=torch==2.14.1 beside another torch"
	@echo "make kernels  every CUDA kernel through nvcc for every architecture; no spills, no warnings"

$(BIN)/.environment: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) "$(TORCH)" numpy "setuptools>=77" wheel ninja pybind11
	touch $@

$(BIN)/.built: $(BIN)/.environment $(SOURCES)
	$(PIP) --no-build-isolation -e ".[isnet]"
	$(BIN)/python -m lrpkernels
	touch $@

# The peers that tests and benchmarks compare with; without their dependencies, since zennit's torchvision does not import beside torch
# 2.13, and lxt's (transformers below 5, bitsandbytes, open_clip) are not needed for the part of it that convolutions use. The last two
# are what Quantus imports.
PEERS := zennit==0.5.1 captum==0.9.0 lxt==2.1 autolrp==0.2.0 quantus==0.6.0 opencv-python-headless cachetools

# Extras of the package that is installed, which is not built again for them.
$(BIN)/.test: $(BIN)/.environment | $(BIN)/.built
	$(PIP) "lrpkernels[test]"
	$(PIP) --no-deps $(PEERS)
	touch $@

$(BIN)/.lint: $(BIN)/.environment | $(BIN)/.built
	$(PIP) "lrpkernels[lint]"
	touch $@

build: $(BIN)/.built

# For an environment of your own, beside `pip install --no-build-isolation ".[bench]"`.
peers: $(BIN)/.environment
	$(PIP) --no-deps $(PEERS)

demo: build
	$(BIN)/python -m isnet demo

# COVERAGE=1 prints how many lines and branches of the packages the tests reach.
test: build $(BIN)/.test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 $(if $(COVERAGE),--cov --cov-report=)

test-slow: build $(BIN)/.test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 -m slow

docs: build
	$(PIP) "lrpkernels[docs]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

lint: build $(BIN)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CPP_FILES)

format: build $(BIN)/.lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP_FILES)

# REQUIRE_NVCC=1 makes a missing nvcc an error.
kernels: build
	$(BIN)/python tests/compile_kernels.py $(if $(REQUIRE_NVCC),--require-nvcc)

# The CUDA kernels linked into the extension beside this CPU torch, for one architecture, and imported from there.
linked: build
	LRPKERNELS_CUDA=1 TORCH_CUDA_ARCH_LIST=9.0 $(BIN)/python setup.py -q build --build-base build/linked
	cd build/linked/lib* && ../../../$(BIN)/python -c "import lrpkernels; from lrpkernels._extension import has_cuda_kernels as k; assert k(); print(lrpkernels.show_config())"

# A few alternating steps beside the accepted ratios: a report, since speed is never asserted here.
ratios: build
	$(BIN)/python -m benchmarks.step --repeats 7 --json build/step.json
	$(BIN)/python -m benchmarks.heatmap --networks resnet18 --composites epsilon EpsilonPlus --static --repeats 7 --json build/heatmap.json
	$(BIN)/python -m benchmarks.compare build/step.json build/heatmap.json

# A drift of one percent shows here, on a machine busy with other work, too. Without valgrind one line says so.
instructions: build
	$(BIN)/python -m benchmarks.instructions --json build/instructions.json
	$(BIN)/python -m benchmarks.compare build/instructions.json

# Nightly; `make test` runs 100 of them. Prints the smallest network of every failure.
random-networks: build $(BIN)/.test
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.random_networks --count 2000

# Speed is reported, never asserted; a wrong result is.
kernel-times: build $(BIN)/.test
	$(BIN)/python -m pytest -q -p no:xdist benchmarks/bench_kernels.py --benchmark-timer=time.process_time --benchmark-json=build/kernels.json

$(BIN)/.package: $(BIN)/.environment | $(BIN)/.built
	$(PIP) "lrpkernels[package]"
	touch $@

sdist: build $(BIN)/.package
	$(BIN)/python -m build --no-isolation --sdist --outdir dist .

# auditwheel names the wheel after the oldest glibc that it runs on; torch's and CUDA's libraries come with the torch beside it.
wheel: sdist
	rm -rf build/wheel
	$(BIN)/python -m pip wheel -q --no-build-isolation --no-deps -w build/wheel "$$(ls -t dist/*.tar.gz | head -1)"
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/auditwheel repair -w dist $(foreach library,libtorch* libc10* libcudart*,--exclude '$(library)') build/wheel/*.whl

# A new environment from nothing but the wheel; prints the time of each step.
newcomer: wheel
	tests/newcomer.sh "$$(ls -t dist/*.whl | head -1)" "$(TORCH)"

clean:
	rm -rf build dist *.egg-info $(BIN)/.built lrpkernels/_C.*.so
