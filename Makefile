# `make` lists what there is.

.DEFAULT_GOAL := help
.PHONY: help setup build test check bench-repair bench-allocate bench-routes bench-watchers simulate fuzz demo demo-down ci

profile := $(if $(RELEASE),release,debug)

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## Install what building and testing need, where it is missing
	@.ci/setup

build: setup ## Build flanneld (RELEASE=1: optimised, takes minutes)
	cargo build $(if $(RELEASE),--release)

test: setup ## Run every test (as root: hosts are network namespaces, etcd is real)
	cargo test

check: setup ## Check the format and the lints
	cargo fmt --check
	cargo clippy --all-targets -- -D warnings

bench-repair: setup ## Time repairs and joins, as root (ARGS="--peers 10 --join 0": less of it)
	cargo bench --bench repair -- $(ARGS)

bench-allocate: setup ## Time the choice of a subnet among 65,536, and listings of 100,000 leases
	cargo bench --bench allocate -- $(ARGS)

bench-routes: setup ## Time the kernel's tables for each shape of routes, as root (ARGS="--peers 10000": less of it)
	cargo bench --bench routes -- $(ARGS)

bench-watchers: setup ## Time etcd's fan-out to up to 5,000 watching hosts, as root (ARGS="--watchers 100": less of it)
	cargo bench --bench watchers -- $(ARGS)

simulate: setup ## Let SEEDS (300) clusters live through anything, from seed START (1)
	cargo bench --bench simulate -- --seeds $(or $(SEEDS),300) --start $(or $(START),1)

fuzz: setup ## Fuzz each reader of foreign data for FUZZ_SECONDS (20), or only TARGET
	@fuzz/run $(TARGET)

demo: build ## Show three hosts join one overlay (KEEP=1: leave it standing)
	@FLANNELD=$${FLANNELD:-target/$(profile)/flanneld} examples/demo/demo.sh

demo-down: ## Remove the demos that were left standing
	@examples/demo/demo.sh down

ci: ## Do all that must hold before a change goes in
	@.ci/run
