# make run     real purchases to tables and a report, on this machine
# make stream  the same purchases as a live stream: Kafka, windows, files; Ctrl-C ends it
# make test    every test this machine can serve
# make kill-matrix  kills a stream on a real Flink 20 times for each sink, and counts the rows
# make bench   the benchmarks, one after the other
# Everything is installed into .venv; nothing else is touched.

NEW_ENOUGH := -c 'import sys; sys.exit(sys.version_info < (3, 11))'
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do $$p $(NEW_ENOUGH) 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin

.PHONY: run stream kill-matrix test lint bench docs clean

run: .venv/ready
	$(BIN)/tiebeam run retail

stream: .venv/ready
	$(BIN)/tiebeam run live

test: .venv/ready lint
	$(BIN)/python -m pytest -n 2 --dist loadfile

kill-matrix: .venv/ready
	cd tests && ../$(BIN)/python -m support.killing

lint: .venv/ready
	$(BIN)/ruff check src tests benchmarks setup.py
	cd src && ../$(BIN)/mypy -p tiebeam

bench: .venv/ready
	$(BIN)/python -m benchmarks

docs: .venv/ready
	$(BIN)/python docs/generate.py

.venv/ready: requirements.txt pyproject.toml
	@test -n "$(PYTHON)" && $(PYTHON) $(NEW_ENOUGH) || \
	  { echo "tiebeam needs Python 3.11 or newer. Try: make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --requirement requirements.txt --editable .
	@touch $@

clean:
	rm -rf .venv work
