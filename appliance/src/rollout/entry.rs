//! The journal's entry of one model: the versions that serve and served, rejected versions, tags to be set, monitoring.

use std::collections::VecDeque;
use std::fmt;
use std::time::{Duration, SystemTime};

use cloud_sync::registry::ModelReference;
use serde::{Deserialize, Serialize};

use crate::models::Origin;
use crate::serving::VersionCounts;

/// Rejected versions that are remembered per model.
const MAX_REJECTED: usize = 100;
/// Tags per model that wait for the registry; the oldest are dropped first.
const MAX_PENDING_TAGS: usize = 100;
/// Longest value of a tag; MLflow takes 5,000 characters.
const MAX_TAG_LEN: usize = 500;
/// Processes that may die with a version before it is rolled back.
const MAX_CRASHES: u32 = 3;

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

    /// The registered version.
    pub fn origin(&self) -> Origin {
        Origin { source: self.source.clone(), name: self.name.clone(), version: self.version.clone() }
    }
}

impl fmt::Display for DeployedVersion {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "{}/{}", self.name, self.version)
    }
}

/// A version that is not tried again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rejected {
    /// Registered name.
    pub name: String,
    /// Version in the registry.
    pub version: String,
    /// Where its bytes came from: under another source the same number is another version.
    pub source: String,
    /// For the operator and the registry's tag.
    pub reason: String,
    /// When it was rejected.
    #[serde(with = "humantime_serde")]
    pub at: SystemTime,
}

/// A tag that is not set in the registry yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingTag {
    /// Registered name.
    pub name: String,
    /// Version.
    pub version: String,
    /// The tag's value.
    pub value: String,
}

/// How far the monitoring of a promoted version is. Its time is what processes have observed: neither the time between
/// processes nor a step of the clock counts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Monitored {
    /// How long it has been monitored.
    #[serde(with = "humantime_serde")]
    pub time: Duration,
    /// What it has done in that time.
    pub done: VersionCounts,
    /// What the version before had done by the promotion; empty in later processes.
    pub before: VersionCounts,
    /// Images that the version before computed, too.
    pub compared: u64,
    /// Those of them with another best label.
    pub disagreed: u64,
    /// Whether an operator promoted it, so that its labels are not compared with those of the version before.
    pub ordered: bool,
    /// Processes that started with it.
    #[serde(default)]
    pub starts: Starts,
}

/// Processes that started with a monitored version since one of them was stopped. A process that dies of the version leaves
/// no other trace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Starts {
    count: u32,
    /// The boot of the machine: where the machine itself went down, its processes did not die of the version.
    boot: String,
}

impl Starts {
    /// The process that promotes the version.
    pub(super) fn first(boot: &str) -> Self {
        Self { count: 1, boot: boot.to_owned() }
    }

    /// Counts a process that starts.
    pub(super) fn add(&mut self, boot: &str) {
        *self = Self { count: self.crashes(boot) + 1, boot: boot.to_owned() };
    }

    /// Processes that have died, as seen by one that starts.
    fn crashes(&self, boot: &str) -> u32 {
        if self.boot == boot { self.count } else { 0 }
    }
}

/// What outlives the process about one model.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Entry {
    /// The version that serves; none for the configured bundle.
    pub serving: Option<DeployedVersion>,
    /// The one that served before; none for the configured bundle.
    pub previous: Option<DeployedVersion>,
    /// Versions that are not tried again, oldest first.
    pub rejected: VecDeque<Rejected>,
    /// The version that an operator has pinned.
    pub pinned: Option<String>,
    /// Tags to be set in the registry.
    pub pending_tags: VecDeque<PendingTag>,
    /// Monitoring of the version that serves since its promotion; none once that is over.
    pub monitored: Option<Monitored>,
}

impl Entry {
    /// The rejection of a version, if it is rejected.
    pub fn rejection(&self, origin: &Origin) -> Option<&Rejected> {
        let is_it = |r: &&Rejected| {
            (&r.name, &r.version, &r.source) == (&origin.name, &origin.version, &origin.source)
        };
        self.rejected.iter().find(is_it)
    }

