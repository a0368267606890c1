# Everything runs in .venv, made on first use from the package registries only.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Pinned so that figures can be compared; the package itself supports torch >= 2.4 (make TORCH=torch==2.4.1 ...).
TORCH ?= torch==2.13.0

.PHONY: demo test check bench bench-robot gpu-check quality trust docs pictures dist oldest clean

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

demo: $(VENV)/installed
	$(BIN)/python examples/demo.py

check: $(VENV)/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

test: check
	$(BIN)/python -m pytest

bench: $(VENV)/installed
	$(BIN)/python tests/benchmarks/run.py
	$(BIN)/python tests/benchmarks/rounds.py
	$(BIN)/python tests/benchmarks/adapter.py
	$(BIN)/python tests/benchmarks/paradigms.py
	$(BIN)/python tests/benchmarks/methods.py
	$(BIN)/python tests/benchmarks/policy.py
	$(BIN)/python tests/benchmarks/samplers.py
	$(BIN)/python tests/benchmarks/auto_window.py
	$(BIN)/python tests/benchmarks/devices.py
	$(BIN)/python tests/benchmarks/calibration.py
	$(BIN)/python tests/benchmarks/false_convergence.py
	$(BIN)/python tests/benchmarks/odes.py
	$(BIN)/python tests/benchmarks/batches.py --quick
	$(BIN)/python tests/benchmarks/stiff_chains.py
	$(BIN)/python tests/benchmarks/brownian.py
	$(BIN)/python tests/benchmarks/sdes.py
	$(BIN)/python tests/benchmarks/serving.py

# three tasks, three samplers, fifty episodes each, in the simulator: five to ten minutes
bench-robot: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --editable ".[robot]"
	$(BIN)/python -W ignore tests/benchmarks/robot.py

# answers, launches, waits and times on a CUDA GPU beside what docs/devices.md says: under four minutes; skipped without.
# TORCH has to name a build of torch with CUDA.
gpu-check: $(VENV)/installed
	$(BIN)/python -W ignore tests/benchmarks/gpu_check.py

# a third of an hour on one core
quality: $(VENV)/installed
	$(BIN)/python tests/benchmarks/quality.py

# two hours on one core: every ODE problem, tolerance and iteration, alone and in batches, right to 100 tolerances or
# refused
trust: $(VENV)/installed
	$(BIN)/python tests/benchmarks/trust.py
	$(BIN)/python tests/benchmarks/trust.py --batches

# the site, in docs/_build/html; half a minute, and no network once the `docs` extra is installed
docs: $(VENV)/installed-docs
	$(BIN)/python -m sphinx -q --keep-going -W -d docs/_build/doctrees docs docs/_build/html

$(VENV)/installed-docs: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --editable ".[docs]"
	touch $@

# the pictures of the demo
pictures: $(VENV)/installed
	$(BIN)/python examples/demo.py --out docs/images

# wheel and sdist in dist/, and the wheel tried in an environment of its own with nothing but what it declares
dist: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --editable ".[release]"
	$(BIN)/python -m build --outdir dist
	$(PYTHON) -m venv --clear $(VENV)/tried
	$(VENV)/tried/bin/python -m pip install --quiet "$(TORCH)" dist/picardsolve-*.whl
	cd dist && ../$(VENV)/tried/bin/python ../tests/smoke.py

# the oldest torch and diffusers that are supported, on the core, the shims and the digits; needs Python 3.10 to 3.12
oldest:
	$(PYTHON) -m venv --clear $(VENV)/oldest
	$(VENV)/oldest/bin/python -m pip install --quiet torch==2.4.1 "numpy<2" diffusers==0.30.3 "transformers<4.46" \
		"huggingface-hub<0.26" safetensors torchsde torchdiffeq matplotlib hypothesis pytest pytest-timeout pytest-xdist
	$(VENV)/oldest/bin/python -m pip install --quiet --no-deps --editable .
	$(VENV)/oldest/bin/python tests/smoke.py
	$(VENV)/oldest/bin/python -m pytest -W default tests/test_parallel_equals_sequential.py tests/test_odeint.py \
		tests/test_sdeint.py tests/test_solution.py tests/test_readme.py

clean:
	rm -rf $(VENV) demo-output docs/_build dist
