# To be sourced by the scripts of this directory, with $here set to it: what they need, or why they are skipped.

# Sets LIBCLANG_PATH for the build of rdma-sys; says in $missing what this machine lacks, or nothing.
export LIBCLANG_PATH=${LIBCLANG_PATH:-/usr/lib/llvm-14/lib}
missing=
if ! "$here/../linux/build-kernel" --path >/dev/null 2>&1; then
    missing="the test kernel is not built (make kernel)"
elif ! pkg-config --exists libibverbs librdmacm; then
    missing="libibverbs-dev and librdmacm-dev are missing (.ci/install rdma)"
elif ! [ -e /etc/libibverbs.d/rxe.driver ]; then
    missing="ibverbs-providers is missing (.ci/install rdma)"
elif ! [ -e "$LIBCLANG_PATH/libclang.so" ] && ! [ -e "$LIBCLANG_PATH/libclang.so.1" ]; then
    missing="no libclang in $LIBCLANG_PATH (.ci/install rdma)"
elif ! command -v rdma >/dev/null && ! [ -x /usr/sbin/rdma ] && ! [ -x /sbin/rdma ]; then
    missing="the program rdma is missing (apt-get install iproute2)"
fi
# The modules of soft RoCE and its network, for virtme-ng.
modules="veth ib_uverbs rdma_ucm rdma_rxe"
