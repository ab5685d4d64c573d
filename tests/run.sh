#!/usr/bin/env bash
# Everything that `make test` checks. Each part prints what it is and how long it took; the first that fails ends the
# run with its exit code. `make check` has the lints alone, which come late here: beside what mostly waits.
set -euo pipefail
cd "$(dirname "$0")/.."
CARGO=${CARGO:-cargo}
started=$SECONDS
# Everything is built once, from nothing: what makes a second build quicker would only cost time.
export CARGO_INCREMENTAL=0

part() {
  local title=$1 begin=$SECONDS
  shift
  echo "== $title"
  "$@" || return
  echo "== $title: ok in $((SECONDS - begin)) s (at $((SECONDS - started)) s)"
}

# What goes on beside this is ended with it, and what killed tests have left is removed.
background=
ended() {
  local code=$?
  if [ -n "$background" ]; then
    kill -- "-$background" 2>/dev/null || true
    wait "$background" || true
    cat "$said"
  fi
  [ ! -x target/release/lab ] || target/release/lab clean || true
  exit "$code"
}
trap ended EXIT

# FILE WHEN COMMAND...: what goes on beside the parts that follow, up to `joined`, which shows what it said (kept in
# FILE); WHEN is `idle` for what gets the processors when nothing else wants them (sched(7), SCHED_IDLE), or `always`.
# One at a time, in a process group of its own, so that all of it ends with this script.
beside() {
  said=$1
  local when=$2
  shift 2
  : > "$said"
  set -m
  { set -e; [ "$when" = always ] || chrt --idle --pid 0 "$BASHPID"; "$@"; } > "$said" 2>&1 &
  background=$!
  set +m
}

joined() {
  local failed=0
  wait "$background" || failed=$?
  background=
  cat "$said"
  return "$failed"
}

# They are a workspace of their own, which nothing else here builds; their inputs are replayed by the tests of the
# crates. Nothing is linked, so libFuzzer itself, which needs a C++ compiler, may be missing.
fuzz_compiles() { CUSTOM_LIBFUZZER_PATH=/nowhere "$CARGO" check -q --locked --manifest-path tests/fuzz/Cargo.toml --target-dir target; }

part "format" "$CARGO" fmt --all --check
part "the programs, optimised" "$CARGO" build --locked --release --bins
# What cargo would play, listed once: another choice of crates is another set of features, and most of all is built once
# more for that.
listed=target/tests.list
tests_built() { tests/programs.sh > "$listed"; }
# PROGRAMS ARGUMENTS...: plays these lines of the list.
play() {
  local folder program programs=$1
  shift
  [ -n "$programs" ] || { echo "error: no program of tests has that name; see $listed" >&2; return 1; }
  while read -r folder program <&3; do
    (cd "$folder" && exec "$program" "$@") || { local code=$?; echo "error: $program failed (in $folder)" >&2; return "$code"; }
  done 3<<< "$programs"
}
called() { grep -E "/($1)-[0-9a-f]+\$" "$listed"; }
# All that has no part of its own below.
units() { play "$(grep -Ev '/(house|podmesh_lab|scenarios)-[0-9a-f]+$' "$listed")" --quiet; }
engine() { "$CARGO" test -q --locked --profile checked -p podmesh-engine --features virtual-time "$@"; }
part "all tests but the engine's, built" tests_built
# These mostly wait, so what is needed next is built beside them.
beside target/units.out always part "unit and integration tests" units
part "the engine's tests and the simulator, built" engine --no-run
joined
part "house rules" play "$(called house)" --quiet
part "disks that fail" python3 tests/disk/run.py 12 7
# The simulator and the compiler only compute, the simulator in a time of its own; the scenarios mostly wait for something
# to be due. So all are played at once, and who waits goes first. Some scenarios want the machine for themselves, as
# far as others would wait, too.
computed() {
  part "engine and simulator" engine
  part "lints" "$CARGO" clippy --locked --workspace --all-targets -- -D warnings
  part "lints of the simulator" "$CARGO" clippy --locked -p podmesh-engine --features virtual-time --all-targets -- -D warnings
  part "documentation" env RUSTDOCFLAGS="-D warnings" "$CARGO" doc -q --locked --workspace --no-deps
  part "fuzz targets" fuzz_compiles
}
patient=(trust:: renewal:: ended:: revocation:: cold_boot:: planet_loss:: kube_proxy:: settings:: many_statements::)
beside target/computed.out idle computed
part "patient scenarios" play "$(called scenarios)" --test-threads=3 "${patient[@]}"
part "lab and scenarios" play "$(called 'podmesh_lab|scenarios')" --test-threads=1 "${patient[@]/#/--skip=}"
joined
part "the story of the demo" target/release/lab demo
echo "== all of it: ok in $((SECONDS - started)) s"
