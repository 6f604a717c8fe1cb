//! How KVM translates guest addresses here: by the CPU (EPT, NPT), or by shadow page tables of its own.

use std::fs;

/// The parameters of KVM's modules that say whether the CPU translates.
const SWITCHES: [&str; 2] = ["/sys/module/kvm_intel/parameters/ept", "/sys/module/kvm_amd/parameters/npt"];

/// Whether KVM keeps shadow page tables. Where neither module says that the CPU translates, they are assumed: wrongly
/// assumed, they cost time only.
#[must_use]
pub fn shadow() -> bool {
    !SWITCHES.iter().any(|switch| fs::read_to_string(switch).is_ok_and(|value| is_on(&value)))
}

fn is_on(value: &str) -> bool {
    matches!(value.trim(), "Y" | "1")
}

#[cfg(test)]
mod tests {
    use super::is_on;

    #[test]
    fn module_parameters_are_read_as_the_kernel_writes_them() {
        assert!(is_on("Y\n") && is_on("1\n"));
        assert!(!is_on("N\n") && !is_on("0\n") && !is_on(""));
    }
}
