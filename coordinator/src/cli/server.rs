//! `reseal init`, `serve` and `store`: the commands that run where the store is.

use std::path::PathBuf;

use anyhow::Context as _;

use clap::{Args, Subcommand};
use reseal_proto::telemetry::traced;
use reseal_proto::v1;

use super::Context;
use super::exit::{CliError, Exit};
use super::file::NewFile;
use super::output::text::{Piece, Text};
use crate::config::Config;
use crate::store::Store;

/// What a new fleet needs.
#[derive(Args, Debug)]
#[command(
    after_help = "Example:\n  reseal init --config /etc/reseal/reseal.toml --fleet demo --admin-out ~/.config/reseal/operator.json\n\
    Then move the root's key offline, and start `reseal serve`."
)]
pub(crate) struct InitArgs {
    /// The coordinator's configuration
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Name of the fleet; part of every identity, never changed
    #[arg(long, value_name = "NAME")]
    fleet: String,
    /// Name of the first admin
    #[arg(long, default_value = "admin", value_name = "NAME")]
    admin: String,
    /// Where the first admin's credentials go, mode 0600
    #[arg(long, value_name = "FILE")]
    admin_out: PathBuf,
    /// Where the managed root's wrapped key goes [default: DATA_DIR/offline/root.key]
    #[arg(long, value_name = "FILE")]
    root_key_out: Option<PathBuf>,
}

/// How to run the coordinator.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  reseal serve --config /etc/reseal/reseal.toml --check")]
pub(crate) struct ServeArgs {
    /// The coordinator's configuration
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Only check the configuration, and say all that is wrong with it
    #[arg(long)]
    check: bool,
}

