#!/usr/bin/env bash
# Everything that `make test` checks, in the order in which a failure is cheapest to find. Each part
# prints what it is and how long it took; the first that fails ends the run with its exit code.
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

# They are a workspace of their own, which nothing else here builds; their inputs are replayed by the tests of the
# crates. Nothing is linked, so libFuzzer itself, which needs a C++ compiler, may be missing.
fuzz_compiles() { CUSTOM_LIBFUZZER_PATH=/nowhere "$CARGO" check -q --locked --manifest-path tests/fuzz/Cargo.toml --target-dir target; }

part "format" "$CARGO" fmt --all --check
part "the programs, optimised" "$CARGO" build --locked --release --bins
part "lints" "$CARGO" clippy --locked --workspace --all-targets -- -D warnings
part "lints of the simulator" "$CARGO" clippy --locked -p podmesh-engine --features virtual-time --all-targets -- -D warnings
part "documentation" env RUSTDOCFLAGS="-D warnings" "$CARGO" doc -q --locked --workspace --no-deps
part "fuzz targets" fuzz_compiles
part "unit and integration tests" \
  "$CARGO" test -q --locked --profile checked --workspace --exclude podmesh-tests --exclude podmesh-engine
engine() { "$CARGO" test -q --locked --profile checked -p podmesh-engine --features virtual-time "$@"; }
part "the simulator, built" engine --no-run
part "the scenarios, built" "$CARGO" test -q --locked --profile checked -p podmesh-tests --no-run
part "house rules" "$CARGO" test -q --locked --profile checked -p podmesh-tests --test house
part "disks that fail" python3 tests/disk/run.py 12 7
# The simulator only computes, in a time of its own; these scenarios mostly wait for something to be due, so both
# are played at once, and who waits goes first. The other scenarios want the machine for themselves.
patient=(trust:: renewal:: ended:: revocation:: cold_boot:: planet_loss:: kube_proxy:: settings:: many_statements::)
simulator() {
  renice -n 19 "$BASHPID" > /dev/null
  part "engine and simulator" engine
}
set -m # a process group of its own, so that all of it can be ended
simulator > target/simulator.out 2>&1 &
beside=$!
set +m
trap 'kill -- "-$beside" 2>/dev/null || true' EXIT
failed=0
part "patient scenarios" \
  "$CARGO" test --locked --profile checked -p podmesh-tests --test scenarios -- --test-threads=3 "${patient[@]}" || failed=$?
wait "$beside" || failed=$?
trap - EXIT
cat target/simulator.out
[ "$failed" = 0 ] || exit "$failed"
part "lab and scenarios" \
  "$CARGO" test --locked --profile checked -p podmesh-tests --lib --test scenarios -- --test-threads=1 "${patient[@]/#/--skip=}"
part "the story of the demo" target/release/lab demo
echo "== all of it: ok in $((SECONDS - started)) s"
