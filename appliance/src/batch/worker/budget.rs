//! The time that the work on one batch may take.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// Batches whose begin is known at once.
const MAX_BATCHES: usize = 10_000;

/// When this process began to work on each batch. It is not kept elsewhere: the clocks of two processes, or of one
/// before and after it was set, do not tell how long the work has taken.
#[derive(Debug, Default)]
pub(super) struct Budgets(Mutex<HashMap<String, Instant>>);

impl Budgets {
    /// Until when a batch may be worked on that begins now, unless it has begun before.
    pub(super) fn deadline(&self, request_id: &str, limit: Duration) -> Instant {
        let mut began = self.0.lock();
        if let Some(began) = began.get(request_id) {
            return *began + limit;
        }
        if began.len() >= MAX_BATCHES {
            let oldest = began.iter().min_by_key(|(_, began)| **began).map(|(id, _)| id.clone());
            oldest.and_then(|id| began.remove(&id));
        }
        let now = Instant::now();
        began.insert(request_id.to_owned(), now);
        now + limit
    }

    /// The batch is finished.
    pub(super) fn forget(&self, request_id: &str) {
        self.0.lock().remove(request_id);
    }
}
