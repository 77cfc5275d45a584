# Everything from a fresh machine with Python 3.11+ and make: `make train` is enough.
PYTHON ?= python3
PY = .venv/bin/python

.PHONY: setup train inference ablation test bench clean
.DELETE_ON_ERROR:

setup: .venv/installed
.venv/installed: requirements.txt
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

.venv/installed-dev: requirements-dev.txt .venv/installed
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

train: .venv/installed
	$(PY) -B main_train.py $(ARGS)

inference: .venv/installed
	$(PY) -B main_inference.py $(ARGS)

ablation: .venv/installed
	$(PY) -B main_train.py --LR_ABLATION_MODE=True $(ARGS)
	$(PY) -B ablation.py quant $(ARGS)

test: .venv/installed-dev
	$(PY) -B -m pytest -p no:cacheprovider $(ARGS)

bench: .venv/installed
	$(PY) -B -m benchmarks.training $(ARGS)

clean:
	rm -rf .venv .cache deploy/out .pytest_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +
