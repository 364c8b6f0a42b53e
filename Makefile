PYTHON ?= python3
BIN := .venv/bin

.PHONY: install demo test check bench docs

install: .venv/dev

# Each question is answered by a different file. Three questions and their answers are in different
# languages.
demo: .venv/demo
	$(BIN)/polyvec search docs/ "how do I teach the model a task of my own?" --top 1
	$(BIN)/polyvec search docs/ "how do I deploy the server to Kubernetes?" --top 1
	$(BIN)/polyvec search examples/notes/ "how do I stop a nosebleed?" --top 1
	$(BIN)/polyvec search examples/notes/ "repair a flat bicycle tyre" --top 1
	$(BIN)/polyvec search examples/notes/ "¿qué no debe comer un gato?" --top 1
	$(BIN)/polyvec search examples/notes/ "bathing etiquette in Japan" --top 1
	$(BIN)/polyvec search examples/notes/ "where do I put the key when I leave?" --top 1

test: .venv/dev
	$(BIN)/python -m pytest -n 2

check: .venv/dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright

bench: .venv/dev
	$(BIN)/python -m benchmarks

docs: .venv/dev
	$(BIN)/python -m polyvec.cli.reference > docs/cli.md
	$(BIN)/polyvec eval report

# Both sets of packages share one environment. The set for development includes the set for the demo.
.venv/demo: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet '.[search]'
	touch $@

.venv/dev: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@ .venv/demo
