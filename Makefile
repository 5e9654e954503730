# Everything from a fresh clone: `make demo` and `make test` create .venv and install what they need.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: install browser demo lint test test-slow test-airflow fuzz clean

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

# What the tests of the report's page look at it with; without it they are skipped with a reason.
browser: $(VENV)/.browser

$(VENV)/.browser: | install
	command -v chromium chromium-browser google-chrome || \
	  { apt-get -o Acquire::Retries=3 update -qq && apt-get -o Acquire::Retries=3 install -qq -y --no-install-recommends chromium; } || \
	  echo "no Chromium: the tests of the report's page are skipped"
	npm install --silent --no-audit --no-fund --prefix $(VENV)/browser axe-core@4.14.1 || \
	  echo "no axe-core: the test of the page's accessibility is skipped"
	touch $@

# A demo goes on with a folder of its own version only, and the last one here may be of another.
demo: install
	if [ -e demo-output/demo.json ]; then rm -rf demo-output; fi
	$(BIN)/capfilt demo demo-output

lint: install
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/pre-commit run --all-files

# More files at a time than cores: the tests that take long wait for other processes. In the order of
# the tree: by numbers of tests, which is xdist's, the long ones would come last, alone.
test: install browser lint
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

test-slow: install
	$(BIN)/python -m pytest -m slow

# The jobs' DAGs in a real Airflow, whose requirements are not ours: in an environment of its own.
test-airflow: $(VENV)/airflow/.installed
	AIRFLOW_HOME=$(CURDIR)/$(VENV)/airflow/home AIRFLOW__CORE__LOAD_EXAMPLES=False \
	  $(VENV)/airflow/bin/python -m pytest -q -c /dev/null --rootdir . --noconftest \
	  -p no:cacheprovider tests/jobs/test_airflow.py

$(VENV)/airflow/.installed:
	$(PYTHON) -m venv $(VENV)/airflow
	$(VENV)/airflow/bin/python -m pip install --quiet 'apache-airflow==3.3.2' 'pytest>=8'
	touch $@

# Ten minutes of both readers; what it finds is left in tests/fuzz/found.
fuzz: install
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[fuzz]'
	$(BIN)/python -m tests.fuzz.guided tar 300
	$(BIN)/python -m tests.fuzz.guided parquet 300

clean:
	rm -rf $(VENV) demo-output .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
