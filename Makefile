# Two commands do everything on a fresh machine: `make quickstart` and `make test`.
PYTHON  ?= python3
VENV    ?= .venv
WORKERS ?= 2
BIN     := $(VENV)/bin
READY   := $(VENV)/.ready

.PHONY: quickstart test check reproduce bench bench-methods bench-fit bench-live clean

quickstart: $(READY)  ## environment + merge the small model family and let the result answer a prompt
	$(BIN)/amatax merge quickstart out/quickstart
	$(BIN)/amatax verify out/quickstart --load --prompt "What is 12 + 35?"

# a file is one worker's, so that what its tests share is made once
test: $(READY)  ## environment + all tests (no network, no GPU), in WORKERS processes
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

check: $(READY)  ## formatting, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# an interrupted run continues
reproduce: $(READY)  ## the paper's claims on the small family: docs/results.md (an hour on two cores)
	$(BIN)/python -m benchmarks.reproduce --jobs $(WORKERS)

bench: $(READY)  ## side by side with the peer and with this machine's floor
	$(BIN)/python -m benchmarks.run

bench-methods: $(READY)  ## every method beside mergekit's of its name (a quarter of an hour, after `make bench`)
	$(BIN)/python -m benchmarks.methods

bench-fit: $(READY)  ## the fit: its cost, the whole grid, the paper's claim (an hour)
	$(BIN)/python -m benchmarks.fit_cost
	$(BIN)/python -m benchmarks.brute_force
	$(BIN)/python -m benchmarks.claim

bench-live: $(READY)  ## from merge to merge in memory, beside a memcpy; a front in memory, beside mergekit's files
	$(BIN)/python -m benchmarks.live
	$(BIN)/python -m benchmarks.front

# torch is pinned: a looser requirement pulls gigabytes of CUDA packages where a CPU build would do
$(READY): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $(READY)

clean:
	rm -rf $(VENV) out .bench
