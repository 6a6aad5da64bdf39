#!/usr/bin/env bash
# A Cog container's API by curl, as Cog's documentation has it; changed: the address, and a key.
set -uo pipefail
ask() { curl -sS -H "Authorization: Bearer $KEY" -H "Content-Type: application/json" "$@"; }
input="{\"input\": {\"image\": \"data:image/png;base64,$PNG\", \"scale\": 2}}"
slow="{\"input\": {\"image\": \"data:image/png;base64,$PNG\", \"steps\": 1000}}"
version=$(curl --version | awk 'NR == 1 {print $2}')

case_() {
    local name=$1 fault=""
    shift
    fault=$("$@" 2>&1) && fault=""
    printf 'case {"client": "curl (Cog)", "version": "%s", "case": "%s", "fault": "%s"}\n' \
        "$version" "$name" "$(tr -d '"\\\n' <<<"$fault" | cut -c1-300)"
}
single() { ask -X POST "$URL/predictions" -d "$input" | grep '"output": "data:image/png;base64,iVBOR'; }
wait_() { ask -X PUT "$URL/predictions/one" -d "$input" | grep '"id": "one", "status": "succeeded"'; }
poll() {
    ask -X PUT "$URL/predictions/two" -d "$input" -H "Prefer: respond-async" -w '%{http_code}' | grep 202 || return 1
    for _ in $(seq 100); do
        ask -X PUT "$URL/predictions/two" -d "$input" -H "Prefer: respond-async" | grep succeeded && return
        sleep 0.2
    done
    return 1
}
cancel() {
    ask -X PUT "$URL/predictions/three" -d "$slow" -H "Prefer: respond-async" >/dev/null
    ask -X POST "$URL/predictions/three/cancel" -w '%{http_code}' | grep 200 || return 1
    ask -X PUT "$URL/predictions/three" -d "$slow" | grep '"status":"canceled"'
}
failure() {
    ask -X POST "$URL/predictions" -d "{\"input\": {\"image\": \"$BROKEN\"}}" | grep '"status":"failed"'
}
bad_input() {
    ask -X POST "$URL/predictions" -d "{\"input\": {\"image\": \"%\"}}" | grep '"loc":\["body","input","image"\]'
}
leaving() {
    timeout 2 curl -sS -H "Authorization: Bearer $KEY" -H "Content-Type: application/json" -X POST "$URL/predictions" -d "$slow"
    for _ in $(seq 100); do
        ask "$URL/jobs?limit=1" | grep '"state":"canceled"' && return
        sleep 0.2
    done
    return 1
}
health() { curl -sS "$URL/health-check" | grep READY; }
case_ single single
case_ wait wait_
case_ poll poll
case_ cancel cancel
case_ failure failure
case_ "bad input" bad_input
case_ "leaving" leaving
case_ health health
