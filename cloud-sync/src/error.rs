//! Errors of the stores and links: what failed, and whether a retry can help.

use std::error::Error;
use std::fmt;
use std::io::{self, ErrorKind};

/// Whether a retry of the same call can help.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The other side is unavailable, slow or busy: the same call will succeed later.
    Transient,
    /// The request is refused, and will be on every retry.
    Permanent,
}

/// An operation of a store, a queue or a sink that failed. It never contains a secret.
///
/// The text says what was tried and where; the source is the client library's error.
#[derive(Debug, thiserror::Error)]
#[error("{link}: {what}")]
pub struct SyncError {
    link: Link,
    what: String,
    fault: Fault,
    of_the_link: bool,
    record: Option<String>,
    #[source]
    source: Option<Box<dyn Error + Send + Sync>>,
}

/// Result of a call to a store or a link.
pub type SyncResult<T> = Result<T, SyncError>;

impl SyncError {
    /// A transient error.
    pub fn transient(link: Link, what: impl Into<String>) -> Self {
        Self {
            link,
            what: what.into(),
            fault: Fault::Transient,
            of_the_link: true,
            record: None,
            source: None,
        }
    }

    /// A permanent error.
    pub fn permanent(link: Link, what: impl Into<String>) -> Self {
        Self {
            link,
            what: what.into(),
            fault: Fault::Permanent,
            of_the_link: false,
            record: None,
            source: None,
        }
    }

    /// Marks the link, not the request, as the cause: the login is refused, for example, or another server answers.
    /// An immediate retry is useless, but after a correction of the configuration the same call succeeds.
    #[must_use]
    pub fn of_the_link(mut self) -> Self {
        self.of_the_link = true;
        self
    }

    /// Whether the link is the cause, not the request.
    #[must_use]
    pub fn is_of_the_link(&self) -> bool {
        self.of_the_link
    }

    /// Marks the record with this id as the cause, not the others that were published with it.
    #[must_use]
    pub fn of_record(mut self, id: impl Into<String>) -> Self {
        self.record = Some(id.into());
        self
    }

    /// The id of the record that is the cause, if one is.
    #[must_use]
    pub fn record(&self) -> Option<&str> {
        self.record.as_deref()
    }

    /// Sets the source.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Whether the same call can succeed later.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        self.fault == Fault::Transient
    }

    /// Whether the cause is a lack of space on a disk of this machine.
    #[must_use]
    pub fn is_disk_full(&self) -> bool {
        is_disk_full(self)
    }

    /// Which link failed.
    #[must_use]
    pub fn link(&self) -> Link {
        self.link
    }

    /// The text with those of all its sources, for one line of a log or a report.
    #[must_use]
    pub fn in_full(&self) -> String {
        with_sources(self)
    }
}

/// The text of an error with those of all its sources, in one line.
pub(crate) fn with_sources(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        // Client libraries often repeat their source in their own text.
        if !text.ends_with(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    text
}

/// Whether one of the sources of `error` is that a disk, a quota or the maximum file size is exhausted.
#[must_use]
pub fn is_disk_full(error: &(dyn Error + 'static)) -> bool {
    let full = |error: &io::Error| {
        matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge)
    };
    let mut cause = Some(error);
    while let Some(error) = cause {
        if error.downcast_ref::<io::Error>().is_some_and(full) {
            return true;
        }
        cause = error.source();
    }
    false
}

/// The other side of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Link {
    /// The Kafka broker.
    Kafka,
    /// The Redis server.
    Redis,
    /// The object storage.
    S3,
    /// The MLflow server.
    Mlflow,
    /// This machine's own disk, where the embedded stores are.
    Disk,
}

impl Link {
    /// The name in configuration, metrics and `/health`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Kafka => "kafka",
            Self::Redis => "redis",
            Self::S3 => "s3",
            Self::Mlflow => "mlflow",
            Self::Disk => "disk",
        }
    }
}

impl fmt::Display for Link {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_full_text_names_every_cause_once() {
        let io = std::io::Error::other("connection refused");
        let error = SyncError::transient(Link::Redis, "cannot connect to 10.0.0.1:6379").because(io);
        assert_eq!(error.in_full(), "redis: cannot connect to 10.0.0.1:6379: connection refused");
        assert!(error.is_transient());
        let error = SyncError::permanent(Link::S3, "no such bucket: fish").because("no such bucket: fish");
        assert_eq!(error.in_full(), "s3: no such bucket: fish");
        assert!(!error.is_transient());
    }
}
