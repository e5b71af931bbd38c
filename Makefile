# ossia: `make run` talks to the bundled model, `make test` runs the tests, `make help` lists the rest.
# Everything is installed into .venv, once; later calls need no network. See CONTRIBUTING.md.

PROMPT ?= What is 4213 + 2789?
export PROMPT
# The first Python that is new enough; give PYTHON=... to choose another.
PYTHON ?= $(firstword $(foreach p,python3 python3.14 python3.13 python3.12 python3.11,$(shell \
	$(p) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $(p))))

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input install --root-user-action=ignore -c constraints.txt
NATIVE := CMakeLists.txt $(wildcard csrc/*.* csrc/bindings/*)

.DEFAULT_GOAL := help
.PHONY: help run test check format asan web demo-model clean FORCE

help:
	@echo 'make run [PROMPT="..."]   install if need be, and let the bundled model answer'
	@echo 'make test                 install if need be, and run the tests'
	@echo 'make check                style and types'
	@echo 'make format               mend the style'
	@echo 'make asan                 run the tests of the native kernels with every access to memory checked'
	@echo 'make demo-model           train the bundled model anew, measure it, write its card: hours on one core'
	@echo 'make web                  build the chat page anew from web/ (needs Node; nothing else does)'
	@echo 'make clean                remove what was installed and built'

run: $(VENV)/ready-run
	@$(BIN)/ossia chat -- "$$PROMPT"

test: $(VENV)/ready-dev
	$(BIN)/python -m pytest -q

check: $(VENV)/ready-dev
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m basedpyright

format: $(VENV)/ready-dev
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .

# The kernels, built with AddressSanitizer and UndefinedBehaviorSanitizer, in the place of the installed ones. Python does
# not come with their libraries, which must be loaded before anything else.
CXX_LIBRARY = $(shell $(CXX) -print-file-name=$(1))
asan: $(VENV)/ready-dev
	$(BIN)/cmake -S . -B build/asan -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja -DCMAKE_BUILD_TYPE=Debug \
		-DOSSIA_SANITIZE=ON -DCMAKE_CXX_COMPILER=$(CXX) -DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python \
		-Dnanobind_DIR="$$($(BIN)/python -m nanobind --cmake_dir)"
	$(BIN)/cmake --build build/asan
	LD_PRELOAD="$(call CXX_LIBRARY,libasan.so) $(call CXX_LIBRARY,libstdc++.so)" PYTHONMALLOC=malloc \
		ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 $(BIN)/python tests/kernels/sanitized.py build/asan

# The page that `ossia serve` shows: built files are kept under src/ossia/server/web, so that no installation needs Node.
web:
	cd web && npm ci && npm run build

# The bundled model: pretraining, supervised training, reinforcement, measurement, card. Give it again to go on.
demo-model: $(VENV)/ready-dev
	$(BIN)/python -m ossia.demo.make build/demo-model --install

clean:
	rm -rf $(VENV) build

# ---------------------------------------------------------------- installation
# A stamp in .venv says what is installed there; it is stale when the pins, the metadata or the native code are newer.
# The build tools are installed first and isolation is off, so that the pins hold for them too and a rebuild is offline.

define install
	$(PIP) scikit-build-core nanobind cmake ninja
	$(PIP) --no-build-isolation -e "$(1)"
endef
report = @$(BIN)/python -c 'from ossia.kernels import cpu; print("ossia:", cpu.why_not() or "the native CPU kernels were built")'

$(VENV)/ready-run: $(VENV)/where pyproject.toml constraints.txt $(NATIVE)
	$(call install,.)
	$(report)
	@touch $@

$(VENV)/ready-dev: $(VENV)/where pyproject.toml constraints.txt $(NATIVE)
	$(call install,.[train$(,)test$(,)dev])
	$(PIP) --no-deps --ignore-requires-python gpt-oss
	$(report)
	@touch $(VENV)/ready-run $@

, := ,

# The folder that .venv was made in. An environment does not survive being moved, so in another folder it is made anew
# over the old one: scripts and the link to src/ are rewritten, what was downloaded stays.
ifneq ($(shell cat $(VENV)/where 2>/dev/null),$(CURDIR))
$(VENV)/where: FORCE
endif

$(VENV)/where:
	@test -n "$(PYTHON)" || { echo "ossia needs Python 3.11 or newer: install it, or give PYTHON=/path/to/python3"; exit 1; }
	$(PYTHON) -m venv $(VENV) || \
		{ $(PYTHON) -m venv --without-pip $(VENV) && $(PYTHON) -m pip --python $(BIN)/python install pip; }
	@echo "$(CURDIR)" > $@
