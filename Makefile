# Two commands do the whole job on a fresh machine: `make demo`, `make test`.
VENV ?= .venv
FROZEN_VENV ?= .venv-frozen
PYTHON ?= python3
BIN := $(abspath $(VENV))/bin
export PATH := $(BIN):$(PATH)
# Threads that wait do not take the core from those that work.
export OMP_WAIT_POLICY := PASSIVE

.PHONY: demo test test-frozen test-docs test-faults test-peers gpu benchmark \
	docs lint clean

# An environment with the maintained stack; made again when needs change.
$(VENV)/installed: setup.py pyproject.toml $(wildcard requirements/*.txt)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable \
		'.[onedl,cpu,distill,data,demo,analysis,export,docs,test]'
	touch $@

# Of BACKBONE=vmamba and so on.
BACKBONE ?= vcmamba
CLASSIFIER := $(wildcard configs/*/$(BACKBONE)_demo_digits.py)
SEGMENTER := $(wildcard configs/*/$(BACKBONE)_demo_fpn_digits.py)
BACKBONES := $(sort $(patsubst %_demo_digits.py,%,$(notdir \
	$(wildcard configs/*/*_demo_digits.py))))
WORK := work_dirs/demo$(patsubst %,_%,$(filter-out vcmamba,$(BACKBONE)))
ifneq ($(filter demo,$(or $(MAKECMDGOALS),demo)),)
ifneq ($(words $(SEGMENTER)),1)
$(error unknown BACKBONE=$(BACKBONE): choose one of $(BACKBONES))
endif
endif

demo: $(VENV)/installed
	rm -rf $(WORK)
	python -m vcmamba_mm.demo data --root data/demo
	python tools/train.py $(CLASSIFIER)
	python tools/test.py $(CLASSIFIER) $(WORK)/classifier/epoch_5.pth \
		--out $(WORK)/classifier/predictions.pkl
	python tools/train.py $(SEGMENTER)
	python tools/test.py $(SEGMENTER) $(WORK)/segmenter/iter_300.pth \
		--out $(WORK)/segmenter/predictions
	python -m vcmamba_mm.demo report --work-dir $(WORK)
	@echo 'Open $(WORK)/report.html'

test: $(VENV)/installed
	OMP_NUM_THREADS=1 python -m pytest -n 2 --dist loadfile

# Times on every device found, one CPU thread: benchmarks/results. With
# PICTURES=(tar or folder with train/<class>/<picture>), the input pipeline.
benchmark: $(VENV)/installed
	python benchmarks/scan.py
	python benchmarks/model.py
	python benchmarks/published.py
	python benchmarks/export.py
	$(if $(PICTURES),python benchmarks/input_pipeline.py $(PICTURES))

# OpenMMLab's own packages, PyTorch 2.4, NumPy 1 and OpenCV 4, where the above
# has OpenCV 5. mmsegmentation is imported with a stand-in for the operators.
FROZEN := $(abspath $(FROZEN_VENV))/bin/python

$(FROZEN_VENV)/installed: setup.py pyproject.toml $(wildcard requirements/*)
	@$(PYTHON) -c 'import sys; exit(sys.version_info >= (3, 13))' || { \
		echo "OpenMMLab's own packages need Python 3.10 to 3.12: name one," \
		"PYTHON=python3.11"; exit 2; }
	$(PYTHON) -m venv $(FROZEN_VENV)
	$(FROZEN) -m pip install --quiet --upgrade pip
	$(FROZEN) -m pip install --quiet --editable \
		'.[openmmlab-lite,distill,data,analysis,test]'
	cp requirements/mmcv_ext.py "$$($(FROZEN) -c \
		'import mmcv; print(mmcv.__path__[0])')/_ext.py"
	touch $@

# What depends on the stack: at most 15 minutes with the installation.
test-frozen: $(FROZEN_VENV)/installed
	PATH=$(dir $(FROZEN)):$$PATH OMP_NUM_THREADS=1 $(FROZEN) -m pytest -n 2 \
		--dist loadfile --ignore tests/ops/test_memory.py \
		--ignore tests/configs/test_ablation.py \
		--ignore tests/configs/test_detection.py \
		--ignore tests/configs/test_finetuning.py \
		tests/analysis tests/checkpoints tests/classification tests/configs \
		tests/data tests/models tests/ops tests/test_doctor.py \
		tests/test_inference.py tests/tools/test_convert_checkpoint.py \
		tests/tools/test_get_flops.py tests/tools/test_launchers.py \
		tests/tools/test_train_and_test.py tests/tools/test_wrong_input.py \
		tests/training/test_errors.py tests/training/test_results.py

# Follows every command of README and docs: at most 20 minutes.
test-docs: $(VENV)/installed
	OMP_NUM_THREADS=1 python -m pytest tests/docs -m docs -n 2 --dist worksteal

# Runs the tools of mmpretrain and mmsegmentation on our configs: 2 minutes.
test-peers: $(VENV)/installed
	OMP_NUM_THREADS=1 python -m pytest tests/peers -m peers

# Kills processes and hosts, fills disks: at most 20 minutes.
test-faults: $(VENV)/installed
	OMP_NUM_THREADS=1 python -m pytest tests/faults -m faults -n 2 \
		--dist loadfile

# What a GPU has to show: the kernels on it, at all sizes; SyncBN; times.
gpu: $(VENV)/installed
	python -m pytest tests/ops tests/models tests/deploy \
		tests/training/test_recipe.py::test_sync_bn_over_processes
	python benchmarks/scan.py --device cuda
	python benchmarks/model.py --device cuda
	python benchmarks/published.py --device cuda

docs: $(VENV)/installed
	NO_MKDOCS_2_WARNING=1 mkdocs build --strict

lint: $(VENV)/installed
	$(BIN)/ruff check .

clean:
	rm -rf $(VENV) $(FROZEN_VENV) data/demo site work_dirs/demo \
		$(BACKBONES:%=work_dirs/demo_%)
