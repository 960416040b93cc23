# On a bare machine with Python and pip: `make demo` shows the main job, `make test` passes the tests.
PYTHON ?= python3
VENV := .venv
export NO_MKDOCS_2_WARNING := 1

.PHONY: demo test lint docs clean

$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install -q -c constraints.txt -e ".[demo,dev,docs,onnx]"
	touch $@

demo: $(VENV)/ready
	$(VENV)/bin/niwaki demo --overwrite

test: $(VENV)/ready
	$(VENV)/bin/python -m pytest -n logical --maxprocesses 8

lint: $(VENV)/ready
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright
	$(VENV)/bin/mkdocs build --quiet

docs: $(VENV)/ready
	$(VENV)/bin/mkdocs build

clean:
	rm -rf $(VENV) site
