//! What a model's rollout tells: for /models, /health and people.

use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::Mutex;
use serde::Serialize;
use utoipa::ToSchema;

/// Where a rollout is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Nothing new is there.
    #[default]
    Idle,
    /// A version is being fetched and verified.
    Downloading,
    /// It is being loaded beside the one that serves, warmed, and run on its golden cases.
    Loading,
    /// It computes what the one that serves is asked, and answers nobody.
    Shadow,
    /// It answers some cameras.
    Canary,
}

/// What can be seen of a rollout.
#[derive(Clone, Debug, Default)]
pub struct Status {
    /// Where it is.
    pub step: Step,
    /// The version that is on its way: `fish-classifier/4`.
    pub candidate: Option<String>,
    /// When the registry answered last.
    pub last_polled_at: Option<SystemTime>,
    /// What went wrong last, if nothing went right since.
    pub error: Option<String>,
    /// Versions that came to serve since the start.
    pub promoted: u64,
    /// Versions that were rejected since the start.
    pub rejected: u64,
}

/// A status that many read.
#[derive(Clone, Debug, Default)]
pub struct StatusCell(Arc<Mutex<Status>>);

impl StatusCell {
    /// As it is now.
    pub fn read(&self) -> Status {
        self.0.lock().clone()
    }

    /// Changes it.
    pub(super) fn note(&self, change: impl FnOnce(&mut Status)) {
        change(&mut self.0.lock());
    }
}
