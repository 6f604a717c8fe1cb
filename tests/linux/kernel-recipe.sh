# Sourced by build-kernel: how the kernel is made. Its text without comments is part of the key: what changes here is
# built anew.
# shellcheck shell=bash

# fetch_source INTO: Debian's newest linux-source of 7.x in INTO/build, without what an x86 build never reads.
fetch_source() {
    local into=$1 package version
    apt_with trixie-backports trixie-backports
    package=$(apt-cache search --names-only '^linux-source-7\.[0-9]+$' | awk '{ print $1 }' | sort -V | tail -n 1)
    [ -n "$package" ] || die "no linux-source-7.x in trixie-backports"
    version=$(apt-cache show --no-all-versions "$package" | awk '$1 == "Version:" { print $2 }')
    say "source: $package $version"
    unpack_package "$package" "$into" "./usr/src/$package.tar.xz"
    mkdir "$into/build"
    # Kbuild reads every Kconfig there is, so directories stay and only code goes.
    local skip=("$package/Documentation/*/*" "$package/tools/testing") dir
    for dir in sound drivers/{gpu,media,staging,net/wireless,net/ethernet} \
        arch/{alpha,arc,arm,arm64,csky,hexagon,loongarch,m68k,microblaze,mips,nios2} \
        arch/{openrisc,parisc,powerpc,riscv,s390,sh,sparc,um,xtensa}; do
        skip+=("$package/$dir/*.[chS]" "$package/$dir/*.dts" "$package/$dir/*.dtsi")
    done
    xz --decompress --stdout --threads=2 "$into/usr/src/$package.tar.xz" |
        tar -C "$into/build" -x --strip-components=1 --wildcards "${skip[@]/#/--exclude=}"
    rm -r "${into:?}/usr"
    echo "$package $version" >"$into/source-package"
}

# configure TREE CONFIG: the configuration, with every line of CONFIG in force or an error that names the lost.
configure() {
    local tree=$1 config=$2 line lost=()
    make -C "$tree" rustavailable || die "Kbuild finds no usable Rust: run .ci/install kernel"
    make -C "$tree" KCONFIG_ALLCONFIG="$config" allnoconfig || die "make allnoconfig failed"
    while read -r line; do
        if [[ $line == *=n ]]; then
            if grep -q "^${line%n}" "$tree/.config"; then lost+=("$line"); fi
        elif ! grep -qxF -- "$line" "$tree/.config"; then
            lost+=("$line")
        fi
    done < <(uncommented "$config")
    [ ${#lost[@]} = 0 ] || die "Kconfig did not keep these options: ${lost[*]}"
}

# compile TREE: image and modules. Time stamp, user and host are fixed: two builds of one tree are to be equal.
compile() {
    export KBUILD_BUILD_TIMESTAMP='1970-01-01 00:00:00 UTC' KBUILD_BUILD_USER=tandem KBUILD_BUILD_HOST=tandem KBUILD_BUILD_VERSION=1
    nice -n 10 make -C "$1" -j"${TANDEM_JOBS:-2}" all
}

# prune TREE: drops what neither booting nor building a module against the tree reads.
prune() {
    find "$1" -type f \( -name '*.o' -o -name '*.a' -o -name '.*.o.cmd' -o -name '.*.a.cmd' -o -name 'vmlinux.unstripped' \
        -o -name '.tmp_vmlinux*' \) -delete
}
