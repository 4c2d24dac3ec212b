# make demo    install and run the whole path on real data
# make test    install and run the whole suite, but for what takes minutes: make test-long
# make test-processors   unit tests as other processors run them, and on data moved by one unit in the last place
# make check   what a developer runs all day: format, lint, types, import layers, unit tests
# make bench   figures, beside scikit-learn, pyarrow and every peer of the extra bench that installs
PYTHON ?= python3
BIN := .venv/bin

.PHONY: install demo test test-long test-processors check bench clean

install: .venv/installed

# pip reads the pins from the environment too, so that build environments follow them
.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "raydkm needs Python 3.10 or newer; set PYTHON=")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[cpu,dev]'
	@touch $@

# without them the benchmark goes on, and names what is missing
.venv/peers: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]' && touch $@ || true

demo: install
	$(BIN)/raydkm demo

test: install
	$(BIN)/python -m pytest -n 2 tests/unit
	$(BIN)/python -m pytest tests/cluster
	$(BIN)/python -m pytest tests/serve

test-long: install
	$(BIN)/python -m pytest -m long -n 2 tests/unit
	$(BIN)/python -m pytest -m long tests/cluster

test-processors: install
	$(BIN)/python tests/processors.py

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q -n 2 tests/unit

bench: install .venv/peers
	$(BIN)/python benchmarks/step.py
	$(BIN)/python benchmarks/quality.py
	$(BIN)/python benchmarks/ingest.py
	$(BIN)/python benchmarks/tiers.py

clean:
	rm -rf .venv demo build *.egg-info
