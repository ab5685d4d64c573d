# The entrance. `make demo` shows podmesh at work, `make test` checks everything; both run as root on
# a Debian 12 machine with Rust, and say what they install.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

CARGO ?= cargo
DESTDIR ?=
PREFIX ?= /usr
SYSCONFDIR ?= /etc
UNITDIR ?= $(PREFIX)/lib/systemd/system
CNIBINDIR ?= /opt/cni/bin
BIN := target/release
PROGRAMS := meshd meshctl planet podmesh

# What the lab uses; the programs themselves use none of it. netbase has the protocols' names, without
# which nft doesn't read them.
DEPS := iproute2 nftables iptables netbase iputils-ping conntrack ethtool iperf3 tcpdump procps strace wireguard-go wireguard-tools python3
DEP_COMMANDS := ip nft iptables ping conntrack ethtool iperf3 tcpdump ps strace wireguard-go wg python3

.PHONY: help build deps root check test audit release-check sim lab-test demo soak bench peers fuzz install uninstall clean-lab man

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1|\2/' | column -t -s '|'

build: ## the four programs, optimised, and the lab
	$(CARGO) build --locked --release --bins

root:
	@[ "$$(id -u)" = 0 ] || { echo "error: this builds network namespaces and needs root; run it as root" >&2; exit 5; }
	@[ -c /dev/net/tun ] || { echo "error: /dev/net/tun is missing; load the tun module (modprobe tun)" >&2; exit 1; }

deps: root
	@missing=""; for c in $(DEP_COMMANDS); do command -v $$c >/dev/null || missing="$$missing $$c"; done; \
	[ -e /etc/protocols ] || missing="$$missing /etc/protocols"; \
	if [ -n "$$missing" ]; then \
	  echo "== installing Debian packages (missing:$$missing): $(DEPS)"; \
	  apt-get update -q >/dev/null && DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends $(DEPS) >/dev/null; \
	else echo "== all needed packages are installed: $(DEPS)"; fi

check: ## format, lints, documentation, house rules (no root)
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	$(CARGO) clippy --locked -p podmesh-engine --features virtual-time --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --workspace --no-deps --document-private-items
	$(CARGO) test --locked -p podmesh-tests --test house

sim: ## the simulator: random lives of small meshes in virtual time
	$(CARGO) test --locked --profile checked -p podmesh-engine --features virtual-time -- --nocapture

lab-test: deps build ## the end-to-end scenarios on real NATs
	$(CARGO) test --locked --profile checked -p podmesh-tests --lib --test scenarios -- --test-threads=1

test: deps ## everything that CI runs
	@$(CARGO) clippy --version >/dev/null 2>&1 && $(CARGO) fmt --version >/dev/null 2>&1 || { echo "== adding clippy and rustfmt to the toolchain"; rustup component add clippy rustfmt; }
	./tests/run.sh

# The database of advisories is fetched anew each time: yesterday's says nothing about today.
audit: ## known advisories about everything in both lock files (needs the network)
	@$(CARGO) deny --version >/dev/null 2>&1 || { echo "error: cargo-deny is missing" >&2; \
	  echo "next: cargo install --locked cargo-deny, then make audit" >&2; exit 4; }
	@for manifest in Cargo.toml tests/fuzz/Cargo.toml; do \
	  $(CARGO) deny --locked --all-features --manifest-path $$manifest check --config $(CURDIR)/deny.toml advisories || { \
	    echo "error: $$manifest has an advisory against it, or the database of advisories can't be fetched (see above)" >&2; \
	    echo "next: cargo update -p CRATE, or run it where github.com can be reached; a release needs it green" >&2; exit 1; }; \
	done
	$(CARGO) deny --locked --all-features check bans licenses sources

release-check: test audit ## what has to be green before a release

demo: deps ## three sites, real NATs, pods; a planet dies, a node loses power
	@echo "== building the programs (a few minutes the first time)"
	$(CARGO) build --locked --release --bins
	$(BIN)/lab demo $(if $(KEEP),--keep)

soak: deps build peers ## the long bars, resumable, one JSON line each in target/soak.jsonl
	./tests/soak.sh

# Other tunnels, to be compared with; the distribution's own where it has them.
PEERS := target/bench/peers
PEER_PACKAGES := nebula tinc

peers: deps ## other tunnels, to be compared with and to talk to (a few minutes the first time)
	@missing=""; for p in $(PEER_PACKAGES); do dpkg-query -W $$p >/dev/null 2>&1 || missing="$$missing $$p"; done; \
	if [ -n "$$missing" ]; then echo "== installing Debian packages:$$missing"; \
	  apt-get update -q >/dev/null && DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends $$missing >/dev/null; fi
	$(CARGO) install -q --locked --root $(PEERS) boringtun-cli@0.7.1 gotatun-cli@0.10.2

bench: deps build peers ## podmesh against other tunnels, in one run (about half an hour)
	$(BIN)/bench $(BENCH)

# libFuzzer on a stable compiler: the coverage is LLVM's, and needs no sanitizer.
FUZZ_SECONDS ?= 60
FUZZ_TARGETS ?= cut merge through arrive words chains planet json settings configuration plugin
FUZZ_FLAGS := -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1

fuzz: root ## searches inputs that break what reads bytes of others, FUZZ_SECONDS per target
	@command -v g++ >/dev/null || { echo "== installing the Debian package g++, which libFuzzer is built with"; \
	  apt-get update -q >/dev/null && DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends g++ >/dev/null; }
	host=$$(rustc -vV | sed -n 's/^host: //p'); \
	RUSTFLAGS="$(FUZZ_FLAGS)" $(CARGO) build --locked --release --manifest-path tests/fuzz/Cargo.toml --target $$host --target-dir target/fuzz; \
	for target in $(FUZZ_TARGETS); do \
	  echo "== $$target, $(FUZZ_SECONDS) s"; mkdir -p target/fuzz/corpus/$$target target/fuzz/found tests/fuzz/kept/$$target; \
	  FUZZ_TARGET=$$target target/fuzz/$$host/release/podmesh-fuzz -max_total_time=$(FUZZ_SECONDS) -max_len=8192 -print_final_stats=1 \
	    -artifact_prefix=target/fuzz/found/$$target- target/fuzz/corpus/$$target tests/fuzz/kept/$$target; \
	done

clean-lab: root ## remove what a killed lab left behind
	$(BIN)/lab clean

man: build ## man pages and completions from the command line definitions
	rm -rf target/man target/completions && mkdir -p target/man target/completions
	for p in meshctl planet; do $(BIN)/$$p man target/man; done
	$(BIN)/meshd man > target/man/meshd.8
	for s in bash zsh fish; do $(BIN)/meshctl completions $$s > target/completions/meshctl.$$s; done

install: man ## programs, units, examples, man pages (DESTDIR and PREFIX are respected)
	./packaging/install.sh install "$(DESTDIR)" "$(PREFIX)" "$(SYSCONFDIR)" "$(UNITDIR)" "$(CNIBINDIR)"

uninstall: ## removes what install put there; configuration and state stay
	./packaging/install.sh uninstall "$(DESTDIR)" "$(PREFIX)" "$(SYSCONFDIR)" "$(UNITDIR)" "$(CNIBINDIR)"
