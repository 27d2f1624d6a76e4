//! Versions that this machine could not load: each is tried again, after a time that doubles.
//!
//! A load takes memory and time from what serves, and one that never fits here would take them at every poll.

use std::time::{Duration, Instant};

use crate::models::Origin;

/// Longest time between two tries.
const BACKOFF_MAX: Duration = Duration::from_secs(3600);
/// Versions that are remembered; the oldest go first.
const MAX_TRACKED: usize = 16;

/// What failed, and when it is tried again.
#[derive(Debug, Default)]
pub(super) struct LoadRetries(Vec<Wait>);

#[derive(Debug)]
struct Wait {
    origin: Origin,
    time: Duration,
    until: Instant,
    reason: String,
}

impl LoadRetries {
    /// A version could not be loaded now. It waits for `first`, and twice as long as before every other time.
    pub(super) fn failed(&mut self, origin: &Origin, reason: &str, first: Duration, now: Instant) {
        let before = self.0.iter().position(|wait| wait.origin == *origin).map(|at| self.0.remove(at));
        let time = before.map_or(first, |wait| wait.time * 2).min(BACKOFF_MAX);
        self.0.push(Wait { origin: origin.clone(), time, until: now + time, reason: reason.to_owned() });
        if self.0.len() > MAX_TRACKED {
            self.0.remove(0);
        }
    }

    /// Why a version is not loaded now, where it still waits.
    pub(super) fn waits(&self, origin: &Origin, now: Instant) -> Option<&str> {
        let wait = self.0.iter().find(|wait| wait.origin == *origin && wait.until > now)?;
        Some(&wait.reason)
    }

    /// It was loaded.
    pub(super) fn worked(&mut self, origin: &Origin) {
        self.0.retain(|wait| wait.origin != *origin);
    }

    /// All may be tried at once.
    pub(super) fn forget(&mut self) {
        self.0.clear();
    }
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
