//! A pair without a VM, for tests of the lab and of the torture.

fn main() -> std::process::ExitCode {
    tandem_tests::standin::main()
}
