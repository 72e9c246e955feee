//! `reseal-agent`: the command line. Everything else is in the library.

use std::io::Read as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Parser, Subcommand, ValueEnum};
use reseal_agent::config::Config;
use reseal_agent::{app, doctor, scan};

/// Keeps the certificates of one Docker host renewed, and proves it.
#[derive(Parser)]
#[command(name = "reseal-agent", version, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// Configuration file [default: /etc/reseal/agent.toml when it exists]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where identity, journal and unsent results are kept [default: /var/lib/reseal-agent]
    #[arg(long, global = true, value_name = "DIR")]
    state_dir: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Command {
    /// Exchange a join token for this host's identity
    Enrol {
        /// From `reseal host invite NAME`; "-" reads it from standard input
        #[arg(env = app::TOKEN_VARIABLE, hide_env_values = true)]
        token: String,
    },
    /// Run the agent
    Run,
    /// Show every certificate on this host, what uses it and what is wrong; changes nothing
    ///
    /// Looks at what labels declare, at every file beneath the mounts of containers, into images
    /// and at listening ports. Needs no coordinator and no enrolment.
    Scan {
        #[arg(long, value_enum, default_value_t = Output::Table)]
        output: Output,
        /// The same as --output json
        #[arg(long)]
        json: bool,
        /// Show findings only
        #[arg(long)]
        findings: bool,
        /// Show only what concerns this container; may be given several times
        #[arg(long, value_name = "NAME")]
        container: Vec<String>,
    },
    /// Check whether this host can be looked after; changes nothing
    Doctor {
        #[arg(long, value_enum, default_value_t = Output::Table)]
        output: Output,
    },
}

#[derive(Clone, Copy, ValueEnum)]
enum Output {
    Table,
    Json,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    app::harden();
    // One thread is enough for a host, and small; file operations have their own.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(8)
        .thread_keep_alive(std::time::Duration::from_secs(2))
        .build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(run(arguments)),
        Err(error) => Err(anyhow::Error::new(error).context("cannot start the runtime")),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("reseal-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let config = Config::load(arguments.config.as_deref(), arguments.state_dir.as_deref())?;
    match arguments.command {
        Command::Enrol { token } => {
            let token = match token.as_str() {
                "-" => read_token()?,
                _ => token,
            };
            app::enrol(&config, &token).await?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Run => app::run(config).await.map(|()| ExitCode::SUCCESS),
        Command::Scan { output, json, findings, container } => {
            let json = json || matches!(output, Output::Json);
            let options = scan::Options { json, findings, containers: container };
            print!("{}", scan::run(&config, &options).await?);
            Ok(ExitCode::SUCCESS)
        }
        Command::Doctor { output } => {
            let (text, good) = doctor::run(&config, matches!(output, Output::Json)).await;
            print!("{text}");
            Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
    }
}

fn read_token() -> anyhow::Result<String> {
    let mut token = String::new();
    std::io::stdin()
        .take(8192)
        .read_to_string(&mut token)
        .context("cannot read the join token from standard input")?;
    Ok(token)
}
