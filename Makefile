# Tandem's targets. `make` alone lists them.
# Slow things (kernel, initramfs, tools) are kept in $TANDEM_CACHE (default ~/.cache/tandem), outside this checkout.

CARGO ?= cargo
GUEST := $(wildcard vmm/guest/Cargo.toml)
# The runner that shows each test's time, where it is installed.
TEST_RUNNER := $(shell $(CARGO) nextest --version >/dev/null 2>&1 && echo nextest run --no-fail-fast || echo test --no-fail-fast)

.PHONY: help build lint kernel initramfs test test-host test-guest test-loom test-linux

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

build: ## release build of everything
	.ci/install base
	$(CARGO) build --release --workspace

lint: ## rustfmt, and clippy without a warning
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings
ifneq ($(GUEST),)
	$(CARGO) fmt --manifest-path $(GUEST) --check
	$(CARGO) clippy --manifest-path $(GUEST) --all-targets -- -D warnings
endif

kernel: ## the Linux kernel of the tests, host and guest (ten minutes the first time)
	.ci/install kernel
	tests/linux/build-kernel

initramfs: ## the Linux guest's initramfs
	.ci/install kernel
	tests/linux/initramfs

test: test-host test-guest test-loom test-linux ## all tests; what cannot run says "skipped: why"

test-host: ## unit, property, simulation and model tests of the workspace
	$(CARGO) $(TEST_RUNNER) --workspace
	$(CARGO) test --workspace --doc

test-guest: ## the embedded guest's own tests, on this machine
ifneq ($(GUEST),)
	$(CARGO) test --manifest-path $(GUEST)
endif

test-loom: ## the channel's rings under loom
	RUSTFLAGS="--cfg loom" $(CARGO) test --release --package tandem-logchan --lib --target-dir target/loom

test-linux: ## the test kernel and the Linux guest, under QEMU and virtme-ng
	tests/linux/check
