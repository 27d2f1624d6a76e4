//! `weir worker`: works batches off that an API process has put into Kafka.

use std::process::ExitCode;

use clap::Args;

use super::Common;
use super::serve::run_daemon;
use crate::http::Role;

#[derive(Debug, Args)]
pub(super) struct WorkerArgs {
    #[command(flatten)]
    common: Common,
    /// Address and port of /health and /metrics [default: 127.0.0.1:8080].
    #[arg(long, value_name = "ADDR")]
    listen: Option<String>,
}

pub(super) fn run(args: &WorkerArgs) -> anyhow::Result<ExitCode> {
    // Any other queue is in the process that serves, which works it off itself.
    let mut flags = vec![("worker", "batch.queue", "kafka".to_owned())];
    flags.extend(args.listen.iter().map(|listen| ("--listen", "http.listen", listen.clone())));
    run_daemon(Role::Worker, args.common.load(flags)?)
}
