# One-word commands for developers: each runs a script, as CI and the README do. `make` alone says what there is.
# VENV=DIR takes an environment that is there already; otherwise it is .venv, which `make setup` makes.
.PHONY: help setup test-fast test lint fix build docs quickstart mutate ptx
bin = $(or $(VENV),.venv)/bin

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 12

setup:  ## .venv with everything that the tests need; at no cost when it is there
	scripts/setup.sh $(or $(VENV),.venv) cpu,rtx,openvino,embed,ray,triton,dev

test-fast:  ## the tests without native builds, engines and real models
	scripts/test_fast.sh $(ARGS)

test:  ## lint and all tests, as CI runs them; ARGS="tests/docs -k cli" goes to pytest
	bash scripts/test.sh $(ARGS)

lint:  ## ruff, clang-format, mypy, lint-imports, generated files
	scripts/lint.sh

fix:  ## mends what ruff and clang-format can mend, and writes generated files again
	scripts/lint.sh --fix

build:  ## compiles the native libraries; ARGS="onnxruntime tensorrt" both where no GPU is
	$(bin)/mra-export build $(ARGS)

docs:  ## writes the generated files: kernels/op_spec.h, plugins/serving/engine_manifest.h, docs/cli.md
	for generator in scripts/generate_*.py; do $(bin)/python $$generator || exit 1; done

mutate:  ## changes the code and counts what the fast tests see; ARGS="outputs --sample 20"; pip install '.[mutation]' first
	$(bin)/python scripts/mutate.py $(ARGS)

ptx:  ## the tests of the CUDA kernels on what nvcc compiles, for each architecture and order of threads; ARGS="-k golden"
	bash scripts/test_ptx.sh $(ARGS)

quickstart:  ## converts, exports, checks and searches with all-MiniLM-L6-v2
	bash scripts/quickstart.sh
