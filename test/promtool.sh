#!/usr/bin/env bash
# Checks the metrics of a running api, and the alerts of docs/operations.md, with Prometheus' promtool.
set -euo pipefail
export HOST=127.0.0.1 PORT=18081 ADMIN_PORT=18091 API2_URL=http://127.0.0.1:9 LOG_LEVEL=silent
node dist/services/api/main.js &
service=$!
trap 'kill $service' EXIT
for _ in $(seq 50); do curl -sf "$HOST:$ADMIN_PORT/readyz" >/dev/null && break; sleep 0.1; done
for _ in 1 2 3; do curl -s "$HOST:$PORT/hello" >/dev/null; done
metrics=$(curl -sf "$HOST:$ADMIN_PORT/metrics")
promtool check metrics <<<"$metrics"

# The alerts of docs/operations.md must be valid PromQL and use only metrics that exist.
rules=$(mktemp)
trap 'kill $service; rm -f "$rules"' EXIT
{
  echo "groups: [{ name: alerts, rules: ["
  awk '/^```promql/ { n++; printf "{ alert: Alert%d, expr: \"", n; inside = 1; next }
       /^```/ && inside { print "\" }, "; inside = 0; next }
       inside { gsub(/"/, "\\\""); printf "%s ", $0 }' docs/operations.md
  echo "] }]"
} >"$rules"
promtool check rules "$rules"
for name in $(grep -oE '\b(http|process)_[a-z_]+' "$rules" | sort -u); do
  grep -q "^$name" <<<"$metrics" || { echo "docs/operations.md: metric $name does not exist" >&2; exit 1; }
done
echo "promtool reports no problems"
