//! What killed processes left behind.

use std::fs;
use std::path::Path;

use super::namespace::{NAMES, delete};

/// How the names of all labs begin; then the process that owns it.
pub(super) const PREFIX: &str = "tandem-";

/// Removes the namespaces of labs whose process is no more. Labs of living processes stay.
pub fn sweep() {
    let Ok(names) = fs::read_dir(NAMES) else { return };
    for name in names.flatten().filter_map(|entry| entry.file_name().into_string().ok()) {
        if owner(&name).is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists()) {
            delete(&name);
        }
    }
}

/// The process in the name of a lab's namespace: `tandem-PID-NUMBER-LETTER`.
fn owner(name: &str) -> Option<u32> {
    let mut parts = name.strip_prefix(PREFIX)?.split('-');
    let pid = parts.next()?.parse().ok()?;
    parts.next()?.parse::<u32>().ok()?;
    let letter = parts.next()?;
    (letter.len() == 1 && parts.next().is_none()).then_some(pid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_labs_have_an_owner() {
        assert_eq!(owner("tandem-12-0-c"), Some(12));
        for other in
            ["tandem", "tandem-", "tandem-12", "tandem-x-0-c", "tandem-12-0-cc", "tandem-12-0-c-1", "a-1-0-c"]
        {
            assert_eq!(owner(other), None, "{other}");
        }
    }
}
