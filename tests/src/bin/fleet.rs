//! `fleet`: drives `deploy/demo`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use reseal_tests::clean::{Which, leftovers};
use reseal_tests::demo::{self, Options};
use reseal_tests::{machine, process};

/// Three real Docker hosts on this machine, a compromised CA, and a fleet resealed
#[derive(Parser)]
#[command(name = "deploy/demo", args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Step>,
    /// Leave the fleet up at the end and say what to try next
    #[arg(long)]
    keep: bool,
    /// Write the summary as JSON, too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Step {
    /// Take down the fleets that were kept, or left by a run that was killed
    Clean,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    process::catch_signals();
    match run(arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(_) if process::interrupted() => {
            eprintln!("\ninterrupted: everything is taken down");
            ExitCode::from(130)
        }
        Err(error) => {
            eprintln!("\nerror: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<bool> {
    machine::require_root()?;
    if let Some(Step::Clean) = arguments.command {
        let gone = leftovers(Which::AbandonedAndKept)?;
        println!("{} fleet(s) taken down", gone.len());
        return Ok(true);
    }
    let options = Options { keep: arguments.keep, json: arguments.json };
    demo::run(&options)
}
