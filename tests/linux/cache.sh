# Sourced by the scripts beside it: where slow things are kept, and how they are made once.
# shellcheck shell=bash

# Everything that takes long to make lives here, outside every checkout, under a name that holds the hash of what it
# was made from. Nothing in it is precious: removing the directory costs time only.
cache=${TANDEM_CACHE:-$HOME/.cache/tandem}

# Progress and errors go to stderr: the last line of stdout is the result.
say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }
die() { say "$*"; exit 1; }

# The first 16 hex digits of the SHA-256 of stdin: the key of a thing in the cache.
key() { sha256sum | cut -c1-16; }

# A file without comments and blank lines: editing a comment must not rebuild a kernel.
uncommented() { sed -e 's/^[[:space:]]*#.*$//' -e '/^[[:space:]]*$/d' "$1"; }

# locked NAME: holds the lock NAME of the cache until this script ends; waits for whoever holds it.
locked() {
    mkdir -p "$cache"
    exec {lock_fd}>"$cache/$1.lock"
    if ! flock --nonblock "$lock_fd"; then
        say "another one is making $1: waiting for it"
        flock "$lock_fd"
    fi
}
