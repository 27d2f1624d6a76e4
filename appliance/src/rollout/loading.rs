//! Loading and unloading of versions, beside the one that serves.

use std::sync::Arc;
use std::time::{Duration, Instant};

use inference::bundle::{Bundle, find_bundle};

use super::RolloutContext;
use super::entry::DeployedVersion;
use super::state_machine::{Failure, Source};
use crate::low_priority;
use crate::models::Origin;
use crate::serving::{DRAIN_TIMEOUT, Endpoint, LoadError, LoadedModel};

/// How often an unloaded version is checked for requests that still hold it.
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// Longest time between two attempts to load a version.
const BACKOFF_MAX: Duration = Duration::from_secs(3600);
/// Versions whose failures are remembered; the oldest are dropped first.
const MAX_TRACKED: usize = 16;

/// Versions that this machine could not load. The time between attempts doubles: a load takes memory and time from what
/// serves, and a version that never fits here would take them at every poll.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct LoadRetries(Vec<Wait>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Wait {
    origin: Origin,
    time: Duration,
    until: Instant,
    reason: String,
}

impl LoadRetries {
    /// A version could not be loaded. It waits for `first`, then twice as long after each further failure.
    pub(super) fn failed(&mut self, origin: &Origin, reason: &str, first: Duration, now: Instant) {
        let before = self.0.iter().position(|wait| wait.origin == *origin).map(|at| self.0.remove(at));
        let time = before.map_or(first, |wait| wait.time * 2).min(BACKOFF_MAX);
        self.0.push(Wait { origin: origin.clone(), time, until: now + time, reason: reason.to_owned() });
        if self.0.len() > MAX_TRACKED {
            self.0.remove(0);
        }
    }

    /// Why a version is not loaded now, while it waits.
    pub(super) fn waits(&self, origin: &Origin, now: Instant) -> Option<&str> {
        let wait = self.0.iter().find(|wait| wait.origin == *origin && wait.until > now)?;
        Some(&wait.reason)
    }

    /// The version was loaded.
    pub(super) fn worked(&mut self, origin: &Origin) {
        self.0.retain(|wait| wait.origin != *origin);
    }

    /// All versions may be tried at once.
    pub(super) fn forget(&mut self) {
        self.0.clear();
    }
}

impl Failure {
    fn of_load(error: &LoadError) -> Self {
        let reason = error.to_string();
        if error.is_transient() {
            Self::Later(reason)
        } else if error.is_certain() {
            Self::Reject(reason)
        } else {
            Self::Unclear(reason)
        }
    }

    /// An error that another attempt may not meet, or one of the version.
    pub(super) fn of(reason: String, is_transient: bool) -> Self {
        if is_transient { Self::Later(reason) } else { Self::Reject(reason) }
    }
}

/// Loads a bundle of the store beside the version that serves, warms it and runs its golden cases.
pub(super) async fn load_stored(
    context: &Arc<RolloutContext>,
    retries: &mut LoadRetries,
    placed: &DeployedVersion,
) -> Result<LoadedModel, Failure> {
    let (origin, digest) = (placed.origin(), placed.digest.clone());
    let (blocking, of) = (Arc::clone(context), origin.clone());
    let loaded = tokio::task::spawn_blocking(move || {
        let verified = low_priority::run(|| blocking.store.bundle(&digest));
        let bundle = verified.map_err(|error| Failure::Later(error.to_string()))?;
        let bundle = bundle.map_err(|error| Failure::of(error.to_string(), error.is_transient()))?;
        load_bundle(&blocking, bundle, Some(of)).map_err(|error| Failure::of_load(&error))
    });
    let loaded = loaded.await.unwrap_or_else(|_| Err(Failure::Unclear("loading it panicked".into())));
    match &loaded {
        Ok(_) => retries.worked(&origin),
        Err(Failure::Later(reason) | Failure::Unclear(reason)) => {
            retries.failed(&origin, reason, context.settings.poll_interval, Instant::now());
        }
        Err(Failure::Reject(_)) => {}
    }
    loaded
}

/// Loads what takes the place of the version that serves. `configured` is the folder of the configured bundle.
pub(super) async fn load_replacement(
    context: &Arc<RolloutContext>,
    retries: &mut LoadRetries,
    slot: &Endpoint,
    configured: Option<std::path::PathBuf>,
    source: Source,
) -> Result<Arc<LoadedModel>, Failure> {
    match source {
        Source::Standby => {
            let standby = slot.routes().standby.clone();
            standby.ok_or_else(|| Failure::Later("the version before is not loaded any more".into()))
        }
        Source::Stored(placed) => load_stored(context, retries, &placed).await.map(Arc::new),
        Source::Configured => {
            let context = Arc::clone(context);
            let loaded = tokio::task::spawn_blocking(move || {
                let bundle = Bundle::open(&find_bundle(configured.as_deref())?)?;
                load_bundle(&context, bundle, None)
            });
            match loaded.await {
                Ok(loaded) => loaded.map(Arc::new).map_err(|error| Failure::of_load(&error)),
                Err(_) => Err(Failure::Unclear("loading the configured bundle panicked".into())),
            }
        }
    }
}

/// Blocking.
fn load_bundle(
    context: &RolloutContext,
    bundle: Bundle,
    origin: Option<Origin>,
) -> Result<LoadedModel, LoadError> {
    let observer = Arc::clone(&context.metrics);
    context.loader.load_candidate(bundle, origin, &context.lanes, observer)
}

/// Unloads a version to which nothing is routed any more, in a task of its own: waits until no request holds it, then ends
/// its lanes.
pub(super) fn retire(model: Arc<LoadedModel>) {
    tokio::spawn(async move {
        let until = Instant::now() + DRAIN_TIMEOUT;
        while Arc::strong_count(&model) > 1 && Instant::now() < until {
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        // Joins the lanes' threads, which blocks.
        let ended = tokio::task::spawn_blocking(move || {
            tracing::debug!(version = model.describe(), "unloaded");
            // Where no thread can be started, the work is dropped here, and the model with it.
            let _ = low_priority::run(move || drop(model));
        });
        if ended.await.is_err() {
            tracing::error!("the lanes of an unloaded version ended with a panic");
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_that_does_not_fit_is_tried_ever_more_rarely() {
        let origin =
            |version: &str| Origin { source: "s".into(), name: "fish".into(), version: version.into() };
        let (one, two) = (origin("1"), origin("2"));
        let first = Duration::from_secs(60);
        let mut retries = LoadRetries::default();
        let mut now = Instant::now();
        let began = now;
        let mut waits = Vec::new();
        while now < began + Duration::from_secs(6 * 3600) {
            if retries.waits(&one, now).is_none() {
                retries.failed(&one, "out of memory", first, now);
                waits.push((now - began).as_secs() / 60);
            }
            assert_eq!(retries.waits(&one, now), Some("out of memory"));
            assert_eq!(retries.waits(&two, now), None);
            now += first;
        }
        assert_eq!(waits, [0, 1, 3, 7, 15, 31, 63, 123, 183, 243, 303]);
        retries.worked(&one);
        assert_eq!(retries.waits(&one, now), None);
        retries.failed(&one, "out of memory", first, now);
        retries.forget();
        assert_eq!(retries.waits(&one, now), None);
        (0..100).for_each(|n| retries.failed(&origin(&n.to_string()), "", first, now));
        assert_eq!(retries.0.len(), MAX_TRACKED);
    }
}
