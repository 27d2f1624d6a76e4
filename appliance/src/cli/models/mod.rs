//! `weir models`: what this box serves and what the registry has, and commands to a running appliance's rollouts.

mod show;
mod sources;

use std::io::Write;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Context;
use clap::{Args, Subcommand};
use cloud_sync::registry::ModelReference;
use gpu_kernels::DecodeLimits;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use inference::bundle_check::check_bundle;
use serde_json::{Value, json};

use super::Common;
use crate::bootstrap::{load_library, models_dir, pull_limits};
use crate::config::Config;
use crate::models::{ModelStore, Progress, pull};
use sources::{Appliance, journaled, open_registry, registered_name, stored, versions};

#[derive(Debug, Args)]
pub(super) struct ModelsArgs {
    #[command(subcommand)]
    command: ModelsCommand,
}

#[derive(Debug, Subcommand)]
enum ModelsCommand {
    /// All models of this box: what serves, what is on its way, what lies on disk.
    List(QueryArgs),
    /// One model: what serves, what was rejected and why, and the versions in the registry with who serves them.
    Show(ShowArgs),
    /// Fetch a version into the data directory and try it out, without serving it.
    Pull(PullArgs),
    /// End the trial of the version that is on one: it serves.
    Promote(CommandArgs),
    /// Go back to the version before; the one that serves, or is on trial, is rejected.
    Rollback(CommandArgs),
    /// Ask the registry now; a version that was rejected is tried again.
    Reload(CommandArgs),
    /// Serve one version whatever the alias says, until it is unpinned.
    Pin(PinArgs),
    /// Follow the alias again.
    Unpin(CommandArgs),
}

/// Flags of every command about models.
#[derive(Debug, Args)]
struct QueryArgs {
    #[command(flatten)]
    common: Common,
    /// The appliance's address [default: http://<http.listen>].
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// One JSON document.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct ShowArgs {
    /// The model, as in `?model=`.
    model: String,
    #[command(flatten)]
    query: QueryArgs,
}

#[derive(Debug, Args)]
struct PullArgs {
    /// What to fetch: `fish-classifier@champion` or `fish-classifier/3`.
    reference: String,
    #[command(flatten)]
    common: Common,
    /// One JSON document.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct CommandArgs {
    /// The model, as in `?model=`.
    model: String,
    #[command(flatten)]
    query: QueryArgs,
}

#[derive(Debug, Args)]
struct PinArgs {
    /// The model, as in `?model=`.
    model: String,
    /// A version of the registered model that it follows.
    #[arg(id = "pinned", value_name = "VERSION")]
    version: String,
    #[command(flatten)]
    query: QueryArgs,
}

pub(super) fn run(args: &ModelsArgs) -> anyhow::Result<ExitCode> {
    match &args.command {
        ModelsCommand::List(query) => list(query),
        ModelsCommand::Show(args) => show(args),
        ModelsCommand::Pull(args) => {
            pull_version(&args.common.load(Vec::new())?.config, &args.reference, args.json)
        }
        ModelsCommand::Promote(args) => order(args, "promote", None),
        ModelsCommand::Rollback(args) => order(args, "rollback", None),
        ModelsCommand::Reload(args) => order(args, "reload", None),
        ModelsCommand::Pin(PinArgs { model, version, query }) => command(query, model, "pin", Some(version)),
        ModelsCommand::Unpin(args) => order(args, "pin", None),
    }
}

fn list(query: &QueryArgs) -> anyhow::Result<ExitCode> {
    let config = query.common.load(Vec::new())?.config;
    let models = served(query, &config)?;
    let stored = stored(&config)?;
    if query.json {
        return print(&json!({ "models": models, "stored": stored }));
    }
    let mut out = std::io::stdout().lock();
    show::models(&mut out, &models)?;
    show::stored(&mut out, &stored)?;
    Ok(ExitCode::SUCCESS)
}

fn show(args: &ShowArgs) -> anyhow::Result<ExitCode> {
    let config = args.query.common.load(Vec::new())?.config;
    let models = served(&args.query, &config)?;
    let is_it =
        |model: &&Value| model["model"] == args.model.as_str() || model["name"] == args.model.as_str();
    let model = models.iter().find(is_it).with_context(|| {
        let names: Vec<&str> = models.iter().filter_map(|model| model["model"].as_str()).collect();
        format!("there is no model {:?} here; there are {}", args.model, names.join(", "))
    })?;
    let versions = match registered_name(model, &config, &args.model) {
        Some(name) if config.registry.is_configured() => Some(versions(&config, &name)?),
        _ => None,
    };
    if args.query.json {
        return print(&json!({ "model": model, "versions": versions }));
    }
    let mut out = std::io::stdout().lock();
    show::model(&mut out, model)?;
    match &versions {
        Some(versions) => show::versions(&mut out, versions)?,
        None => writeln!(out, "\nIt follows no registry: set model.follow and registry.uri to have it.")?,
    }
    Ok(ExitCode::SUCCESS)
}

