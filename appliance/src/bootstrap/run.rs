//! The life of the daemon: listen, start, serve until a signal, drain, stop; and its limit of open files.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cloud_sync::outbox::OutboxError;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use super::{StartError, start};
use crate::config::Config;
use crate::http::{
    BindError, Phase, Role, Server, ServerState, Services, admin_routes, routes, worker_routes,
};

/// File descriptors for the model, the outbox, stores, Kafka, Redis, S3, logs and the runtime.
const RESERVED_FILES: usize = 192;
/// The soft limit of open files is not raised beyond this.
const MAX_FILES: u64 = 1 << 20;

/// Longest time for rollouts to stop; a version that is being loaded is abandoned.
const ROLLOUT_STOP_TIMEOUT: Duration = Duration::from_secs(1);

/// Maximum share of `shutdown.grace` that is reserved for each step after the requests.
const MAX_STEP_TIME: Duration = Duration::from_secs(1);

/// Deadlines of the steps of a shutdown. There is one end for all of them, and each step leaves a share of the time to the
/// next, so that stuck requests or links leave time to flush the outbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Deadlines {
    /// For requests in flight.
    requests: Instant,
    /// Then for batch work and links.
    background: Instant,
    /// Then for lanes and outbox.
    end: Instant,
}

impl Deadlines {
    fn new(began: Instant, grace: Duration) -> Self {
        let share = (grace / 20).min(MAX_STEP_TIME);
        let end = began + grace;
        let background = began + grace.saturating_sub(share);
        Self { requests: began + grace.saturating_sub(share * 2), background, end }
    }
}

/// Why the daemon did not stop cleanly.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The address cannot be bound.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The start failed.
    #[error(transparent)]
    Start(#[from] StartError),
    /// Signals cannot be received.
    #[error("signals can't be received: {0}")]
    Signals(#[source] std::io::Error),
    /// The grace period was over before every request was.
    #[error("{abandoned} requests were still in flight at the end of the grace period (shutdown.grace)")]
    Abandoned {
        /// The number of requests.
        abandoned: usize,
    },
    /// Lanes and outbox did not end in time.
    #[error(
        "lanes and outbox did not end within the grace period (shutdown.grace); acknowledged events are safe"
    )]
    FlushCut,
    /// Acknowledged events could not be flushed.
    #[error("the outbox could not be flushed: {0}")]
    Flush(#[source] OutboxError),
}

/// Runs the daemon until SIGTERM or SIGINT.
///
/// # Errors
/// [`RunError`]; a clean stop after a signal is `Ok`.
pub async fn run(state: Arc<ServerState>) -> Result<(), RunError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(RunError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(RunError::Signals)?;
    let files = Files::share(raise_limit(), state.config());
    let wanted = state.config().http.max_connections;
    if files.connections < wanted {
        tracing::warn!(
            open_files = files.limit,
            connections = files.connections,
            "fewer connections than http.max_connections: the limit of open files (ulimit -n) is too low"
        );
    }
    let server = Server::bind(&state, files.connections).await?;
    let admin = Server::bind_admin(&state).await?;
    let (address, admin_address) = (server.address(), admin.as_ref().map(Server::address));
    let (stop, stopped) = watch::channel(false);
    let operator =
        admin.map(|admin| tokio::spawn(admin.run(admin_routes(Arc::clone(&state)), stopped.clone())));
    let clients = match state.role() {
        Role::Serve => tokio::spawn(server.run(routes(Arc::clone(&state)), stopped)),
        Role::Worker => tokio::spawn(server.run(worker_routes(Arc::clone(&state)), stopped)),
    };
    let serving = async move {
        let _ = clients.await;
        if let Some(operator) = operator {
            let _ = operator.await;
        }
    };

    let starting = Arc::clone(&state);
    let start = tokio::task::spawn_blocking(move || start(&starting));
    let services = tokio::select! {
        started = start => match started {
            Ok(started) => started?,
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        },
        // Nothing that has been started by then needs a clean stop.
        () = either(&mut terminate, &mut interrupt) => return Ok(()),
    };
    let services = state.ready(services);
    tracing::info!(
        listen = %address,
        admin_listen = admin_address.map(tracing::field::display),
        start_ms = u64::try_from(state.uptime().as_millis()).unwrap_or(u64::MAX),
        "{}",
        match state.role() {
            Role::Serve => {
                format!("ready: POST an image to http://{address}/predict, or open http://{address}/docs")
            }
            Role::Worker => format!("ready: working on batches; http://{address}/health shows the state"),
        }
    );
    either(&mut terminate, &mut interrupt).await;

    state.enter(Phase::Draining);
    let grace = state.config().shutdown.grace;
    tracing::info!(
        in_hand = state.in_hand(),
        grace_s = grace.as_secs_f32(),
        "stopping: finishing requests in flight"
    );
    let began = Instant::now();
    let deadlines = Deadlines::new(began, grace);
    let _ = stop.send(true);
    if state.role() == Role::Worker {
        // A worker's time runs from now. A server's batch work continues until the requests in flight have queued theirs.
        services.background.stop_batch_work();
    }
    let drained = tokio::select! {
        drained = tokio::time::timeout_at(deadlines.requests.into(), serving) => drained.is_ok(),
        // A second signal skips the rest.
        () = either(&mut terminate, &mut interrupt) => false,
    };
    // Batch work stops before the lanes that it needs. Unfinished messages return to the queue.
    let background = deadlines.background;
    tokio::select! {
        _ = tokio::time::timeout_at(background.into(), end_background(services, background)) => {}
        () = either(&mut terminate, &mut interrupt) => {}
    }
    let abandoned = state.in_hand();
    // The last references to shared stores are dropped there, which writes to disk too.
    let flush = tokio::task::spawn_blocking(move || {
        state.services().map_or(Ok(()), |services| end_service(services, drained))
    });
    // A lane may be busy with an image whose client is gone, and a disk may hang.
    let flushed = tokio::select! {
        flushed = tokio::time::timeout_at(deadlines.end.into(), flush) => flushed,
        () = either(&mut terminate, &mut interrupt) => return Err(RunError::FlushCut),
    };
    match flushed {
        Ok(Ok(flushed)) => flushed.map_err(RunError::Flush)?,
        Ok(Err(_)) | Err(_) => return Err(RunError::FlushCut),
    }
    if !drained && abandoned > 0 {
        return Err(RunError::Abandoned { abandoned });
    }
    tracing::info!(drain_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX), "stopped");
    Ok(())
}

