# make train   set up, train a detector on the built-in shapes, evaluate it, draw predictions
# make compare set up, compare eight backbones on the built-in shapes (table, JSON, picture)
# make reproduce ARGS='--data data/coco --gpus 8'   set up, reproduce the paper's table on COCO
# make look    set up, train on the built-in shapes unless this is done, write and open the report
# make test    set up, run the fast tests; make test-all runs all of them
# make smoke   set up, run the smoke tests
# make torture set up, run fault-injection tests -> docs/reliability.md
# make docs    set up, build the documentation -> docs/_build/html/index.html
# make env     only set up
# VENV= selects the environment (default .venv). PYTHON= selects the interpreter that creates it.

VENV ?= .venv
PYTHON ?= python3
SHAPES := configs/retinanet_evit_m4_shapes.py
WORK := work_dirs/retinanet_evit_m4_shapes
ENV = py=$$(requirements/env.sh '$(VENV)' '$(PYTHON)') && export PYTHONPATH='$(CURDIR)'
.PHONY: env train compare reproduce look test test-all smoke torture lint lock

env:
	@$(ENV) && echo "ready: $$py"

# ARGS=--resume continues an interrupted training
train:
	@$(ENV) && export EVIT_MM_CONTINUE='make train ARGS=--resume' && \
	"$$py" tools/make_shapes.py data/shapes && \
	"$$py" tools/train.py $(SHAPES) --seed 0 --work-dir $(WORK) $(ARGS) && \
	"$$py" tools/test.py $(SHAPES) "$$(cat $(WORK)/last_checkpoint)" --work-dir $(WORK) \
	    --show-dir $(WORK)/pictures

# Run it again to continue after an interruption. Options: ARGS='--seeds 3 --models evit_m0 spos'
compare:
	@$(ENV) && \
	"$$py" tools/make_shapes.py data/shapes && \
	"$$py" tools/compare.py --data data/shapes --scale 192x192 --out work_dirs/compare_shapes $(ARGS)

# Takes hours on GPUs, see docs/reproduce.md. Run it again to continue after an interruption.
reproduce:
	@$(ENV) && "$$py" tools/reproduce.py $(ARGS)

# --resume continues an interrupted training and does not repeat a finished one
look:
	@$(ENV) && export EVIT_MM_CONTINUE='make look' && \
	"$$py" tools/make_shapes.py data/shapes && \
	"$$py" tools/train.py $(SHAPES) --seed 0 --work-dir $(WORK) --resume && \
	"$$py" tools/report.py $(WORK) -o report $(ARGS)
	@if [ -n "$$DISPLAY$$WAYLAND_DISPLAY" ] && command -v xdg-open >/dev/null; then \
	    xdg-open report/index.html; \
	elif [ "$$(uname)" = Darwin ]; then \
	    open report/index.html; \
	else \
	    echo 'no screen found; open report/index.html in a browser'; \
	fi

# JOBS processes (default 2) share the test files; make test leaves out the tests that are marked slow.
# ARGS=--cov=evit_mm measures the coverage, which takes half as long again
PYTEST = $(ENV) && requirements/browser.sh && \
	OMP_NUM_THREADS=1 "$$py" -m pytest --ignore=tests/smoke -n $(or $(JOBS),2) --dist loadfile --durations=20
test:
	@$(PYTEST) -m 'not slow' $(ARGS)

test-all:
	@$(PYTEST) $(ARGS)

.PHONY: docs
docs:
	@$(ENV) && "$$py" -m sphinx -E -a -W --keep-going -n -q docs docs/_build/html && \
	echo docs/_build/html/index.html

# Takes hours. Run it again to continue after an interruption. ARGS='--kills 10' makes it shorter.
torture:
	@$(ENV) && "$$py" -m tests.torture $(ARGS)

# the main functions in a few minutes, for another Python: make smoke PYTHON=python3.13 VENV=.venv-newest
smoke:
	@$(ENV) && OMP_NUM_THREADS=1 "$$py" -m pytest tests/smoke -n $(or $(JOBS),2) $(ARGS)

# updates the exact versions from the ranges in setup.py; requires uv
lock:
	@head -n 3 requirements/constraints.txt >requirements/constraints.new && \
	uv pip compile -q setup.py --extra all --extra executorch --universal --python-version 3.10 --upgrade \
	    --no-annotate --no-header | grep -vE '^(nvidia|cuda|triton)' >>requirements/constraints.new && \
	mv requirements/constraints.new requirements/constraints.txt

# GPU tests, trainings and benchmarks, eight minutes -> work_dirs/gpu; for a trial: DEVICE=cpu ARGS=--tiny
DEVICE ?= cuda
.PHONY: gpu
gpu:
	@$(ENV) && "$$py" -m tests.gpu --device $(DEVICE) --out work_dirs/gpu $(ARGS)

lint:
	@$(ENV) && \
	"$$py" -m ruff check . && "$$py" -m ruff format --check . && "$$py" -m mypy && \
	"$$(dirname "$$py")/lint-imports" --no-cache
