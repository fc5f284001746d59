# Two commands for a bare machine with Python: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
ZOO ?= .venv-zoo
JOBS ?= 2
# what installs: pip, or, with UV=uv, uv, which is faster and needs indexes of its own where pip has some
UV ?=
install = $(if $(UV),$(UV) pip install --python $(1)/bin/python,$(1)/bin/python -m pip install) --quiet

.PHONY: help demo test test-zoo lint tables benchmark benchmark-allocator benchmark-building benchmark-intervals benchmark-memory benchmark-solvers clean
help:
	@echo "make demo       set up, compare a network with and without feedback on real digits, leave report.html"
	@echo "make test       set up, run all tests (TORCHCBL_DATA=DIR adds those on real CIFAR-10)"
	@echo "make test-zoo   the networks of timm and torchvision, in an environment of their own (several GB)"
	@echo "make lint       formatting, lint and types"
	@echo "make tables     write the tables of README and docs anew from results/"
	@echo "make benchmark  the loop's overhead against the same computation written by hand"
	@echo "make benchmark-building   what building a loop takes, in forward passes of the backbone"
	@echo "make benchmark-memory, make benchmark-solvers   peak memory by gradient rule; solvers against torchdeq"
	@echo "make benchmark-intervals   how often the intervals of reports hold the truth, in simulated studies"
	@echo "make clean      remove both environments and the demo's results; other studies in runs stay"
	@echo "make benchmark-allocator   what it is worth that training processes keep freed memory, and do not fill new tensors"

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.lab: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(call install,$(VENV)) --constraint constraints.txt --editable '.[lab]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(call install,$(VENV)) --constraint constraints.txt --editable '.[dev]'
	@touch $@ $(VENV)/.lab

demo: $(VENV)/.lab
	$(BIN)/torchcbl compare demo --jobs $(JOBS) --out runs/demo
	@cp runs/demo/report.html report.html
	@echo "The report is report.html: open it in any browser."

# a file in one process, since its tests share what is costly to make; in the order that they stand in
test: $(VENV)/.dev
	$(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder --quiet

$(ZOO)/.ready: pyproject.toml constraints-zoo.txt
	$(PYTHON) -m venv $(ZOO)
	$(call install,$(ZOO)) --constraint constraints-zoo.txt --editable '.[zoo]'
	@touch $@

test-zoo: $(ZOO)/.ready
	$(ZOO)/bin/python -m pytest tests/zoo --numprocesses $(JOBS) --dist loadgroup --quiet

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

tables: $(VENV)/.lab
	$(BIN)/python docs/tables.py
	$(BIN)/python docs/adapter_costs.py
	$(BIN)/python docs/benchmark_tables.py
	$(BIN)/python docs/model_table.py render

benchmark: $(VENV)/.dev
	$(BIN)/python benchmarks/overhead.py

benchmark-allocator benchmark-building benchmark-intervals benchmark-memory benchmark-solvers: benchmark-%: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/$*.py --json results/benchmarks/$*.json

clean:
	rm -rf $(VENV) $(ZOO) runs/demo report.html
