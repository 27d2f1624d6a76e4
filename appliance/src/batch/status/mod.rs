//! How far a batch is: one call to the state store, or, where that has lost or forgotten the batch or something of it,
//! what the blob store has of it.

mod recover;

use std::time::{Duration, SystemTime};

use cloud_sync::batch_status::{BatchOutcome, BatchPhase, BatchStatus};

use super::object_keys::check_any_id;
use super::{BatchError, BatchService};

/// A batch that has no outcome and has not changed for so long may have been finished without the state store
/// knowing it: because that has come back as it was a while ago.
const QUIET: Duration = Duration::from_secs(30);

/// A batch as a client sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchView {
    /// Its id.
    pub request_id: String,
    /// Where it stands.
    pub phase: BatchPhase,
    /// Images.
    pub total: u64,
    /// Images classified so far.
    pub completed: u64,
    /// Images that have failed for good so far.
    pub failed: u64,
    /// When it was taken, as far as that is known.
    pub created: Option<SystemTime>,
    /// When it last changed, as far as that is known.
    pub updated: Option<SystemTime>,
    /// Where the results are, when it is finished.
    pub results_uri: Option<String>,
    /// The results as a JSON array, when it is finished and they are few.
    pub results: Option<String>,
}

impl From<BatchStatus> for BatchView {
    fn from(status: BatchStatus) -> Self {
        let counts = status.outcome.as_ref().map(|outcome| (outcome.completed, outcome.failed));
        let (completed, failed) = counts.unwrap_or((status.completed, status.failed));
        let (results_uri, results) = match status.outcome {
            Some(BatchOutcome { results_uri, results, .. }) => (Some(results_uri), results),
            None => (None, None),
        };
        Self {
            request_id: status.spec.request_id,
            phase: status.phase,
            total: status.spec.total,
            completed,
            failed,
            created: Some(status.created),
            updated: Some(status.updated),
            results_uri,
            results,
        }
    }
}

impl BatchService {
    /// How far a batch is.
    ///
    /// # Errors
    /// [`BatchError::Unknown`], or [`BatchError::Link`] when a store is out of reach.
    pub async fn status(&self, id: &str) -> Result<BatchView, BatchError> {
        check_any_id(id).map_err(|_| BatchError::Unknown { request_id: id.chars().take(128).collect() })?;
        match self.state.batch(id).await.map_err(BatchError::link(id))? {
            Some(status) if is_quiet(&status) => Ok(self.finished_unnoticed(status).await),
            Some(status) => Ok(status.into()),
            None => self.recover(id).await,
        }
    }
}

fn is_quiet(status: &BatchStatus) -> bool {
    status.outcome.is_none() && is_long_ago(status.updated)
}

fn is_long_ago(time: SystemTime) -> bool {
    SystemTime::now().duration_since(time).unwrap_or_default() > QUIET
}
