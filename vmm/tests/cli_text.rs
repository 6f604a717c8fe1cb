//! The real `tandem`: help, completions, man pages, config mistakes, exit status.
#![allow(clippy::unwrap_used, reason = "all of it is test code, the functions around the tests too")]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use tandem_vmm::host::config::Config;

fn tandem(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tandem"));
    command.args(args).env_remove("RUST_LOG").output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn help_says_what_it_is_where_to_start_and_what_the_exit_status_means() {
    let output = tandem(&["--help"]);
    assert!(output.status.success());
    let text = stdout(&output);
    for expected in [
        "keeps a virtual machine running when the host under it dies",
        "tandem check",
        "tandem replay vm.toml run.log --verify",
        "3  replay found that the run diverged",
        "--log-format",
    ] {
        assert!(text.contains(expected), "{expected:?} is not in:\n{text}");
    }
    assert!(!text.contains("probe"), "an internal command is shown:\n{text}");
}

#[test]
fn every_command_has_help_with_its_arguments() {
    for (command, expected) in [
        ("run", "CONFIG"),
        ("record", "--stop-after"),
        ("replay", "--verify"),
        ("primary", "--tap"),
        ("backup", "--control"),
        ("demo", "--linux"),
        ("check", "--json"),
        ("status", "SOCKET"),
        ("failover", "SOCKET"),
        ("arbiter", "claim"),
        ("completions", "zsh"),
        ("man", "--dir"),
    ] {
        let output = tandem(&[command, "--help"]);
        assert!(output.status.success(), "{command}");
        assert!(stdout(&output).contains(expected), "{command}: {}", stdout(&output));
    }
}

#[test]
fn a_wrong_command_line_ends_with_two_and_a_hint() {
    let output = tandem(&["statsu", "x"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("'status'"), "{}", stderr(&output));
    assert!(!stderr(&tandem(&["prob"])).contains("probe"), "an internal command is suggested");
    assert_eq!(tandem(&[]).status.code(), Some(2));
    assert_eq!(tandem(&["record", "vm.toml"]).status.code(), Some(2));
}

#[test]
fn config_mistakes_name_file_line_and_key_and_end_with_one() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("vm.toml");
    fs::write(&file, "name = \"demo\"\n\n[machine]\nmemory_mib = 1\nkernle = \"embedded\"\n").unwrap();
    let file = file.to_str().unwrap();
    for command in
        [&["run", file][..], &["record", file, "--log", "/dev/null"], &["primary", file], &["check", file]]
    {
        let output = tandem(command);
        assert_eq!(output.status.code(), Some(1), "{command:?}");
        assert_eq!(
            stderr(&output),
            format!(
                "error: {file}:4: machine.memory_mib: 1 is out of range: 16 to 65536\n       \
                 {file}:5: machine.kernle: unknown key; did you mean `kernel`?\n"
            ),
            "{command:?}"
        );
        assert_eq!(stdout(&output), "");
    }
}

#[test]
fn a_pair_needs_its_section_and_an_override_needs_its_card() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("vm.toml");
    fs::write(&file, "name = \"demo\"\n").unwrap();
    let file = file.to_str().unwrap();
    let output = tandem(&["backup", file]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).starts_with(&format!("error: {file}: [pair]: missing")), "{}", stderr(&output));
    let output = tandem(&["run", file, "--tap", "tap9"]);
    assert!(stderr(&output).contains("0 cards in the file, but --tap given 1 times"), "{}", stderr(&output));
    let output = tandem(&["run", file]);
    assert!(stderr(&output).contains("the embedded guest needs an address"), "{}", stderr(&output));
    let output = tandem(&["run", "/nonexistent/vm.toml"]);
    assert!(
        stderr(&output).contains("/nonexistent/vm.toml: cannot read the config file"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn completions_for_each_shell_name_the_commands() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = tandem(&["completions", shell]);
        assert!(output.status.success(), "{shell}");
        assert!(stdout(&output).contains("failover"), "{shell}");
        assert!(!stdout(&output).contains("probe"), "{shell} completes what is not for people");
    }
    let script = stdout(&tandem(&["completions", "bash"]));
    let bash = Command::new("bash").args(["-n", "-c", &script]).status().unwrap();
    assert!(bash.success(), "bash does not parse its completions");
}

#[test]
fn man_pages_are_printed_and_written() {
    let output = tandem(&["man"]);
    assert!(stdout(&output).contains(".TH tandem 1"), "{}", stdout(&output));
    let dir = tempfile::tempdir().unwrap();
    let pages = dir.path().join("man1");
    assert!(tandem(&["man", "--dir", pages.to_str().unwrap()]).status.success());
    let mut names: Vec<_> = fs::read_dir(&pages)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert!(
        names.contains(&"tandem.1".to_owned()) && names.contains(&"tandem-record.1".to_owned()),
        "{names:?}"
    );
    assert!(!names.iter().any(|name| name.contains("probe")), "{names:?}");
    let page = fs::read_to_string(pages.join("tandem-record.1")).unwrap();
    assert!(page.contains("stop\\-after"), "{page}");
}

#[test]
fn output_that_nobody_reads_is_no_error() {
    let tandem = env!("CARGO_BIN_EXE_tandem");
    let script =
        format!("set -o pipefail; for i in $(seq 20); do '{tandem}' completions bash; done | head -c 1");
    let output = Command::new("bash").args(["-c", &script]).output().unwrap();
    assert!(!stderr(&output).contains("panicked"), "{}", stderr(&output));
    assert!(!stderr(&output).contains("error"), "{}", stderr(&output));
}

#[test]
fn the_examples_of_the_documents_are_configs() {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut examples = 0;
    for document in ["README.md", "docs/cli.md"] {
        let text = fs::read_to_string(top.join(document)).unwrap();
        for block in text.split("```toml\n").skip(1) {
            let example = block.split("```").next().unwrap();
            if let Err(error) = Config::parse(example, Path::new(document)) {
                panic!("{error}\nin this example of {document}:\n{example}");
            }
            examples += 1;
        }
    }
    assert!(examples >= 2, "the documents have lost their examples");
}