/// The store.
#[derive(Subcommand, Debug)]
pub(crate) enum StoreCommand {
    /// Write the whole store to a file; CA keys stay wrapped (admin)
    #[command(
        after_help = "Examples:\n  reseal store export --file backup.reseal                        from the running coordinator\n  \
        reseal store export --config reseal.toml --file backup.reseal   from a stopped one"
    )]
    Export {
        /// Where it goes; an existing file is never overwritten
        #[arg(long, value_name = "FILE")]
        file: PathBuf,
        /// Read the store of this configuration directly; its coordinator must be stopped
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Fill an empty store from an exported file; the coordinator must be stopped
    Import {
        /// What `reseal store export` wrote
        #[arg(long, value_name = "FILE")]
        file: PathBuf,
        /// The coordinator's configuration
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Say that an imported store is right, with what has changed since its export; before that it is not served
    ConfirmRestore(super::restore::ConfirmRestoreArgs),
}

/// Makes a fleet.
pub(super) async fn init(context: &Context, args: InitArgs) -> Result<Exit, CliError> {
    let options = crate::init::Options {
        config: load(&args.config)?,
        fleet: args.fleet,
        admin: args.admin,
        admin_out: args.admin_out,
        root_key_out: args.root_key_out,
    };
    let summary = crate::init::run(options).await?;
    let view = serde_json::json!({
        "fleet": summary.fleet,
        "anchor": summary.anchor,
        "authorities": summary.authorities,
        "admin_out": summary.admin_out,
        "root_key_out": summary.root_key_out,
    });
    let csv = ["fleet", "anchor", "authorities", "admin_out", "root_key_out"];
    context.out.one(&view, &csv, || {
        Text::new()
            .fact_piece("Fleet", Piece::bold(&summary.fleet))
            .fact("Authorities", summary.authorities.join(", "))
            .fact("Evidence anchor", &summary.anchor)
            .fact("Credentials", summary.admin_out.display())
            .fact("Root key", summary.root_key_out.display())
            .line("")
            .pieces([
                Piece::warn("Move the root key offline now"),
                Piece::plain(": the coordinator does not need it, only `reseal authority prepare` does."),
            ])
            .line("Keep the evidence anchor where your auditors find it: it is what evidence is checked against.")
            .line(format!("Next: reseal serve --config {}", args.config.display()))
    })?;
    Ok(Exit::Done)
}

/// Runs the coordinator until it is told to stop, or checks its configuration.
pub(super) async fn serve(args: ServeArgs) -> Result<Exit, CliError> {
    let config = load(&args.config)?;
    if args.check {
        super::output::write(&format!("{} is good\n", args.config.display()))?;
        return Ok(Exit::Done);
    }
    crate::app::serve(config).await?;
    Ok(Exit::Done)
}

/// Exports or imports.
pub(super) async fn store(context: &Context, command: StoreCommand) -> Result<Exit, CliError> {
    match command {
        StoreCommand::Export { file, config: Some(config) } => {
            let bytes = copy_out(&load(&config)?, &file).await?;
            said(context, "store.exported", &file, &format!("{bytes} bytes"))?;
        }
        StoreCommand::Export { file, config: None } => {
            let bytes = download(context, &file).await?;
            said(context, "store.exported", &file, &format!("{bytes} bytes"))?;
        }
        StoreCommand::Import { file, config } => {
            let records = copy_in(&load(&config)?, &file).await?;
            let next =
                format!("{records} records; look at them before it is served: reseal store confirm-restore");
            said(context, "store.imported", &file, &next)?;
        }
        StoreCommand::ConfirmRestore(args) => return super::restore::run(context, args).await,
    }
    Ok(Exit::Done)
}

/// Exports the store of a stopped coordinator.
async fn copy_out(config: &Config, file: &std::path::Path) -> Result<u64, CliError> {
    let mut place = NewFile::reserve(file, 0o600)?;
    let store = Store::open(&config.data_dir, &config.name).map_err(anyhow::Error::from)?;
    let mut export = store.export(crate::app::now());
    let mut bytes = 0;
    while let Some(chunk) = export.next().await.map_err(anyhow::Error::from)? {
        place.write(&chunk)?;
        bytes += chunk.len() as u64;
    }
    place.keep()?;
    Ok(bytes)
}

/// Fills an empty store.
async fn copy_in(config: &Config, file: &std::path::Path) -> Result<u64, CliError> {
    let open =
        std::fs::File::open(file).with_context(|| format!("cannot read the export {}", file.display()))?;
    let mut reader = std::io::BufReader::new(open);
    let imported = Store::import(&config.data_dir, &config.name, &mut reader, crate::app::now())
        .await
        .map_err(anyhow::Error::from)?;
    let store = Store::open(&config.data_dir, &config.name).map_err(anyhow::Error::from)?;
    let draft = crate::store::AuditDraft {
        at: crate::app::now(),
        actor: "coordinator".into(),
        action: "store.import".into(),
        object: "store".into(),
        outcome: "done".into(),
        detail: format!("{} records of an export made at {}", imported.records, imported.header.at),
    };
    store.commit(crate::store::Commit::new().audit(draft)).await.map_err(anyhow::Error::from)?;
    Ok(imported.records)
}

async fn download(context: &Context, file: &std::path::Path) -> Result<u64, CliError> {
    let mut place = NewFile::reserve(file, 0o600)?;
    let mut client = context.connect().await?;
    let mut stream = client.rpc.export_store(traced(v1::ExportStoreRequest {})).await?.into_inner();

    let mut bytes = 0;
    while let Some(chunk) = stream.message().await? {
        place.write(&chunk.data)?;
        bytes += chunk.data.len() as u64;
    }
    place.keep()?;
    Ok(bytes)
}

fn said(context: &Context, event: &str, file: &std::path::Path, what: &str) -> Result<(), CliError> {
    let view = serde_json::json!({"event": event, "file": file});
    context.out.one(&view, &["event", "file"], || Text::new().line(format!("{}: {what}", file.display())))
}

pub(super) fn load(path: &std::path::Path) -> Result<Config, CliError> {
    Config::load(path).map_err(|error| CliError::Other(error.into()))
}
