# Sourced: Debian packages from suites that the machine itself does not follow, without changing the machine's sources.
# shellcheck shell=bash disable=SC2154

debian_release() { . /etc/os-release && echo "${VERSION_CODENAME:-unknown}"; }

# own_sources: "URI SUITE" for each Debian suite from which this machine takes its own release.
own_sources() {
    apt-get indextargets --no-release-info --format '$(REPO_URI) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' |
        awk -v release="$(debian_release)" '
            $2 ~ "^" release "(-updates|-security)?$" && $3 == "main" && !seen[$1 $2]++ { print $1, $2 }'
}

# apt_with NAME SUITE...: makes apt, from here on in this shell, use a configuration of its own: the machine's own Debian
# suites and these, from the same mirror; lists and cache under $cache/apt/NAME. What is installed stays one knowledge.
apt_with() {
    local name=$1 dir="$cache/apt/$1" mirror suite
    shift
    mirror=$(own_sources | awk -v release="$(debian_release)" '$2 == release && !seen++ { print $1 }')
    [ -n "$mirror" ] || die "no Debian mirror for $(debian_release) in the machine's apt sources: Tandem's set-up is for Debian 12"
    mkdir -p "$dir/lists/partial" "$dir/cache/archives/partial"
    {
        own_sources
        for suite in "$@"; do echo "$mirror $suite"; done
    } | sed 's#.*#deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] & main#' >"$dir/sources.list"
    cat >"$dir/apt.conf" <<EOF
Dir::Etc::sourcelist "$dir/sources.list";
Dir::Etc::sourceparts "-";
Dir::State "$dir";
Dir::State::status "/var/lib/dpkg/status";
Dir::State::extended_states "/var/lib/apt/extended_states";
Dir::Cache "$dir/cache";
Acquire::GzipIndexes "true";
APT::Sandbox::User "root";
DPkg::Lock::Timeout "600";
EOF
    export APT_CONFIG="$dir/apt.conf"
    apt-get update -qq || die "apt-get update failed for the suites $* of $mirror ($name)"
}

# unpack_package PACKAGE[=VERSION] INTO [PATH-IN-PACKAGE...]: downloads a package and unpacks it into a directory.
unpack_package() {
    local package=$1 into=$2 scratch
    shift 2
    scratch=$(mktemp -d "$cache/tmp.XXXXXX")
    (cd "$scratch" && apt-get download -qq "$package") || { rm -rf "$scratch"; die "apt has no $package"; }
    mkdir -p "$into"
    dpkg-deb --fsys-tarfile "$scratch"/*.deb | tar -C "$into" -x "$@"
    rm -rf "$scratch"
}
