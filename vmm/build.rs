//! Builds the embedded guest (`vmm/guest`, a crate of its own) into `OUT_DIR/guest.elf`.
//!
//! The image is part of a VM's identity, so its bytes must not depend on where it is built: all flags are
//! given here, none are inherited, and no path gets into it.

use std::env::{self, VarError};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// No other target need be installed: the guest brings its own start-up, and links nothing.
const TARGET: &str = "x86_64-unknown-linux-gnu";

const FLAGS: &[&str] = &[
    "-Crelocation-model=static",
    "-Ccode-model=small",
    "-Cforce-unwind-tables=no",
    "-Ctarget-cpu=x86-64",
    "-Clink-arg=-nostartfiles",
    "-Clink-arg=-nostdlib",
    "-Clink-arg=-static",
    "-Clink-arg=-no-pie",
    // Relative to the guest's folder, where rustc runs.
    "-Clink-arg=-Wl,-T,link.ld,--build-id=none,-z,max-page-size=4096,--gc-sections",
];

/// What the nested cargo may know of the outer one: where to get crates from, and jobs to share.
const KEPT: &[&str] = &[
    "CARGO_HOME",
    "CARGO_HTTP_",
    "CARGO_NET_",
    "CARGO_REGISTRIES_",
    "CARGO_REGISTRY_",
    "CARGO_SOURCE_",
    "CARGO_MAKEFLAGS",
];

/// Variables beside `CARGO_*` that would change how the guest is compiled.
const DROPPED: &[&str] = &[
    "RUSTFLAGS",
    "RUSTC_WRAPPER",
    "RUSTC_WORKSPACE_WRAPPER",
    "RUSTC_LINKER",
    "RUSTC_BOOTSTRAP",
    "TARGET",
    "HOST",
    "PROFILE",
    "OPT_LEVEL",
    "DEBUG",
    "OUT_DIR",
    "SOURCE_DATE_EPOCH",
];

fn main() -> ExitCode {
    match build() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            println!("cargo::error={message}");
            ExitCode::FAILURE
        }
    }
}

fn build() -> Result<(), String> {
    let package = PathBuf::from(variable("CARGO_MANIFEST_DIR")?);
    let out = PathBuf::from(variable("OUT_DIR")?);
    let guest = package.join("guest");
    for input in ["src", "Cargo.toml", "Cargo.lock", "link.ld"] {
        println!("cargo::rerun-if-changed=guest/{input}");
    }
    println!("cargo::rerun-if-changed=build.rs");

    let target_dir = out.join("guest-target");
    let mut cargo = Command::new(variable("CARGO")?);
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        let kept = KEPT.iter().any(|kept| text.starts_with(kept));
        if text.starts_with("CARGO") && !kept || DROPPED.contains(&&*text) {
            cargo.env_remove(&name);
        }
    }
    let status = cargo
        .current_dir(&guest)
        .args(["build", "--release", "--locked", "--bin", "tandem-guest", "--target", TARGET, "--target-dir"])
        .arg(&target_dir)
        // Goes before any flags in configuration files.
        .env("CARGO_ENCODED_RUSTFLAGS", flags(&package))
        // Empty: none, whatever configuration files say.
        .env("RUSTC_WRAPPER", "")
        .env("RUSTC_WORKSPACE_WRAPPER", "")
        .status()
        .map_err(|error| format!("cannot start cargo for the embedded guest: {error}"))?;
    if !status.success() {
        return Err(format!(
            "the embedded guest did not build ({status}); its own messages are above. To build it alone: \
             cargo build --release --manifest-path {}",
            guest.join("Cargo.toml").display()
        ));
    }
    let image = target_dir.join(TARGET).join("release/tandem-guest");
    std::fs::copy(&image, out.join("guest.elf"))
        .map_err(|error| format!("cannot copy the guest's image {}: {error}", image.display()))?;
    Ok(())
}

fn variable(name: &str) -> Result<String, String> {
    env::var(name).map_err(|error: VarError| format!("{name}: {error}; run this through cargo"))
}

/// The compiler's flags, as CARGO_ENCODED_RUSTFLAGS wants them.
fn flags(package: &Path) -> OsString {
    let mut flags: Vec<OsString> = FLAGS.iter().map(OsString::from).collect();
    let mut hide = |path: &Path, name: &str| {
        let mut flag = OsString::from("--remap-path-prefix=");
        flag.push(path);
        flag.push("=");
        flag.push(name);
        flags.push(flag);
    };
    if let Some(checkout) = package.parent() {
        hide(checkout, "/tandem");
    }
    // The folders under registry/src are named after the registry's host.
    let registries = cargo_home().and_then(|home| home.join("registry/src").read_dir().ok());
    for registry in registries.into_iter().flatten().flatten() {
        hide(&registry.path(), "/crates");
    }
    flags.join(&OsString::from("\u{1f}"))
}

fn cargo_home() -> Option<PathBuf> {
    let home = || env::home_dir().map(|home| home.join(".cargo"));
    env::var_os("CARGO_HOME").map(PathBuf::from).or_else(home)
}
