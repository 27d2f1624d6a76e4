//! Why something in the cloud did not work, and whether trying again can help.

use std::error::Error;
use std::fmt;
use std::io::{self, ErrorKind};

/// Whether trying the same again can help.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The other side is away, slow or busy: the same will work later.
    Transient,
    /// What was asked is refused, and will be however often it is asked.
    Permanent,
}

/// Something that a store, a queue or a sink could not do. It never holds a secret.
///
/// The text says what was tried and where; the source says what the client library saw.
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

/// What result a call into the cloud has.
pub type SyncResult<T> = Result<T, SyncError>;

impl SyncError {
    /// An error that passes by itself.
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

    /// An error that stays.
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

    /// The same, where what was asked is not at fault: the login is refused, say, or somebody else answers. Trying again
    /// at once is of no use, but once an operator has mended it the same works.
    #[must_use]
    pub fn of_the_link(mut self) -> Self {
        self.of_the_link = true;
        self
    }

    /// Whether the link is at fault, and not what was asked.
    #[must_use]
    pub fn is_of_the_link(&self) -> bool {
        self.of_the_link
    }

    /// The same, about the record with this id: it is at fault, and no other of those that were published with it.
    #[must_use]
    pub fn of_record(mut self, id: impl Into<String>) -> Self {
        self.record = Some(id.into());
        self
    }

    /// The id of the record that is at fault, where it is one.
    #[must_use]
    pub fn record(&self) -> Option<&str> {
        self.record.as_deref()
    }

    /// The same with what caused it.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Whether the same call can work later.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        self.fault == Fault::Transient
    }

    /// Whether it is for lack of space on a disk of this machine.
    #[must_use]
    pub fn is_disk_full(&self) -> bool {
        is_disk_full(self)
    }

    /// Which link failed.
    #[must_use]
    pub fn link(&self) -> Link {
        self.link
    }

    /// The text with those of all its causes, for one line of a log or a report.
    #[must_use]
    pub fn in_full(&self) -> String {
        let mut text = self.to_string();
        let mut cause = self.source();
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
}

/// Whether one of the causes of `error` is that a disk, a quota or the largest allowed file size is used up.
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
