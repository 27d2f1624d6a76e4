//! The command line: one module per command; all share the configuration and its flags.

mod bundle;
mod doctor;
mod models;
mod outbox;
mod predict;
mod serve;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::config::{ConfigError, Layers, Loaded};

/// Fish species from photos: an inference appliance for the edge and the cloud.
#[derive(Debug, Parser)]
#[command(name = "weir", version, about, propagate_version = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve predictions over HTTP until SIGTERM or Ctrl-C.
    Serve(serve::ServeArgs),
    /// Work batches off that wait in Kafka, until SIGTERM or Ctrl-C.
    Worker(serve::WorkerArgs),
    /// Classify image files here, without a server.
    Predict(predict::PredictArgs),
    /// Check what is configured, what works and what does not, with the remedy.
    Doctor(doctor::DoctorArgs),
    /// Look at the events that have been acknowledged.
    Outbox(outbox::OutboxArgs),
    /// Models: what serves, what the registry has, and commands to a running appliance.
    Models(models::ModelsArgs),
    /// Work on a model bundle: a folder with bundle.toml.
    Bundle(bundle::BundleArgs),
}

/// Flags of every command.
#[derive(Debug, Args)]
struct Common {
    /// Configuration file; ./weir.toml is read if it is there.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Folder for everything that outlives the process [default: weir-data].
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Folder of the model bundle [default: models/fish/1].
    #[arg(long, value_name = "DIR")]
    bundle: Option<PathBuf>,
}

impl Common {
    fn load(&self, more: Vec<(&'static str, &'static str, String)>) -> Result<Loaded, ConfigError> {
        let mut layers = Layers { file: self.config.clone(), ..Layers::from_process() };
        let path = |path: &PathBuf| path.to_string_lossy().into_owned();
        if let Some(dir) = &self.data_dir {
            layers.flags.push(("--data-dir", "data_dir", path(dir)));
        }
        if let Some(dir) = &self.bundle {
            layers.flags.push(("--bundle", "model.bundle", path(dir)));
        }
        layers.flags.extend(more);
        layers.load()
    }
}

impl Cli {
    /// Runs the command.
    ///
    /// # Errors
    /// Why the command failed, as a message for the terminal.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        match self.command {
            Command::Serve(args) => serve::serve(&args),
            Command::Worker(args) => serve::work(&args),
            Command::Predict(args) => predict::run(&args),
            Command::Doctor(args) => doctor::run(&args),
            Command::Outbox(args) => outbox::run(&args),
            Command::Models(args) => models::run(&args),
            Command::Bundle(args) => bundle::run(&args),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn no_command_contradicts_itself() {
        super::Cli::command().debug_assert();
    }
}
