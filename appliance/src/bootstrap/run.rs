//! The daemon's life: listen, start, serve until a signal, drain, end.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use super::start::{end_background, end_service, start};
use super::{Files, StartError, raise_limit};
use crate::http::{BindError, Phase, Role, Server, ServerState, admin_routes, routes, worker_routes};

/// Longest share of `shutdown.grace` that is kept for each step after the requests.
const MAX_STEP_TIME: Duration = Duration::from_secs(1);

/// When the steps of a shutdown end. There is one end for all of them, and each step but the last leaves the next its
/// share, so that requests or links that are stuck leave time to flush the outbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Deadlines {
    /// Of the requests in hand.
    requests: Instant,
    /// Then of batch work and links.
    background: Instant,
    /// Of lanes and outbox, and so of all.
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

/// Why the daemon ended other than by a signal and in order.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The address can't be listened on.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The start failed.
    #[error(transparent)]
    Start(#[from] StartError),
    /// Signals can't be received.
    #[error("signals can't be received: {0}")]
    Signals(#[source] std::io::Error),
    /// The grace period was over before every request was.
    #[error("{abandoned} requests were still in hand when the grace period (shutdown.grace) was over")]
    Abandoned {
        /// How many.
        abandoned: usize,
    },
    /// Lanes and outbox did not end in time.
    #[error(
        "lanes and outbox did not end within the grace period (shutdown.grace); acknowledged events are safe"
    )]
    FlushCut,
    /// What had been accepted could not be flushed.
    #[error("the outbox could not be flushed: {0}")]
    Flush(#[source] cloud_sync::outbox::OutboxError),
}

/// Runs the daemon until SIGTERM or SIGINT.
///
/// # Errors
/// [`RunError`]; an end by a signal with everything finished is Ok.
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
        // The start touches nothing that would need an end in order.
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
            Role::Worker => format!("ready: working batches off; http://{address}/health says how it goes"),
        }
    );
    either(&mut terminate, &mut interrupt).await;

    state.enter(Phase::Draining);
    let grace = state.config().shutdown.grace;
    tracing::info!(
        in_hand = state.in_hand(),
        grace_s = grace.as_secs_f32(),
        "stopping: finishing what is in hand"
    );
    let began = Instant::now();
    let deadlines = Deadlines::new(began, grace);
    let _ = stop.send(true);
    if state.role() == Role::Worker {
        // Its time runs from now. A server's work goes on until the requests in hand have put theirs into the queue.
        services.background.stop_batch_work();
    }
    let drained = tokio::select! {
        drained = tokio::time::timeout_at(deadlines.requests.into(), serving) => drained.is_ok(),
        // A second signal means now.
        () = either(&mut terminate, &mut interrupt) => false,
    };
    // Batch work ends before the lanes that it needs. What is unfinished is given back.
    let background = deadlines.background;
    tokio::select! {
        _ = tokio::time::timeout_at(background.into(), end_background(services, background)) => {}
        () = either(&mut terminate, &mut interrupt) => {}
    }
    let abandoned = state.in_hand();
    // The last of what is shared is dropped there, which writes to the disk too.
    let flush = tokio::task::spawn_blocking(move || {
        state.services().map_or(Ok(()), |services| end_service(services, drained))
    });
    // A lane may be deep in an image whose client gave up long ago, and a disk may hang.
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

async fn either(terminate: &mut Signal, interrupt: &mut Signal) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
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
}
