# Everything that can be done here. Needs python3 with pip, and nothing else.
PYTHON3 ?= python3
VENV ?= .venv
VENV_ONEDL ?= .venv-onedl
PYTHON = $(VENV)/bin/python
export PIP_DISABLE_PIP_VERSION_CHECK = 1

# Two processes of one thread each are faster than one of two; a file's tests share its fixtures.
# A process that dies ends the run: pytest-xdist may wait for the one in its place without end.
PYTEST = OMP_NUM_THREADS=1 $(PYTHON) -m pytest -n 2 --dist loadfile --max-worker-restart 0

.PHONY: help setup demo test test-fast lint docs setup-onedl test-onedl

help:
	@echo 'make setup       install into $(VENV): once, and when the requirements change'
	@echo 'make demo        train a small detector with and without groups on generated images'
	@echo 'make test        run every test'
	@echo 'make test-fast   run the tests that take less than 0.3 seconds each, while you write'
	@echo 'make lint        check the style of the code'
	@echo 'make docs        build the site, docs/_build/html; a link that leads nowhere fails'
	@echo 'make test-onedl  run every test with the onedl forks of mmengine, mmcv and mmdet'

setup: $(VENV)/installed
setup-onedl: $(VENV_ONEDL)/installed

demo: setup
	$(PYTHON) tools/demo.py --baseline configs/demo/cond_detr_demo.py

test: setup
	$(PYTEST)

test-fast: setup
	$(PYTEST) -m 'not slow and not long'

lint: setup
	$(PYTHON) -m ruff check .

docs: $(VENV)/docs-installed
	$(PYTHON) -m sphinx -b html -W -n --keep-going -q -E docs docs/_build/html

test-onedl: PYTHON = $(VENV_ONEDL)/bin/python
test-onedl: setup-onedl
	$(PYTEST)

$(VENV)/installed: requirements.txt setup.cfg
	$(call install,$(VENV),$<)

$(VENV_ONEDL)/installed: requirements-onedl.txt setup.cfg
	$(call install,$(VENV_ONEDL),$<)

$(VENV)/docs-installed: requirements-docs.txt $(VENV)/installed
	$(PYTHON) -m pip install -q -r $<
	@touch $@

# $(1): environment, $(2): requirements.
# - Debian's python3 has no ensurepip; its pip can still fill an environment that has none.
# - Both OpenCV packages write to cv2/, and the one that needs no libGL has to come last.
define install
	@echo '[1/3] Making the environment $(1)'
	@$(PYTHON3) -m venv $(1) >/dev/null 2>&1 || { $(PYTHON3) -m venv --without-pip $(1) && \
		$(PYTHON3) -m pip --python $(1)/bin/python install -q pip; }
	@echo '[2/3] Installing $(2); torch is by far the largest download'
	@$(1)/bin/python -m pip install -r $(2)
	@$(1)/bin/python -m pip install -q --no-deps --force-reinstall \
		$$(grep '^opencv-python-headless' $(2))
	@echo '[3/3] Installing groupdetr_mmdet from this folder'
	@PYTHONWARNINGS=ignore $(1)/bin/python -m pip install -q --no-deps --no-build-isolation -e .
	@touch $@
endef
