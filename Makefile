# `make` lists what there is.

.DEFAULT_GOAL := help
.PHONY: help setup setup-build build test test-kernels check bench bench-repair bench-dataplane bench-allocate bench-hostile bench-routes bench-watchers simulate fuzz install uninstall deb cargo-deb static manual demo demo-down ci

profile := $(if $(RELEASE),release,debug)
# Where cargo builds.
target := $(or $(CARGO_TARGET_DIR),target)

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## Install what building and testing need, where it is missing
	@.ci/setup

# A host that only builds needs neither etcd nor Docker.
setup-build:
	@.ci/setup --to-build

build: setup-build ## Build flanneld (RELEASE=1: optimised, takes minutes)
	cargo build $(if $(RELEASE),--release)

test: setup cargo-deb ## Run every test (as root: hosts are network namespaces, etcd is real)
	cargo test --workspace --no-fail-fast
	@$(MAKE) --no-print-directory test-kernels

# The first run fetches the kernels, 360 MB, into ~/.cache/flanneld-test.
test-kernels: setup cargo-deb ## Run tests under the kernels 5.10, 6.1, 6.12 and 7 in qemu, as root (KERNELS="6.1 package": less of it)
	cargo test --test kernels -- $(KERNELS)

check: setup ## Check the format and the lints
	cargo fmt --check
	cargo clippy --workspace --all-targets -- -D warnings

# Builds and starts a campaign of lab/, after the flanneld that the campaign starts, if it starts one. Paths in its
# arguments are relative to this directory.
campaign = cargo build --profile lab -p flanneld-lab --bin $(1) $(if $(2),-p $(2) --bin $(2)) && $(target)/lab/$(1)

bench: setup ## Measure flanneld with 10 to 50,000 peers, as root, for an hour (PEER=PATH: beside another; ARGS="--rounds 1": less)
	cargo build --release
	$(call campaign,scale) --flanneld ours=$(target)/release/flanneld $(if $(PEER),--flanneld peer=$(abspath $(PEER))) $(ARGS)

bench-repair: setup ## Time repairs and joins, as root (ARGS="--peers 10 --join 0": less of it)
	$(call campaign,repair,flanneld) $(ARGS)

bench-dataplane: setup ## Compare data paths: ours, by hand, and what can be chosen (installs iperf3; ARGS="--only rules --rounds 3")
	@.ci/setup iperf3
	$(call campaign,dataplane,flanneld) $(ARGS)

bench-allocate: setup ## Time the choice of a subnet among 65,536, and listings of 100,000 leases
	$(call campaign,allocate) $(ARGS)

bench-hostile: setup-build ## Print the CPU of one more event among 10,000 and 50,000 hostile leases (ARGS="--only MAC": less of it)
	$(call campaign,hostile) $(ARGS)

bench-routes: setup ## Time the kernel's tables for each shape of routes, as root (ARGS="--peers 10000": less of it)
	$(call campaign,routes) $(ARGS)

bench-watchers: setup ## Time etcd's fan-out to up to 5,000 watching hosts, as root (ARGS="--watchers 100": less of it)
	$(call campaign,watchers) $(ARGS)

simulate: setup ## Run SEEDS (300) simulated clusters through random faults, from seed START (1)
	$(call campaign,simulate) --seeds $(or $(SEEDS),300) --start $(or $(START),1)

fuzz: setup ## Fuzz each reader of foreign data for FUZZ_SECONDS (20), or only TARGET
	@fuzz/run $(TARGET)

deb: setup-build cargo-deb ## Make a Debian package of an optimised build, in target/debian
	@.ci/setup --to-build dpkg-shlibdeps:dpkg-dev
	cargo deb --locked

# The flag is for the program alone: what it is linked with is the same as for the other build, and is not built again.
static: setup-build ## Build a flanneld that needs no libc of the host: target/static/release/flanneld (PROFILE=dev: unoptimised)
	CARGO_BUILD_BUILD_DIR=$(CURDIR)/target cargo rustc --locked --bin flanneld --profile $(or $(PROFILE),release) \
	  --target-dir target/static -- -C target-feature=+crt-static

# As cheap as it can be had, and only where a package is made.
cargo-deb:
	@cargo deb --version >/dev/null 2>&1 || cargo install cargo-deb@3.8.0 --locked --debug --no-default-features

# Not as root, and not again: installing builds nothing.
install: ## Install what was built below PREFIX (/usr/local), packages: DESTDIR=... PREFIX=/usr (more: packaging/install)
	@packaging/install

uninstall: ## Remove what `make install` has installed; the configuration stays
	@packaging/install --remove

export DESTDIR PREFIX CONFIG ZSHDIR BINARY

manual: setup ## Write the manual pages and the completions anew, after a change of the command line
	WRITE_MANUAL=1 cargo test --quiet --test install the_manual_and_the_completions

demo: setup build ## Show three hosts join one overlay (KEEP=1: leave it standing)
	@FLANNELD=$${FLANNELD:-$(target)/$(profile)/flanneld} examples/demo/demo.sh

demo-down: ## Remove the demos that were left standing
	@examples/demo/demo.sh down

ci: ## Do all that must hold before a change goes in
	@.ci/run
