//! Small sections: the node, requests for predictions, the content cache, the shutdown.

use std::time::Duration;

use bytesize::ByteSize;
use serde::{Deserialize, Serialize};

use super::check::{Check, more_than_zero, within};

/// Maximum of `predict.max_deadline`: a client that waits longer has given up.
const MAX_DEADLINE: Duration = Duration::from_secs(24 * 3600);

/// The identity of this box.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct NodeConfig {
    /// Name in events and metrics; the host name unless set.
    pub name: String,
}

impl Default for NodeConfig {
    fn default() -> Self {
        let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
        Self { name: if name.is_empty() { "weir".into() } else { name } }
    }
}

impl NodeConfig {
    pub(super) fn validate(&self) -> Check {
        match self.name.is_empty() || self.name.len() > 253 {
            true => Err(("node.name", format!("{:?}: 1 to 253 characters", self.name))),
            false => Ok(()),
        }
    }
}

/// Requests for predictions.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct PredictConfig {
    /// Deadline of a request that names none.
    #[serde(with = "humantime_serde")]
    pub deadline: Duration,
    /// Maximum deadline of a request.
    #[serde(with = "humantime_serde")]
    pub max_deadline: Duration,
    /// Predictions in an answer unless the request has a number.
    pub top_k: usize,
}

impl Default for PredictConfig {
    fn default() -> Self {
        Self { deadline: Duration::from_secs(10), max_deadline: Duration::from_secs(60), top_k: 5 }
    }
}

impl PredictConfig {
    pub(super) fn validate(&self) -> Check {
        within("predict.top_k", self.top_k, 1, 1000)?;
        more_than_zero("predict.deadline", self.deadline)?;
        let (deadline, max) = (self.deadline, self.max_deadline);
        if max > MAX_DEADLINE {
            let value = humantime::format_duration(max);
            return Err(("predict.max_deadline", format!("{value} is more than a day")));
        }
        if max < deadline {
            let (max, deadline) = (humantime::format_duration(max), humantime::format_duration(deadline));
            return Err((
                "predict.max_deadline",
                format!("{max} is less than predict.deadline = {deadline}"),
            ));
        }
        Ok(())
    }
}

/// The content cache: the same bytes, model and parameters get the same answer.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct CacheConfig {
    /// Whether the cache is used.
    pub enabled: bool,
    /// Memory for cached answers.
    pub max_bytes: ByteSize,
    /// How long an answer is kept.
    #[serde(with = "humantime_serde")]
    pub ttl: Duration,
}

impl Default for CacheConfig {
    fn default() -> Self {
        Self { enabled: true, max_bytes: ByteSize::mib(16), ttl: Duration::from_secs(3600) }
    }
}

/// The shutdown.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct ShutdownConfig {
    /// Maximum time for requests in flight to finish after SIGTERM.
    #[serde(with = "humantime_serde")]
    pub grace: Duration,
}

impl Default for ShutdownConfig {
    fn default() -> Self {
        Self { grace: Duration::from_secs(20) }
    }
}