    /// Without versions of models that the configuration no longer follows.
    pub(super) fn still_followed(mut self, follow: Option<&ModelReference>) -> Self {
        let is_followed = |placed: &DeployedVersion| follow.is_some_and(|follow| follow.name == placed.name);
        self.serving = self.serving.filter(is_followed);
        self.previous = self.previous.filter(is_followed);
        self
    }

    /// Why the version that serves is not to be loaded again: too many processes died with it.
    pub(super) fn crash_reason(&self, monitor_time: Duration, boot: &str) -> Option<String> {
        let Monitored { time, starts, .. } = self.monitored.as_ref()?;
        let crashes = starts.crashes(boot);
        (*time < monitor_time && crashes >= MAX_CRASHES).then(|| {
            format!("after it was promoted, {crashes} processes that served it died (were not stopped)")
        })
    }

    /// A version serves from now on. `answered` is the origin of the version that has served until now, if any has.
    pub(super) fn promote(
        &mut self,
        placed: DeployedVersion,
        answered: Option<Option<&Origin>>,
        monitored: Option<Monitored>,
    ) {
        if let Some(replaced) = self.make_way(answered) {
            self.queue_tag(&replaced.origin(), &format!("replaced by {placed}"));
        }
        self.queue_tag(&placed.origin(), "serving");
        self.serving = Some(placed);
        self.monitored = monitored;
    }

    /// The version that serves is rejected, and the version before serves again; none for the configured bundle.
    pub(super) fn roll_back(&mut self, undone: &Origin, reason: &str, to: Option<DeployedVersion>) {
        self.reject_with_tag(undone, reason);
        self.previous = None;
        if let Some(to) = &to {
            self.queue_tag(&to.origin(), "serving");
        }
        self.serving = to;
        self.monitored = None;
    }

    /// The version `placed` of the journal does not serve; `origin` does.
    pub(super) fn drop_serving(&mut self, placed: &DeployedVersion, origin: Option<&Origin>) {
        if self.serving.as_ref() != Some(placed) {
            return;
        }
        self.serving = self.previous.take().filter(|previous| Some(&previous.origin()) == origin);
        self.monitored = None;
    }

    /// The version that serves becomes the one before, if it is what has `answered`. Where it could not be loaded, another
    /// version has answered, and that one is the way back; its origin is none for the configured bundle. Returns what the
    /// journal said serves.
    fn make_way(&mut self, answered: Option<Option<&Origin>>) -> Option<DeployedVersion> {
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

    /// A version is not tried again.
    pub(super) fn reject(&mut self, origin: &Origin, reason: &str) {
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

    /// A version is not tried again, and its tag says why.
    pub(super) fn reject_with_tag(&mut self, origin: &Origin, reason: &str) {
        self.reject(origin, reason);
        self.queue_tag(origin, &format!("rejected: {reason}"));
    }

    /// A version may be tried again.
    pub(super) fn clear_rejection(&mut self, name: &str, version: &str) {
        self.rejected.retain(|rejected| rejected.name != name || rejected.version != version);
    }

    /// Queues a tag, in place of an older one of the same version.
    pub(super) fn queue_tag(&mut self, origin: &Origin, value: &str) {
        self.pending_tags.retain(|tag| tag.name != origin.name || tag.version != origin.version);
        self.pending_tags.push_back(PendingTag {
            name: origin.name.clone(),
            version: origin.version.clone(),
            value: tag_value(value),
        });
        while self.pending_tags.len() > MAX_PENDING_TAGS {
            self.pending_tags.pop_front();
        }
    }
}

/// A tag's value: at most [`MAX_TAG_LEN`] characters on one line.
fn tag_value(text: &str) -> String {
    let line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    match line.char_indices().nth(MAX_TAG_LEN) {
        Some((end, _)) => format!("{}...", &line[..end]),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_has_a_value_that_mlflow_takes() {
        assert_eq!(tag_value("rejected: a\nb"), "rejected: a b");
        assert_eq!(tag_value(&"é".repeat(600)).chars().count(), 503);
    }

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