/// Stops rollouts, batch work, uplink and capture. Unfinished work is resumed after the next start, or by other workers.
async fn end_background(services: &Services, deadline: Instant) {
    let left = deadline.saturating_duration_since(Instant::now());
    // Most of the time is left to the next steps.
    services.rollouts.end((left / 4).min(ROLLOUT_STOP_TIMEOUT)).await;
    services.background.end(deadline).await;
}

/// Stops lanes and outbox; blocking. Lanes that were not drained end with the process.
///
/// # Errors
/// [`OutboxError`] where the last acknowledged events could not be flushed.
fn end_service(services: &Services, drained: bool) -> Result<(), OutboxError> {
    if drained {
        services.models.stop();
    }
    services.predictions.as_ref().map_or(Ok(()), |predictions| predictions.outbox.close())
}

async fn either(terminate: &mut Signal, interrupt: &mut Signal) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

/// The file descriptors of the process, and how they are divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Files {
    /// All.
    pub limit: usize,
    /// For clients' connections.
    pub connections: usize,
}

/// Raises the soft limit of open files to the hard one.
pub fn raise_limit() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let wanted = limit.maximum.unwrap_or(MAX_FILES).min(MAX_FILES);
    let current = limit.current.unwrap_or(u64::MAX);
    if current >= wanted {
        return current;
    }
    match setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum: limit.maximum }) {
        Ok(()) => wanted,
        Err(error) => {
            tracing::warn!(%error, current, wanted, "cannot raise the limit of open files");
            current
        }
    }
}

impl Files {
    /// Divides a limit. A connection may need a second descriptor, for a body or a result on disk.
    pub fn share(limit: u64, config: &Config) -> Self {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let reserved = RESERVED_FILES + config.fetch.max_concurrent + config.batch.concurrent_fetches;
        // Storage comes first, however few descriptors there are.
        let connections = limit.saturating_sub(reserved).max(limit / 8).max(1);
        Self { limit, connections }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_has_a_share_of_the_one_grace_period() {
        let began = Instant::now();
        for millis in [0, 1, 100, 1000, 20_000, 600_000] {
            let grace = Duration::from_millis(millis);
            let Deadlines { requests, background, end } = Deadlines::new(began, grace);
            assert_eq!(end, began + grace);
            assert!(
                requests <= background && background <= end && requests >= began + grace * 4 / 5,
                "{grace:?}"
            );
            assert!(end - background >= MAX_STEP_TIME.min(grace / 20), "{grace:?}");
        }
    }

    #[test]
    fn storage_comes_before_connections() {
        let config = Config::default();
        let reserved = RESERVED_FILES + config.fetch.max_concurrent + config.batch.concurrent_fetches;
        assert_eq!(Files::share(1024, &config).connections, 1024 - reserved);
        assert_eq!(Files::share(64, &config).connections, 8);
        assert_eq!(Files::share(1, &config).connections, 1);
        assert!(Files::share(u64::MAX, &config).connections > 1 << 40);
    }
}
