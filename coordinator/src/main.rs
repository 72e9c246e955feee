//! `reseal`: the coordinator, and the operator's command line.
//!
//! Everything is in the library; `reseal::cli` is where it begins.

fn main() -> std::process::ExitCode {
    reseal::cli::main()
}
