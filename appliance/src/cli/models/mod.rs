//! `weir models`: what this box serves and what the registry has, and commands to a running appliance's rollouts.

mod appliance;
mod disk;
mod pull;
mod registry;
mod show;

use std::io::Write;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::Common;
use crate::config::Config;
use appliance::Appliance;

#[derive(Debug, Args)]
pub(super) struct ModelsArgs {
    #[command(subcommand)]
    command: ModelsCommand,
}

#[derive(Debug, Subcommand)]
enum ModelsCommand {
    /// All models of this box: what serves, what is on its way, what lies on disk.
    List(LookArgs),
    /// One model: what serves, what was rejected and why, and the versions in the registry with who serves them.
    Show(ShowArgs),
    /// Fetch a version into the data directory and try it out, without serving it.
    Pull(PullArgs),
    /// End the trial of the version that is on one: it serves.
    Promote(OrderArgs),
    /// Go back to the version before; the one that serves, or is on trial, is rejected.
    Rollback(OrderArgs),
    /// Ask the registry now; a version that was rejected is tried again.
    Reload(OrderArgs),
    /// Serve one version whatever the alias says, until it is unpinned.
    Pin(PinArgs),
    /// Follow the alias again.
    Unpin(OrderArgs),
}

/// Flags of every command about models.
#[derive(Debug, Args)]
struct LookArgs {
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
    look: LookArgs,
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
struct OrderArgs {
    /// The model, as in `?model=`.
    model: String,
    #[command(flatten)]
    look: LookArgs,
}

#[derive(Debug, Args)]
struct PinArgs {
    /// The model, as in `?model=`.
    model: String,
    /// A version of the registered model that it follows.
    #[arg(id = "pinned", value_name = "VERSION")]
    version: String,
    #[command(flatten)]
    look: LookArgs,
}

pub(super) fn run(args: &ModelsArgs) -> anyhow::Result<ExitCode> {
    match &args.command {
        ModelsCommand::List(look) => list(look),
        ModelsCommand::Show(args) => show(args),
        ModelsCommand::Pull(args) => {
            pull::run(&args.common.load(Vec::new())?.config, &args.reference, args.json)
        }
        ModelsCommand::Promote(args) => order(args, "promote", None),
        ModelsCommand::Rollback(args) => order(args, "rollback", None),
        ModelsCommand::Reload(args) => order(args, "reload", None),
        ModelsCommand::Pin(PinArgs { model, version, look }) => command(look, model, "pin", Some(version)),
        ModelsCommand::Unpin(args) => order(args, "pin", None),
    }
}

fn list(look: &LookArgs) -> anyhow::Result<ExitCode> {
    let config = look.common.load(Vec::new())?.config;
    let models = served(look, &config)?;
    let stored = disk::stored(&config)?;
    if look.json {
        return print(&json!({ "models": models, "stored": stored }));
    }
    let mut out = std::io::stdout().lock();
    show::models(&mut out, &models)?;
    show::stored(&mut out, &stored)?;
    Ok(ExitCode::SUCCESS)
}

fn show(args: &ShowArgs) -> anyhow::Result<ExitCode> {
    let config = args.look.common.load(Vec::new())?.config;
    let models = served(&args.look, &config)?;
    let is_it =
        |model: &&Value| model["model"] == args.model.as_str() || model["name"] == args.model.as_str();
    let model = models.iter().find(is_it).with_context(|| {
        let names: Vec<&str> = models.iter().filter_map(|model| model["model"].as_str()).collect();
        format!("there is no model {:?} here; there are {}", args.model, names.join(", "))
    })?;
    let versions = match registry::name_of(model, &config, &args.model) {
        Some(name) if config.registry.is_configured() => Some(registry::versions(&config, &name)?),
        _ => None,
    };
    if args.look.json {
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

fn order(args: &OrderArgs, action: &str, version: Option<&str>) -> anyhow::Result<ExitCode> {
    command(&args.look, &args.model, action, version)
}

fn command(look: &LookArgs, model: &str, action: &str, version: Option<&str>) -> anyhow::Result<ExitCode> {
    let config = look.common.load(Vec::new())?.config;
    let appliance = Appliance::at(look.url.as_deref(), &config)?;
    let reply = appliance.order(model, action, version, &config)?;
    if look.json {
        return print(&reply);
    }
    let text = |key: &str| reply[key].as_str().unwrap_or_default().to_owned();
    writeln!(std::io::stdout(), "{}: {}", text("model"), text("done"))?;
    Ok(ExitCode::SUCCESS)
}

/// What the running appliance says of its models; where none runs, what its data directory says.
fn served(look: &LookArgs, config: &Config) -> anyhow::Result<Vec<Value>> {
    let appliance = Appliance::at(look.url.as_deref(), config)?;
    match appliance.models(config)? {
        Some(models) => Ok(models),
        None if look.url.is_some() => anyhow::bail!("no appliance answers at {}", appliance.url()),
        None => {
            eprintln!(
                "No appliance answers at {}. This is what the data directory {} says:\n",
                appliance.url(),
                config.data_dir.display()
            );
            disk::models(config)
        }
    }
}

fn print(document: &Value) -> anyhow::Result<ExitCode> {
    let mut out = std::io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, document)?;
    writeln!(out)?;
    Ok(ExitCode::SUCCESS)
}
