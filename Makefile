# Everything runs from .venv; nothing else is needed but Python 3.11 or newer, and Chromium for the tests of the page.
PYTHON ?= python3
# Directory of simplified ndjson files that `make bench` measures on.
DATA ?= $(or $(QUICKDRAW_DIR),../shared/data/quickdraw)/simplified
# An interpreter with TensorFlow, for the rows beside Keras (benchmarks/keras_peer.py); they are left out without it.
KERAS_PYTHON ?= $(wildcard .venv-tf/bin/python)
BIN := .venv/bin

.PHONY: setup demo test test-cluster lint bench serve clean

setup: .venv/.done

.venv/.done: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

demo: setup
	$(BIN)/python -m sketchray.demo

# In two processes: the tests that share the Ray cluster, and all others.
test: setup
	$(BIN)/python -m pytest --numprocesses 2 --dist loadgroup --durations 15

# Several hosts on this machine, as root; TESTS="-k shared" chooses some. Debian: iproute2 openssh-server rsync curl
test-cluster: setup
	$(BIN)/python -m pytest tests/cluster $(TESTS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup
	@test -d $(DATA) || { echo "make bench: no directory $(DATA); name one with DATA=DIR" >&2; exit 2; }
	test -f .demo/bench/manifest.json || $(BIN)/python jobs/ingest.py --source $(DATA) --out .demo/bench
	$(BIN)/python benchmarks/train.py --data .demo/bench $(if $(KERAS_PYTHON),--keras-python $(KERAS_PYTHON))

serve: setup
	$(BIN)/serve run serve_config.yaml

clean:
	rm -rf .venv .demo build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .coverage
