# Each target sets itself up: a virtual environment in .venv with the pins of requirements.txt.
# PYTHON chooses the interpreter (3.11 or later). Pip's own settings apply; on Linux, with
# PIP_EXTRA_INDEX_URL set to PyTorch's CPU index, torch comes without its CUDA packages.
PYTHON ?= python3
BIN := .venv/bin
SETUP := .venv/ready

REMOTE ?= origin

.PHONY: book serve notebooks lab site-archive pdf publish test bench audit screenshot lint clean

book: $(SETUP)  ## the site with its notebooks, in _build/html
	@$(BIN)/python tools/book.py

serve: $(SETUP)  ## the site on loopback, rebuilt on each change
	@$(BIN)/python tools/book.py serve

notebooks: book  ## the same; its notebooks are in notebooks/

lab: notebooks  ## the notebooks in JupyterLab
	$(BIN)/jupyter lab --notebook-dir notebooks

site-archive: $(SETUP)  ## the site as a zip, to read without a server
	@$(BIN)/python tools/book.py archive

pdf: $(SETUP)  ## the book as a PDF (needs Chromium)
	@$(BIN)/python tools/pdf.py

publish: $(SETUP)  ## the notebooks, on the branch `notebooks` of REMOTE (origin)
	@$(BIN)/python tools/publish.py $(REMOTE)

test: book lint  ## everything that must hold before a change is merged
	$(BIN)/python -m pytest tests notebooks

bench: $(SETUP)  ## speed, as ratios measured in one run, on a quiet machine
	@$(BIN)/python tools/bench.py

audit: book  ## the site's weight, speed and accessibility, page by page (needs Chromium)
	@$(BIN)/python tools/audit.py

screenshot: book  ## the picture in README.md, from the built site (needs Chromium)
	$(BIN)/python tools/screenshot.py

lint: $(SETUP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:  ## all that was built; the environment stays
	rm -rf _build notebooks .pytest_cache .ruff_cache

# The stamp is written last: an interrupted installation starts again.
$(SETUP): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed; choose one with PYTHON=...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt -e .
	@touch $@
