# Each target is one call of `workbench`. On a bare machine (Python 3.11-3.13 with venv and pip, make) the first
# one makes .venv here and installs into it; a change of pyproject.toml or constraints.txt installs again.
#   make tour MODEL=<folder or Hugging Face name>     the tour on another model
#   make lab ARGS="--no-browser"                      further options of `workbench lab`
#   make setup PYTHON=/path/to/python3                another Python
VENV := .venv
WORKBENCH := $(VENV)/bin/workbench
PYTHON ?=
MODEL ?=
ARGS ?=

.PHONY: setup lab test tour app bench pictures clean

setup: $(VENV)/installed

lab test app bench pictures: setup
	@$(WORKBENCH) $@ $(ARGS)

tour: setup
	@$(WORKBENCH) tour $(if $(MODEL),--model "$(MODEL)") $(ARGS)

clean: # what was built, not .venv; nothing to do where nothing is installed
	@if [ -x $(WORKBENCH) ]; then $(WORKBENCH) clean; fi

$(VENV)/installed: pyproject.toml constraints.txt
	@if ! $(VENV)/bin/python -m pip --version >/dev/null 2>&1; then \
		found=; \
		for python in $(or $(PYTHON),python3.11 python3.12 python3.13 python3); do \
			if $$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null; \
			then found=$$python; break; fi; \
		done; \
		if [ -z "$$found" ]; then \
			echo "The workbench needs Python 3.11, 3.12 or 3.13."; \
			echo "Found: $$($(or $(PYTHON),python3) --version 2>&1 | head -n 1)"; \
			echo "What to do: install one of them, or name it: make setup PYTHON=/path/to/python3.11"; \
			exit 1; \
		fi; \
		echo "Making $(VENV) with $$($$found --version)"; \
		if ! $$found -m venv --clear $(VENV); then \
			rm -rf $(VENV); \
			echo "This Python has no venv. What to do: on Debian and Ubuntu, apt-get install python3-venv"; \
			exit 1; \
		fi; \
	fi
	$(VENV)/bin/python -m pip install -c constraints.txt -e ".[dev,app]"
	@touch $@
