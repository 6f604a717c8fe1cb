# Sourced after cache.sh: what Kbuild needs for Rust, as `.ci/install kernel` sets it up.
# shellcheck shell=bash disable=SC2154

rust_version=$(rustc --version 2>/dev/null | awk '{ print $2 }') || rust_version=

# rust_library: the directory of the standard library's source that belongs to this rustc, or nothing.
rust_library() {
    local dir
    for dir in "$(rustc --print sysroot)/lib/rustlib/src/rust/library" "$cache/rust-src-$rust_version/library"; do
        if [ -e "$dir/core/src/lib.rs" ]; then echo "$dir"; return; fi
    done
}

# kernel_rust_environment: for `make` of a kernel or of a module: bindgen, its libclang, the library's source.
kernel_rust_environment() {
    PATH="$cache/tools/bin:$PATH"
    LIBCLANG_PATH=/usr/lib/llvm-19/lib
    RUST_LIB_SRC=$(rust_library)
    export PATH LIBCLANG_PATH RUST_LIB_SRC
}
