#!/usr/bin/env bash
# Guess: in a file for `promtool test rules` the line `exp_alerts: []` says that an alert stays silent.
# Where no rule has its name, or `rule_files` match no file, the test fails: nothing was tested.
# What happens: both pass with status 0. An alert that was renamed, and a file that was moved, keep
# tests green that fire nothing; only for the file there is a warning on standard error.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
# Debian's package; nothing of it is installed.
apt-get download --quiet=2 prometheus
dpkg-deb --extract prometheus_*.deb .
promtool=usr/bin/promtool
"$promtool" --version | head -1
echo 'groups: [{name: a, rules: [{alert: TargetDown, expr: up == 0}]}]' > rules.yaml
check() {
  cat > test.yaml <<YAML
rule_files: [$3]
tests:
  - input_series: [{series: up, values: 0x9}]
    alert_rule_test: [{eval_time: 5m, alertname: $4, exp_alerts: []}]
YAML
  status=0
  "$promtool" test rules test.yaml > out 2> err || status=$?
  echo "$2: status $status, $(grep -hE 'SUCCESS|FAILED' out err | xargs)"
  test "$status" = "$1"
}
check 1 "the alert, which fires" rules.yaml TargetDown
check 0 "an alert that there is not" rules.yaml TargetDwon
check 0 "a file that there is not" other.yaml TargetDown
