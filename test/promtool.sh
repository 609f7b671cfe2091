#!/usr/bin/env bash
# Checks the metrics of a running api with Prometheus' promtool.
set -euo pipefail
export HOST=127.0.0.1 PORT=18081 ADMIN_PORT=18091 API2_URL=http://127.0.0.1:9 LOG_LEVEL=silent
node dist/services/api/main.js &
service=$!
trap 'kill $service' EXIT
for _ in $(seq 50); do curl -sf "$HOST:$ADMIN_PORT/readyz" >/dev/null && break; sleep 0.1; done
for _ in 1 2 3; do curl -s "$HOST:$PORT/hello" >/dev/null; done
curl -sf "$HOST:$ADMIN_PORT/metrics" | promtool check metrics
echo "promtool reports no problems"
