//! tracing to standard error.

use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;

use super::args::{LogFormat, LoggingArgs};

/// Sets up logging for the process. `RUST_LOG` overrides the flags; one that does not parse is told and
/// ignored.
pub(super) fn set_up(args: &LoggingArgs) {
    let (filter, mistake) = match EnvFilter::try_from_default_env() {
        Ok(filter) => (filter, None),
        Err(error) => {
            let set = std::env::var_os("RUST_LOG").is_some_and(|value| !value.is_empty());
            (EnvFilter::new(directives(args)), set.then_some(error))
        }
    };
    let colours =
        io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_ansi(colours);
    let installed = match args.log_format {
        LogFormat::Text => builder.with_target(false).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    if let Err(error) = installed {
        tracing::debug!(%error, "logging is set up already");
    }
    if let Some(error) = mistake {
        tracing::warn!(%error, "RUST_LOG is ignored");
    }
}

/// Our own crates at the level asked for, everything else at warnings.
fn directives(args: &LoggingArgs) -> String {
    let level = match (args.quiet, args.verbose) {
        (true, _) => "warn",
        (false, 0) => "info",
        (false, 1) => "debug",
        (false, _) => "trace",
    };
    format!("warn,tandem_vmm={level},tandem_logchan={level},tandem_arbiter={level}")
}
