# Everything from a fresh machine with Python 3.11+ and make: `make train` is enough.
PYTHON ?= python3
PY = .venv/bin/python
INSTALL = $(PY) -m pip install --quiet --disable-pip-version-check -r

.PHONY: setup train inference ablation test test-all test-long newest test-newest parity bench firmware \
  drill fuzz readme clean

setup: .venv/installed
.venv/installed: requirements.txt
	$(PYTHON) -m venv .venv
	$(INSTALL) requirements.txt
	@touch $@

.venv/installed-%: requirements-%.txt .venv/installed
	$(INSTALL) $<
	@touch $@
.venv/installed-bench: requirements-dev.txt

# The newest of everything, each time, in a place of its own: what is pinned here, without its pins.
newest: requirements.txt requirements-dev.txt
	$(PYTHON) -m venv .venv-newest
	sed -n 's/==[^ ]*//p' $^ > .venv-newest/requirements.txt
	$(subst .venv,.venv-newest,$(INSTALL)) .venv-newest/requirements.txt --upgrade

train: .venv/installed
	$(PY) -B main_train.py $(ARGS)

inference: .venv/installed
	$(PY) -B main_inference.py $(ARGS)

ablation: .venv/installed
	$(PY) -B main_train.py --LR_ABLATION_MODE=True $(ARGS)
	$(PY) -B ablation.py quant $(ARGS)

test: .venv/installed-dev
	$(PY) -B -m pytest -p no:cacheprovider $(ARGS)

test-all: .venv/installed-dev
	$(PY) -B -m pytest -p no:cacheprovider -m "not long" $(ARGS)

test-long: .venv/installed-dev
	$(PY) -B -m pytest -p no:cacheprovider -m long $(ARGS)

test-newest: newest
	.venv-newest/bin/python -B -m pytest -p no:cacheprovider -m "not long" $(ARGS)

parity: .venv/installed-dev
	$(PY) -B -m pytest -p no:cacheprovider -m "" tests/test_parity.py $(ARGS)

bench: .venv/installed-bench
	$(PY) -B -m benchmarks.training $(ARGS)
	$(PY) -B -m benchmarks.inference $(ARGS)

CHIPS = cortex-m0 cortex-m3 rv32ec atmega328p
firmware: .venv/installed
	$(PY) -B main_export.py firmware $(CHIPS) $(or $(ARGS),--WEIGHTS=weights/recipes/6kB.nqat)
	@for chip in $(CHIPS); do $(MAKE) --no-print-directory -C deploy/out/firmware/$$chip || exit 1; done

drill: .venv/installed-dev
	$(PY) -B -m pytest -p no:cacheprovider -m long -rP --faults=100 --runs=200 tests/test_drill.py $(ARGS)

fuzz: .venv/installed-dev
	$(PY) -B -m pytest -p no:cacheprovider -m "" -rP --inputs=100000 tests/test_fuzz.py -k changed_files $(ARGS)

readme: .venv/installed
	$(PY) -B ablation.py plots
	$(PY) -B ablation.py tables

clean:
	rm -rf .venv .venv-newest .cache deploy/out .pytest_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +
