//! Health of links, as observed by their own calls: for `/health`, metrics and logs. There are no extra probes.

use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::Mutex;

use crate::error::{Link, SyncError};

/// State of a link, as observed by its calls.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LinkState {
    /// Whether the latest call succeeded; `None` when there was none yet.
    pub up: Option<bool>,
    /// Time of the last change of `up`.
    pub since: Option<SystemTime>,
    /// Text of the latest failure, retained after a success.
    pub last_error: Option<String>,
    /// Calls that failed since the start.
    pub failures: u64,
}

/// The health of one link. Clones are the same link.
#[derive(Debug, Clone)]
pub struct LinkHealth {
    link: Link,
    state: Arc<Mutex<LinkState>>,
}

impl LinkHealth {
    /// A link in an unknown state.
    #[must_use]
    pub fn new(link: Link) -> Self {
        Self { link, state: Arc::default() }
    }

    /// Which link.
    #[must_use]
    pub fn link(&self) -> Link {
        self.link
    }

    /// Records a successful call. Returns whether that is a change.
    pub fn worked(&self) -> bool {
        let mut state = self.state.lock();
        let changed = state.up != Some(true);
        if changed {
            state.up = Some(true);
            state.since = Some(SystemTime::now());
        }
        changed
    }

    /// Records a failed call. Returns whether that is a change, which is logged once.
    pub fn failed(&self, error: &SyncError) -> bool {
        let mut state = self.state.lock();
        let changed = state.up != Some(false);
        if changed {
            state.up = Some(false);
            state.since = Some(SystemTime::now());
        }
        state.failures += 1;
        state.last_error = Some(error.in_full());
        changed
    }

    /// Records the outcome `result`: a transient failure is the link's, a permanent one the request's.
    pub fn note<T>(&self, result: Result<T, SyncError>) -> Result<T, SyncError> {
        match &result {
            Ok(_) => {
                if self.worked() {
                    tracing::info!(link = self.link.name(), "the link is up");
                }
            }
            Err(error) if error.is_transient() => {
                if self.failed(error) {
                    tracing::warn!(link = self.link.name(), error = error.in_full(), "the link is down");
                }
            }
            Err(_) => {}
        }
        result
    }

    /// The current state.
    #[must_use]
    pub fn state(&self) -> LinkState {
        self.state.lock().clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_unknown_then_up_then_down_and_says_when_it_changes() {
        let health = LinkHealth::new(Link::Kafka);
        assert_eq!(health.state(), LinkState::default());
        assert!(health.note(Ok(1)).is_ok());
        assert!(!health.worked());
        let since = health.state().since;
        let refused = || SyncError::permanent(Link::Kafka, "message too large");
        assert!(health.note::<()>(Err(refused())).is_err());
        assert_eq!((health.state().up, health.state().since), (Some(true), since));
        let away = || SyncError::transient(Link::Kafka, "all brokers down");
        assert!(health.note::<()>(Err(away())).is_err());
        assert!(!health.failed(&away()));
        let state = health.state();
        assert_eq!((state.up, state.failures), (Some(false), 2));
        assert_eq!(state.last_error.as_deref(), Some("kafka: all brokers down"));
    }
}
