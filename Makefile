# Two commands do everything on a fresh Debian machine: `make up` and `make test`.
SHELL := /bin/bash
TARGET := $(shell rustc -vV 2>/dev/null | sed -n 's/^host: //p')
BIN := target/$(TARGET)/release/coracle
TESTED := target/$(TARGET)/debug/coracle
BENCH := target/$(TARGET)/release/coracle-bench
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
UP_FLAGS ?=
BENCH_FLAGS ?=
comma := ,

.PHONY: up down build deps test-deps tools test test-examples lint bench install clean

up: build  ## Install what is missing, build, and run a cluster on this machine.
	$(SUDO) $(BIN) up --detach $(UP_FLAGS)

down:  ## Stop the cluster and remove all of it.
	$(SUDO) $(BIN) down --purge

deps:
	@.ci/deps build

test-deps:
	@.ci/deps build test

tools: test-deps  ## The real kubectl and helm, etcd, containerd and CNI plug-ins, into target/tools.
	@.ci/tools target/tools

build: deps
	cargo build --release --package coracle

test: test-deps tools  ## All tests. Needs root for the end-to-end ones.
	cargo build --workspace --all-targets
	CORACLE_BIN=$(abspath $(TESTED)) CORACLE_TOOLS=$(abspath target/tools) cargo test --workspace --all-targets --no-fail-fast

test-examples: test-deps tools  ## The examples, which are workspaces of their own and no part of `make test`.
	cargo build --workspace --bin coracle
	CORACLE_TOOLS=$(abspath target/tools) $(MAKE) -C examples/node-images test CORACLE_BIN=$(abspath $(TESTED))

lint:
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	cargo xtask tidy

bench: test-deps tools  ## Measure; with ETCD, KUBE_APISERVER (and KUBE_SCHEDULER, KUBE_CONTROLLER_MANAGER) set, upstream too.
	cargo build --release --package coracle --package coracle-bench
	$(SUDO) $(if $(SUDO),--preserve-env=ETCD$(comma)KUBE_APISERVER$(comma)KUBE_SCHEDULER$(comma)KUBE_CONTROLLER_MANAGER) $(BENCH) compare \
	  --coracle $(abspath $(BIN)) --commit "$$(git describe --always --dirty)" \
	  --results bench/RESULTS.md --json bench/results.jsonl $(BENCH_FLAGS)

install: build
	$(SUDO) install -m 0755 $(BIN) /usr/local/bin/coracle

clean:
	cargo clean
