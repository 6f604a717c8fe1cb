//! Shell completions and man pages, made from the command line's own definition.

use std::io;
use std::path::Path;

use anyhow::Context;
use clap::CommandFactory;
use clap_complete::Shell;
use clap_mangen::Man;

use super::args::Cli;

/// Prints the completions of one shell.
pub(super) fn completions(shell: Shell, out: &mut dyn io::Write) -> anyhow::Result<()> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "tandem", &mut text);
    Ok(out.write_all(&text)?)
}

/// Prints the main man page.
pub(super) fn man(out: &mut dyn io::Write) -> anyhow::Result<()> {
    Ok(Man::new(Cli::command()).render(out)?)
}

/// Writes a man page for every command.
pub(super) fn man_pages(dir: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    clap_mangen::generate_to(Cli::command(), dir)
        .with_context(|| format!("cannot write the man pages into {}", dir.display()))
}
