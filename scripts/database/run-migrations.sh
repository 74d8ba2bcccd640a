#!/usr/bin/env bash
# Applies what is pending through the tunnel of a stack, and proves the database.
# Usage: scripts/database/run-migrations.sh [STACK]   (default: prod)
set -euo pipefail
cd "$(dirname "$0")/../.."
stack=${1:-prod}
if [ -z "${PGPASSWORD:-}" ]; then
  PGPASSWORD=$(PULUMI_SKIP_UPDATE_CHECK=true pulumi config get databasePassword --stack "$stack")
fi
export PGPASSWORD
exec bin/tunnel -s "$stack" -- \
  bash -c '.venv/bin/python -m migrate up && .venv/bin/python -m migrate verify'
