//! What is known of one model: which version serves, which served before, which were rejected, what is still to be told.

use std::collections::VecDeque;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::crashes::Starts;
use crate::models::Origin;
use crate::serving::VersionCounts;

/// Rejected versions that are remembered, a model.
const MAX_REJECTED: usize = 100;
/// Tags that wait until the registry is back, a model; the oldest go first.
const MAX_PENDING_TAGS: usize = 100;

/// A version in the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeployedVersion {
    /// Digest of its bundle.
    pub digest: String,
    /// Where its bytes came from.
    pub source: String,
    /// Registered name.
    pub name: String,
    /// Version in the registry.
    pub version: String,
}

impl DeployedVersion {
    /// A registered version in the store.
    pub fn new(digest: &str, origin: &Origin) -> Self {
        let Origin { source, name, version } = origin.clone();
        Self { digest: digest.to_owned(), source, name, version }
    }

    /// Which version it is.
    pub fn origin(&self) -> Origin {
        Origin { source: self.source.clone(), name: self.name.clone(), version: self.version.clone() }
    }
}

/// A version that is not to be tried again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rejected {
    /// Registered name.
    pub name: String,
    /// Version in the registry.
    pub version: String,
    /// Where its bytes came from: under another source the same number is another version.
    pub source: String,
    /// Why.
    pub reason: String,
    /// When.
    #[serde(with = "humantime_serde")]
    pub at: SystemTime,
}

/// A tag that the registry has not been told yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingTag {
    /// Registered name.
    pub name: String,
    /// Version.
    pub version: String,
    /// The tag's value.
    pub value: String,
}

/// The monitoring of a version that was promoted, as far as it has come. Time is what processes have observed: neither the
/// time between them nor a step of the clock counts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Monitored {
    /// How long it has been monitored.
    #[serde(with = "humantime_serde")]
    pub time: Duration,
    /// What it has done in that time.
    pub done: VersionCounts,
    /// What the version before it had done by its promotion, in the process of the promotion alone.
    pub before: VersionCounts,
    /// Images that the version before it computed, too.
    pub compared: u64,
    /// Those of them with another best label.
    pub disagreed: u64,
    /// Whether an operator promoted it, so that its labels are not held against those of the version before it.
    pub ordered: bool,
    /// Processes that began with it.
    #[serde(default)]
    pub starts: Starts,
}

/// What is known of one model.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Entry {
    /// The version that serves; none for the configured bundle.
    pub serving: Option<DeployedVersion>,
    /// The one that served before; none for the configured bundle.
    pub previous: Option<DeployedVersion>,
    /// Those that are not to be tried again, oldest first.
    pub rejected: VecDeque<Rejected>,
    /// The version that an operator has pinned.
    pub pinned: Option<String>,
    /// Tags that are to be set.
    pub pending_tags: VecDeque<PendingTag>,
    /// How far the version that serves has been monitored since its promotion; none once that is over.
    pub monitored: Option<Monitored>,
}

impl Entry {
    /// Why a version is not to be tried, if it is not.
    pub fn rejection(&self, origin: &Origin) -> Option<&Rejected> {
        let is_it = |r: &&Rejected| {
            (&r.name, &r.version, &r.source) == (&origin.name, &origin.version, &origin.source)
        };
        self.rejected.iter().find(is_it)
    }

    /// The version that serves makes way for another and becomes the one before, if it is what has `answered`. Where it could
    /// not be loaded, another one has, and that is the way back; its origin is none for the configured bundle. Returns what the
    /// journal said serves.
    pub fn make_way(&mut self, answered: Option<Option<&Origin>>) -> Option<DeployedVersion> {
        let replaced = self.serving.take();
        let previous = self.previous.take();
        self.previous = match answered {
            // Nothing has.
            None => replaced.clone(),
            Some(answered) => [&replaced, &previous]
                .into_iter()
                .flatten()
                .find(|placed| Some(&placed.origin()) == answered)
                .cloned(),
        };
        replaced
    }

    /// A version is not to be tried again.
    pub fn reject(&mut self, origin: &Origin, reason: &str) {
        self.clear_rejection(&origin.name, &origin.version);
        let Origin { source, name, version } = origin.clone();
        self.rejected.push_back(Rejected {
            name,
            version,
            source,
            reason: reason.to_owned(),
            at: SystemTime::now(),
        });
        while self.rejected.len() > MAX_REJECTED {
            self.rejected.pop_front();
        }
    }

    /// A version may be tried again.
    pub fn clear_rejection(&mut self, name: &str, version: &str) {
        self.rejected.retain(|rejected| rejected.name != name || rejected.version != version);
    }

    /// A tag is to be set; an older value for the same version need not be told any more.
    pub fn tell(&mut self, origin: &Origin, value: String) {
        self.pending_tags.retain(|pending_tags| {
            pending_tags.name != origin.name || pending_tags.version != origin.version
        });
        self.pending_tags.push_back(PendingTag {
            name: origin.name.clone(),
            version: origin.version.clone(),
            value,
        });
        while self.pending_tags.len() > MAX_PENDING_TAGS {
            self.pending_tags.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_before_is_the_one_that_has_answered() {
        let placed = |version: &str| {
            let origin = Origin { source: "here".into(), name: "fish".into(), version: version.into() };
            DeployedVersion::new(&format!("digest-{version}"), &origin)
        };
        let (one, two) = (placed("1"), placed("2"));
        let entry = Entry { serving: Some(two.clone()), previous: Some(one.clone()), ..Entry::default() };
        let (of_one, of_two) = (one.origin(), two.origin());
        for (answered, previous) in [
            (Some(Some(&of_two)), Some(&two)),
            // The second could not be loaded, and the first or the configured bundle has answered in its place.
            (Some(Some(&of_one)), Some(&one)),
            (Some(None), None),
            // Nothing has: the second is the one to go back to.
            (None, Some(&two)),
        ] {
            let mut entry = entry.clone();
            assert_eq!(entry.make_way(answered).as_ref(), Some(&two), "{answered:?}");
            assert_eq!((entry.serving, entry.previous.as_ref()), (None, previous), "{answered:?}");
        }
    }
}
