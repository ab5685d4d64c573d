#!/usr/bin/env bash
# Builds the tests of all crates but the engine, and lists their programs, one a line: the folder in which cargo would
# start it, and the program.
#
# All at once: a crate is built once more for each set of features that it is asked for with, and that depends on
# which others are built with it. The engine is apart because its tests want boringtun with a clock of their own.
#   tests/programs.sh
set -euo pipefail
cd "$(dirname "$0")/.."
${CARGO:-cargo} test -q --locked --profile checked --workspace --exclude podmesh-engine --no-run --message-format=json |
  python3 -c '
import json, os, sys
for line in sys.stdin:
    made = json.loads(line)
    if made.get("reason") == "compiler-message":
        sys.stderr.write(made["message"]["rendered"])
    if made.get("profile", {}).get("test") and made.get("executable"):
        print(os.path.dirname(made["manifest_path"]), made["executable"])'
