# To be sourced: what no line of dmesg may have after a test, as an extended regular expression.
# shellcheck shell=bash disable=SC2034
trouble='WARNING|BUG|Oops|general protection|Call Trace|INFO: (task|rcu|possible)|KASAN|refcount_t'
