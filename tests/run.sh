#!/usr/bin/env bash
# Every check, cheapest first. `tests/run.sh lint` stops before the tests.
set -euo pipefail
cd "$(dirname "$0")/.."
# What the conformance suite finds is kept with this installation: its page shows the last run.
HONE_REPORTS="${HONE_HOME:-$PWD/.hone}/conformance"
HONE_HOME=$(mktemp -d)
export HONE_HOME HONE_REPORTS
trap 'rm -rf "$HONE_HOME"' EXIT
bin=.venv/bin

say() { printf '\n== %s\n' "$1"; }

say "ruff"
$bin/ruff format --check .
$bin/ruff check .
say "import-linter"
$bin/lint-imports
say "djlint"
$bin/djlint --check --lint templates --quiet
say "django: migrations, deployment check"
$bin/python manage.py makemigrations --check --dry-run
HONE_HTTPS=1 $bin/python manage.py check --deploy --fail-level WARNING
say "mypy"
$bin/mypy webapp workers training tests bench
[ "${1:-}" = lint ] && exit 0
say "pytest"
$bin/python -m pytest "$@"
