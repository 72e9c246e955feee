//! The operator's command line: one binary, `reseal`.
//!
//! In reading order:
//! - `args`: every command and its help.
//! - `exit`: exit codes, and errors for a person.
//! - `credentials`, `client`: who the operator is, and the way to the coordinator.
//! - `file`: what the CLI writes for the operator.
//! - `selection`, `when`: what operators write: installations, times, durations.
//! - `view`, `output`: what programs and people get.
//! - `server`, `status`, `operator`, `policy`, `host`, `certs`, `findings`, `authority`,
//!   `trust`, `audit`: one module per noun.
//! - `adopt`: what was discovered becomes managed.
//! - `rotation`: plan, rotate, watch, control, evidence: the incident.
//!
//! It calls the coordinator over gRPC; only `init`, `serve` and the offline
//! `store` commands reach the server's modules. It decides nothing about a fleet.

mod adopt;
mod args;
mod audit;
mod authority;
mod certs;
mod client;
pub(crate) mod credentials;
pub(crate) mod exit;
#[cfg(test)]
mod fake;
pub(crate) mod file;
mod findings;
mod host;
mod operator;
mod output;
mod policy;
mod restore;
mod rotation;
mod selection;
mod server;
mod status;
mod trust;
mod view;
mod when;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser as _};
use reseal_proto::telemetry;
use tracing::Instrument as _;

use args::{Cli, Command};
use client::Client;
use exit::{CliError, Exit};
use output::Output;
use output::text::Text;

/// What every command gets.
struct Context {
    out: Output,
    credentials: Option<PathBuf>,
}

impl Context {
    async fn connect(&self) -> Result<Client, CliError> {
        Client::connect(self.credentials.as_deref()).await
    }
}

/// Runs the command of this process's arguments.
pub fn main() -> ExitCode {
    // A crash must leave no key in a core file.
    let none = rustix::process::Rlimit { current: Some(0), maximum: Some(0) };
    let _ = rustix::process::setrlimit(rustix::process::Resource::Core, none);
    reseal_proto::channel::install_crypto();
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: cannot start the runtime: {error}");
            return Exit::Error.into();
        }
    };
    let exit = runtime.block_on(run(cli));
    // A question that still waits on standard input must not hold the process.
    runtime.shutdown_background();
    exit.into()
}

async fn run(cli: Cli) -> Exit {
    let telemetry = match telemetry_of(&cli.command) {
        Ok(guard) => guard,
        Err(error) => return failed(&error),
    };
    let context = Context { out: Output::stdout(cli.output), credentials: cli.credentials };
    let span = tracing::info_span!("reseal", command = cli.command.name());
    let result = dispatch(&context, cli.command).instrument(span).await;
    drop(telemetry);
    match result {
        Ok(exit) => exit,
        Err(error) => failed(&error),
    }
}

/// The server sets up its own telemetry from its configuration; a command is a
/// client, and exports its span only when the environment names a collector.
fn telemetry_of(command: &Command) -> Result<Option<telemetry::Guard>, CliError> {
    if matches!(command, Command::Serve(_) | Command::Init(_) | Command::Completions { .. }) {
        return Ok(None);
    }
    let endpoint = std::env::var("OTEL_EXPORTER_OTLP_ENDPOINT").ok().filter(|url| !url.is_empty());
    let settings = telemetry::Settings {
        service: "reseal",
        level: "warn,reseal::cli=info".into(),
        format: telemetry::LogFormat::Text,
        otlp_endpoint: endpoint,
        sample_ratio: 1.0,
    };
    telemetry::init(&settings).map(Some).map_err(|error| CliError::Other(error.into()))
}

async fn dispatch(context: &Context, command: Command) -> Result<Exit, CliError> {
    match command {
        Command::Init(args) => server::init(context, args).await,
        Command::Serve(args) => server::serve(args).await,
        Command::Store(command) => server::store(context, command).await,
        Command::Status => status::run(context).await,
        Command::Operator(command) => operator::run(context, command).await,
        Command::Policy(command) => policy::run(context, command).await,
        Command::Host(command) => host::run(context, command).await,
        Command::Certs(args) => certs::run(context, args).await,
        Command::Findings(args) => findings::run(context, args).await,
        Command::Adopt(args) => adopt::run(context, args).await,
        Command::Plan(args) => rotation::plan::run(context, args).await,
        Command::Rotate(args) => rotation::rotate::run(context, args).await,
        Command::Rotation(command) => rotation::run(context, command).await,
        Command::Evidence(command) => rotation::evidence::run(context, command),
        Command::Authority(command) => authority::run(context, command).await,
        Command::Trust(command) => trust::run(context, command).await,
        Command::Audit(command) => audit::run(context, command).await,
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "reseal", &mut script);
            output::write(&String::from_utf8_lossy(&script))?;
            Ok(Exit::Done)
        }
    }
}

fn failed(error: &CliError) -> Exit {
    // A pager that was closed is no error worth words.
    if let CliError::Output(io) = error
        && io.kind() == std::io::ErrorKind::BrokenPipe
    {
        return Exit::Error;
    }
    eprintln!("{}", error.for_person());
    error.exit()
}

/// Says that something small is done: a sentence for people, the event for programs.
fn done(context: &Context, event: &str, name: &str, noun: &str, what: &str) -> Result<(), CliError> {
    let view = serde_json::json!({"event": event, "name": name});
    context.out.one(&view, &["event", "name"], || Text::new().line(format!("{noun} {name} {what}")))
}
