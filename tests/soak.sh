#!/usr/bin/env bash
# The long bars: one JSON line each in target/soak.jsonl, with the commit it was seen on. A bar that
# has passed on this commit is not played again, so an interrupted run goes on where it was.
#   tests/soak.sh [NAME...]      only these; --list names them
set -euo pipefail
cd "$(dirname "$0")/.."
log=target/soak.jsonl
commit=$(git rev-parse --short=12 HEAD)
[ -z "$(git status --porcelain --untracked-files=no)" ] || commit=$commit-dirty
mkdir -p target
touch "$log"

# A name that no test has any more must not count as passed.
one() { "$@" | awk '{ print; fflush() } /^test result: ok. 1 passed/ { seen = 1 } END { exit !seen }'; }
scenario() { one env LAB_LONG=1 ${CARGO:-cargo} test --locked --profile checked -q --workspace --exclude podmesh-engine --test scenarios -- --exact "$1" --nocapture --include-ignored --test-threads=1; }
slow_disk() { one ${CARGO:-cargo} test --locked --release -q -p podmesh-planet --test program -- --exact "slow_disk::a_hello_takes_no_longer_while_a_slow_disk_has_much_to_write" --nocapture --include-ignored; }
scale() { one env SIM_SCALE=$1 ${CARGO:-cargo} test --locked --profile checked -q -p podmesh-engine --features virtual-time --test sim -- --exact scale::thousands_of_statements_hold_nobody_up --nocapture; }
sim() { one env "${@:2}" ${CARGO:-cargo} test --locked --profile checked -q -p podmesh-engine --features virtual-time --test sim -- --exact "$1" --nocapture; }
walks() { sim lives::a_minute_after_all_was_put_right_everybody_reaches_everybody "SIM_FIRST=$1" "SIM_WALKS=$2"; }
lives() { sim lives::random_life_ends_well "SIM_FIRST=$1" "SIM_SEEDS=$2"; }
mutants() { sim lives::every_broken_rule_is_noticed "SIM_MUTANT_SEEDS=$1"; }
# The plugin's own test of that name, as long as these variables make it.
plugin() { one env "${@:2}" ${CARGO:-cargo} test --locked --release -q -p podmesh-cni-plugin --test plugin -- --exact "$1" --nocapture --test-threads=1; }

# NAME COMMAND...; a scenario prints its figures as lines that begin with "figure ".
bars() {
  bar demo target/release/lab demo
  bar systemd tests/systemd/run.sh
  bar systemd-20-start-faults tests/systemd/starts.sh
  bar disk-500-faults python3 tests/disk/run.py 500
  bar planet-slow-disk slow_disk
  bar steady-100 tests/steady.sh 100
  bar simulator-200-nodes scale 200,10000
  portions simulator-2000 0 2000 250 lives
  portions walks-2000 0 2000 500 walks
  # Seeds that nobody has played: another million each day, or what SIM_FRESH says.
  portions simulator-3000-fresh "${SIM_FRESH:-$(($(date +%s) / 86400 * 1000000))}" 3000 250 lives
  bar mutants-2000 mutants 2000
  bar cni-1000-pods plugin storm::sixteen_at_once_never_share_an_address PODMESH_CNI_ROUNDS=1000
  bar cni-200-kills plugin storm::killed_calls_leave_nothing_that_garbage_collection_does_not_free PODMESH_CNI_KILLS=200
  bar cni-every-step plugin storm::a_kill_before_any_step_leaves_nothing_that_garbage_collection_does_not_free PODMESH_CNI_STRIDE=1
  bar cni-20-shapes-of-del plugin detach::twenty_shapes_of_del_succeed_and_free_everything
  while read -r name; do
    bar "${name##*::}" scenario "$name"
  done < <(${CARGO:-cargo} test --locked --profile checked -q --workspace --exclude podmesh-engine --test scenarios -- --list --format terse 2>/dev/null | sed -n 's/: test$//p' | grep -v '^the_lab')
}

# NAME FIRST COUNT STEP COMMAND: a bar in parts of some minutes, NAME@FIRST each, with the command's first seed and
# number of seeds.
portions() {
  local from=$2 end=$(($2 + $3))
  while [ "$from" -lt "$end" ]; do
    bar "$1@$from" "$5" "$from" "$4"
    from=$((from + $4))
  done
}

# A bar's whole name, or that of all its parts.
wanted() { [ ${#only[@]} = 0 ] || printf '%s\n' "${only[@]}" | grep -qx -e "$1" -e "${1%@*}"; }

bar() {
  local name=$1 begin=$SECONDS out ok=true figures
  shift
  wanted "$name" || return 0
  if [ "$list" = yes ]; then echo "$name"; return 0; fi
  if grep -q "\"bar\":\"$name\",\"commit\":\"$commit\",\"ok\":true" "$log"; then
    echo "== $name: passed on $commit already"
    return 0
  fi
  echo "== $name"
  out=$(mktemp)
  "$@" 2>&1 | tee "$out" || ok=false
  figures=$(sed -n 's/^figure //p' "$out" | python3 -c 'import json, sys; print(json.dumps([l.rstrip() for l in sys.stdin]))')
  printf '{"bar":"%s","commit":"%s","ok":%s,"seconds":%d,"time":"%s","figures":%s}\n' \
    "$name" "$commit" "$ok" "$((SECONDS - begin))" "$(date -u +%FT%TZ)" "$figures" >> "$log"
  rm -f "$out"
  [ "$ok" = true ] || failed+=("$name")
}

only=() failed=() list=no
for word in "$@"; do if [ "$word" = --list ]; then list=yes; else only+=("$word"); fi; done
bars
[ "$list" = yes ] && exit 0
if [ ${#failed[@]} -gt 0 ]; then echo "failed: ${failed[*]} (lines in $log)" >&2; exit 1; fi
echo "all bars hold on $commit (lines in $log)"
