#!/usr/bin/env bash
# The unit and integration tests again and again: what fails once in a hundred runs depends on what the others
# do meanwhile. Every second round keeps all processors busy with something else. Rounds that were green on
# this commit are kept in target/steady.jsonl and not played again.
#   tests/steady.sh [ROUNDS]      100 if absent; STEADY_PACKAGES names the crates (all but engine and tests)
set -euo pipefail
cd "$(dirname "$0")/.."
rounds=${1:-100}
read -ra packages <<< "${STEADY_PACKAGES:-podmesh-proto podmesh-kernel podmesh-daemon podmesh-planet podmesh-ctl podmesh-cni-plugin}"
commit=$(git rev-parse --short=12 HEAD)
[ -z "$(git status --porcelain --untracked-files=no)" ] || commit=$commit-dirty
log=target/steady.jsonl
mkdir -p target && touch "$log"

# Each test program with the folder that cargo would start it in.
programs=$(${CARGO:-cargo} test --locked --profile checked --no-run --message-format=json "${packages[@]/#/-p}" 2>/dev/null |
  python3 -c '
import json, os, sys
for line in sys.stdin:
    made = json.loads(line)
    if made.get("profile", {}).get("test") and made.get("executable"):
        print(os.path.dirname(made["manifest_path"]), made["executable"])')
[ -n "$programs" ] || { echo "error: the tests can't be built; see cargo test --no-run" >&2; exit 1; }

busy=()
rest() { [ ${#busy[@]} = 0 ] || kill "${busy[@]}" 2>/dev/null || true; busy=(); }
trap rest EXIT
keep_busy() {
  for _ in $(seq "$(nproc)"); do
    (while :; do :; done) &
    busy+=($!)
  done
}

one_round() {
  local folder program
  while read -r folder program; do
    (cd "$folder" && "$program" --quiet) > target/steady.out 2>&1 || {
      echo "round $1: $program failed" >&2
      cat target/steady.out >&2
      cp target/steady.out "target/steady-$commit-$1.out"
      return 1
    }
  done <<< "$programs"
}

failed=0
for round in $(seq "$rounds"); do
  grep -q "\"commit\":\"$commit\",\"round\":$round,\"ok\":true" "$log" && continue
  begin=$SECONDS ok=true
  [ $((round % 2)) = 1 ] || keep_busy
  one_round "$round" || { ok=false; failed=$((failed + 1)); }
  rest
  printf '{"commit":"%s","round":%d,"ok":%s,"seconds":%d}\n' "$commit" "$round" "$ok" "$((SECONDS - begin))" >> "$log"
done
green=$(grep -c "\"commit\":\"$commit\",.*\"ok\":true" "$log" || true)
echo "figure $green of $rounds rounds green, every second one beside busy processors"
[ "$failed" = 0 ]
