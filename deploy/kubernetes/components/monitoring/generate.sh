#!/bin/sh
# Writes the alerts of deploy/observability/alerts.yml as a PrometheusRule. kustomize cannot do this: it reads no
# files outside its folder, and inserts the contents of a file only as text.
set -eu
cd "$(dirname "$0")"
{
  cat <<'HEAD'
# Generated from deploy/observability/alerts.yml by `npm run generate:alerts`.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: onehop
  namespace: default
spec:
HEAD
  sed -e '/^#/d' -e 's/^./  &/' ../../../observability/alerts.yml
} >prometheus-rule.yaml
