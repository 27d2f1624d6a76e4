//! The end of a version that nothing is sent to any more: its last requests are waited for, then its lanes end.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::low_priority;
use crate::serving::{DRAIN_TIMEOUT, LoadedModel};

/// How often it is looked whether somebody still holds it.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Ends the lanes of a version once nobody holds it, in a task of its own.
pub(super) fn retire(model: Arc<LoadedModel>) {
    tokio::spawn(async move {
        let until = Instant::now() + DRAIN_TIMEOUT;
        while Arc::strong_count(&model) > 1 && Instant::now() < until {
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        // Joins the lanes' threads, which blocks.
        let ended = tokio::task::spawn_blocking(move || {
            tracing::debug!(version = model.describe(), "unloaded");
            // Where no thread can be had, the work is dropped here, and the model with it.
            let _ = low_priority::run(move || drop(model));
        });
        if ended.await.is_err() {
            tracing::error!("the lanes of a version that was unloaded ended with a panic");
        }
    });
}
