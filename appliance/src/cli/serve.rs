//! `weir serve` and `weir worker`: the daemon in its two roles.

use std::process::ExitCode;

use clap::Args;

use super::Common;
use crate::bootstrap;
use crate::config::{Config, Loaded};
use crate::http::{Role, ServerState};
use crate::telemetry::init_logging;

/// More I/O threads gain nothing: the lanes do the work.
const MAX_IO_THREADS: usize = 4;

#[derive(Debug, Args)]
pub(super) struct WorkerArgs {
    #[command(flatten)]
    common: Common,
    /// Address and port of /health and /metrics [default: 127.0.0.1:8080].
    #[arg(long, value_name = "ADDR")]
    listen: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct ServeArgs {
    #[command(flatten)]
    common: Common,
    /// Address and port to listen on [default: 127.0.0.1:8080].
    #[arg(long, value_name = "ADDR")]
    listen: Option<String>,
}

pub(super) fn serve(args: &ServeArgs) -> anyhow::Result<ExitCode> {
    let flags = args.listen.iter().map(|listen| ("--listen", "http.listen", listen.clone())).collect();
    run_daemon(Role::Serve, args.common.load(flags)?)
}

pub(super) fn work(args: &WorkerArgs) -> anyhow::Result<ExitCode> {
    // Any other queue belongs to a serving process, which works on it itself.
    let mut flags = vec![("worker", "batch.queue", "kafka".to_owned())];
    flags.extend(args.listen.iter().map(|listen| ("--listen", "http.listen", listen.clone())));
    run_daemon(Role::Worker, args.common.load(flags)?)
}

/// Runs the daemon until SIGTERM or Ctrl-C.
fn run_daemon(role: Role, loaded: Loaded) -> anyhow::Result<ExitCode> {
    init_logging(&loaded.config.log)?;
    keep_memory_small();
    tracing::info!(version = crate::VERSION, sources = loaded.sources.join(", "), "weir starting");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(io_threads(role, &loaded.config))
        .thread_name("weir-io")
        // Answers come from lanes and outbox, which are not threads of the runtime. By default a busy runtime checks for such
        // wake-ups once in 61 polls, and under overload answers would wait behind refusals.
        .global_queue_interval(2)
        .enable_all()
        .build()?;
    let outcome = runtime.block_on(bootstrap::run(ServerState::new(role, loaded.config)));
    // Connections that outlived the grace period must not hold up the end.
    runtime.shutdown_background();
    outcome?;
    Ok(ExitCode::SUCCESS)
}

/// The allocator requests huge pages, with which a body of 1.5 MB takes 2 or 4 MB. Without them a server at saturation has a
/// fifth less resident memory and takes no more time per image.
fn keep_memory_small() {
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::thread::disable_transparent_huge_pages(true) {
        tracing::debug!(%error, "cannot disable huge pages");
    }
}

fn io_threads(role: Role, config: &Config) -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    match config.http.io_threads {
        0 if role == Role::Serve => cores.min(MAX_IO_THREADS),
        // A worker's lanes use all cores: more threads than its images need cost cache misses and context switches.
        0 => (cores / 2).clamp(1, MAX_IO_THREADS),
        threads => threads,
    }
}