fn order(args: &CommandArgs, action: &str, version: Option<&str>) -> anyhow::Result<ExitCode> {
    command(&args.query, &args.model, action, version)
}

fn command(query: &QueryArgs, model: &str, action: &str, version: Option<&str>) -> anyhow::Result<ExitCode> {
    let config = query.common.load(Vec::new())?.config;
    let appliance = Appliance::at(query.url.as_deref(), &config)?;
    let reply = appliance.command(model, action, version, &config)?;
    if query.json {
        return print(&reply);
    }
    let text = |key: &str| reply[key].as_str().unwrap_or_default().to_owned();
    writeln!(std::io::stdout(), "{}: {}", text("model"), text("done"))?;
    Ok(ExitCode::SUCCESS)
}

/// What the running appliance says of its models; where none runs, what its data directory says.
fn served(query: &QueryArgs, config: &Config) -> anyhow::Result<Vec<Value>> {
    let appliance = Appliance::at(query.url.as_deref(), config)?;
    match appliance.models(config)? {
        Some(models) => Ok(models),
        None if query.url.is_some() => anyhow::bail!("no appliance answers at {}", appliance.url()),
        None => {
            eprintln!(
                "No appliance answers at {}. This is what the data directory {} says:\n",
                appliance.url(),
                config.data_dir.display()
            );
            journaled(config)
        }
    }
}

fn pull_version(config: &Config, reference: &str, as_json: bool) -> anyhow::Result<ExitCode> {
    let reference: ModelReference = reference.parse()?;
    let (runtime, registry) = open_registry(config)?;
    let store = ModelStore::open(&models_dir(&config.data_dir))?;
    let engine = load_library(config)?;
    let began = Instant::now();
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    bar.set_style(ProgressStyle::with_template("{spinner} {msg}")?);
    let on_progress = |progress: Progress| bar.set_message(describe(&progress));
    let pulled = runtime.block_on(async {
        let resolved = registry.resolve(&reference).await.map_err(|e| anyhow::anyhow!(e.in_full()))?;
        let version = resolved
            .with_context(|| format!("{reference}: the registry has no such model, alias or version"))?;
        bar.set_message(format!("{}/{}: looking at its files", version.name, version.version));
        let pulled =
            pull(registry.as_ref(), &version, &store, &pull_limits(config, &engine), &on_progress).await;
        pulled.map(|pulled| (version, pulled)).map_err(anyhow::Error::from)
    });
    bar.finish_and_clear();
    let (version, pulled) = pulled?;
    let bundle = store.bundle(&pulled.digest)?;
    let limits = config.image.limits(DecodeLimits::default().max_bytes);
    check_bundle(&engine, &bundle, config.engine.precision, limits)
        .with_context(|| format!("{}/{} is on disk, but must not serve", version.name, version.version))?;
    if as_json {
        return print(&json!({
            "name": version.name,
            "version": version.version,
            "digest": pulled.digest,
            "downloaded": !pulled.known,
            "dir": bundle.dir(),
        }));
    }
    let how = if pulled.known { "was here already" } else { "is here" };
    writeln!(
        std::io::stdout(),
        "{}/{} {how}: {} {}, verified, loaded and its golden cases right, {:.1} s\n{}",
        version.name,
        version.version,
        pulled.model,
        pulled.version,
        began.elapsed().as_secs_f64(),
        bundle.dir().display()
    )?;
    Ok(ExitCode::SUCCESS)
}

fn describe(progress: &Progress) -> String {
    match progress {
        Progress::Listed { files } => format!("{files} files"),
        Progress::File { path, so_far, .. } => format!("{path}, {} so far", bytesize::ByteSize(*so_far)),
        Progress::Importing => "verifying and taking it into the store".to_owned(),
    }
}

fn print(document: &Value) -> anyhow::Result<ExitCode> {
    let mut out = std::io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, document)?;
    writeln!(out)?;
    Ok(ExitCode::SUCCESS)
}
