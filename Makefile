# Tandem's targets. `make` alone lists them.
# Slow things (kernel, initramfs, tools) are kept in $TANDEM_CACHE (default ~/.cache/tandem), outside this checkout.

CARGO ?= cargo
GUEST := $(wildcard vmm/guest/Cargo.toml)
# The runner that shows each test's time, where it is installed.
TEST_RUNNER := $(shell $(CARGO) nextest --version >/dev/null 2>&1 && echo nextest run --no-fail-fast || echo test --no-fail-fast)

# Where cargo puts what it builds.
BUILT := $(or $(CARGO_TARGET_DIR),target)/release
# Where what the feature `rdma` needs is installed (.ci/install rdma): libclang 14 for rdma-sys.
LIBCLANG_14 := /usr/lib/llvm-14/lib
RDMA := $(shell pkg-config --exists libibverbs librdmacm 2>/dev/null && ls $(LIBCLANG_14)/libclang.so 2>/dev/null)
# Of `make torture`.
RUNS ?= 200
# Of `make fuzz`, for each target.
FUZZ_SECONDS ?= 60

.PHONY: help bench bench-channel bench-linux bench-paper bench-peers build demo demo-linux torture fuzz lint kernel initramfs
.PHONY: test test-host test-guest test-loom test-linux kmod test-kernel test-kernel-debug test-vmx test-rdma

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

build: ## release build of everything
	.ci/install base
	$(CARGO) build --release --workspace

demo: ## a protected pair on this machine: what it costs, and that it outlives its primary
	.ci/install base
	@$(CARGO) build --quiet --release --package tandem-vmm --package tandem-tests
	@$(BUILT)/tandem-demo

demo-linux: ## the same with a Linux guest; where KVM cannot run one, inside virtme-ng
	.ci/install kernel
	tests/linux/build-kernel
	tests/linux/initramfs
	@$(CARGO) build --quiet --release --package tandem-vmm --package tandem-tests
	@$(BUILT)/tandem-demo --guest linux

torture: ## RUNS=200 pairs, one random fault each, a client that checks; SEED=n repeats
	.ci/install base
	@$(CARGO) build --quiet --release --package tandem-vmm --package tandem-tests
	@$(BUILT)/tandem-torture --runs $(RUNS) $(if $(SEED),--seed $(SEED))

bench: ## the figures, as ratios: the log channel, and the pair against the same VM alone
	.ci/install base
	@$(CARGO) build --quiet --release --package tandem-vmm --package tandem-bench
	@$(BUILT)/tandem-bench channel --throughput-turns 0 --pairs 0
	@$(BUILT)/tandem-bench pair

bench-channel: ## the log channel: against iperf3 and a bare ping-pong, the output delay of a pair; and RDMA where it is installed
	.ci/install bench
	@$(CARGO) build --quiet --release --package tandem-vmm --package tandem-bench
	@$(BUILT)/tandem-bench channel --option-turns 5 --picture $(BUILT)/output-delay.svg $(if $(RDMA),--rdma)

bench-linux: ## the figures of a Linux guest; where KVM cannot run one, inside virtme-ng
	.ci/install kernel
	tests/linux/build-kernel
	tests/linux/initramfs
	@$(CARGO) build --quiet --release --package tandem-vmm --package tandem-bench
	@$(BUILT)/tandem-bench linux

bench-paper: ## the paper's tables with a Linux guest; QUICK=1: under five minutes; report in target/bench
	.ci/install kernel
	tests/linux/build-kernel
	tests/linux/bench-guest
	@$(CARGO) build --quiet --release --package tandem-vmm --package tandem-bench
	@$(BUILT)/tandem-bench paper --qemu $(if $(QUICK),--quick)

bench-peers: ## the same guest on QEMU: same KVM, and its recorder; QUICK=1 for a short run
	.ci/install kernel
	tests/linux/build-kernel
	tests/linux/bench-guest
	@$(CARGO) build --quiet --release --package tandem-vmm --package tandem-bench
	@$(BUILT)/tandem-bench peers $(if $(QUICK),--quick)

fuzz: ## FUZZ_SECONDS=60 for each fuzz target; needs cargo-fuzz and a nightly compiler
	tests/fuzz $(FUZZ_SECONDS)

lint: ## rustfmt, clippy and rustdoc without a warning; the fuzz targets compile
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings
ifneq ($(RDMA),)
	LIBCLANG_PATH=$(LIBCLANG_14) $(CARGO) clippy --package tandem-logchan --package tandem-bench --features rdma --all-targets -- -D warnings
endif
	$(CARGO) check --manifest-path logchan/fuzz/Cargo.toml
	$(CARGO) check --manifest-path vmm/fuzz/Cargo.toml
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps
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

test: test-host test-guest test-loom test-linux test-kernel test-rdma ## all tests; what cannot run says "skipped: why"

test-host: ## unit, property, simulation and model tests of the workspace
	$(CARGO) $(TEST_RUNNER) --workspace
	$(CARGO) test --workspace --doc

test-guest: ## the embedded guest's own tests, on this machine
ifneq ($(GUEST),)
	$(CARGO) test --manifest-path $(GUEST)
endif

test-loom: ## the channel's and the module's rings under loom
	RUSTFLAGS="--cfg loom" $(CARGO) test --release --package tandem-logchan --package tandem-kmod-brain --test loom --target-dir target/loom

test-linux: ## the Linux guest under QEMU and virtme-ng: record, replay, a pair that loses its primary, and its disk
	$(CARGO) build --release --package tandem-vmm --package tandem-tests
	tests/linux/check

kmod: ## the kernel module, for the test kernel (for your own: make -C kmod KDIR=...)
	.ci/install kernel
	tests/linux/build-kernel
	tests/kmod/build-module

test-kernel: ## the kernel module: under virtme-ng, and on VT-x where .ci/install vmx was run
	$(CARGO) build --release --package tandem-vmm --package tandem-tests --package tandem-bench
	tests/kmod/both

test-kernel-debug: ## the module under lockdep and KASAN (builds a second kernel the first time: 15 minutes)
	.ci/install debug
	tests/linux/build-kernel --debug
	$(CARGO) build --release --package tandem-tests
	tests/kmod/check-debug

test-vmx: ## of the kernel module's tests, those on VT-x alone, in Bochs (15 minutes; needs .ci/install vmx)
	$(CARGO) build --release --package tandem-vmm --package tandem-tests --package tandem-bench
	tests/kmod/check-vmx

test-rdma: ## the RDMA transport over soft RoCE, under virtme-ng; needs .ci/install rdma
	tests/rdma/check
