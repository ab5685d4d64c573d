#!/usr/bin/env bash
# The unit and integration tests again and again: what fails once in a hundred runs depends on what the others
# do meanwhile. Most of a round is waiting, so rounds are played side by side: the first half two at a time, the
# other half eight at a time beside loops that keep all processors busy. Rounds that were green on this commit are
# kept in target/steady.jsonl and not played again.
#   tests/steady.sh [ROUNDS]      100 if absent; STEADY_CRATES names the crates' folders (all but engine and tests),
#                                 STEADY_LOOPS=0 leaves it to something else to keep the processors busy
set -euo pipefail
cd "$(dirname "$0")/.."
rounds=${1:-100}
crates=${STEADY_CRATES:-proto kernel daemon planet ctl cni-plugin service}
commit=$(git rev-parse --short=12 HEAD)
[ -z "$(git status --porcelain --untracked-files=no)" ] || commit=$commit-dirty
log=target/steady.jsonl
mkdir -p target && touch "$log"

programs=$(tests/programs.sh | grep -E "/(${crates// /|}) ")
[ -n "$programs" ] || { echo "error: the tests can't be built; see cargo test --no-run" >&2; exit 1; }

# ROUND: plays it and writes its line. What it said is kept if it failed.
one_round() {
  local folder program begin=$SECONDS ok=true out=target/steady-$commit-$1.out
  while read -r folder program; do
    (cd "$folder" && exec "$program" --quiet) > "$out" 2>&1 < /dev/null || {
      echo "round $1: $program failed, see $out" >&2
      ok=false
      break
    }
  done <<< "$programs"
  [ "$ok" = false ] || rm -f "$out"
  printf '{"commit":"%s","round":%d,"ok":%s,"seconds":%d}\n' "$commit" "$1" "$ok" "$((SECONDS - begin))" >> "$log"
}
export -f one_round
export programs commit log

# FIRST LAST AT_ONCE: the rounds that are not green yet, in a process group of their own, which ends with this script.
playing=
play() {
  local round
  set -m
  {
    for round in $(seq "$1" "$2"); do
      grep -q "\"commit\":\"$commit\",\"round\":$round,\"ok\":true" "$log" || echo "$round"
    done | xargs -r -P "$3" -I{} bash -c 'one_round {}'
  } &
  playing=$!
  set +m
  wait "$playing"
  playing=
}

busy=()
# Tests that are killed leave what they have made.
ended() {
  [ ${#busy[@]} = 0 ] || kill "${busy[@]}" 2>/dev/null || true
  [ -n "$playing" ] || return 0
  kill -- "-$playing" 2>/dev/null || true
  wait "$playing" || true
  [ ! -x target/release/lab ] || target/release/lab clean
}
trap ended EXIT
play 1 $((rounds / 2)) 2
for _ in $(seq "${STEADY_LOOPS:-$(nproc)}"); do
  (while :; do :; done) &
  busy+=($!)
done
play $((rounds / 2 + 1)) "$rounds" 8
green=$(sed -n "s/.*\"commit\":\"$commit\",\"round\":\([0-9]*\),\"ok\":true.*/\1/p" "$log" | awk -v last="$rounds" '$1 <= last' | sort -u | wc -l)
echo "figure $green of $rounds rounds green, half of them beside busy processors"
[ "$green" = "$rounds" ]
