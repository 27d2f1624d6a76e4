//! File descriptors: as many as the system grants, some of them kept for everything but clients' connections.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::config::Config;

/// For the model, the outbox, stores, Kafka, Redis, S3, logs and the runtime itself.
const FOR_STORAGE: usize = 192;
/// More are of no use to anything.
const MAX_RESERVED: u64 = 1 << 20;

/// The files that a process may have open, and how they are shared out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Files {
    /// All of them.
    pub limit: usize,
    /// What clients' connections may take.
    pub connections: usize,
}

/// Raises the soft limit of open files to the hard one.
pub fn raise_limit() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let wanted = limit.maximum.unwrap_or(MAX_RESERVED).min(MAX_RESERVED);
    let current = limit.current.unwrap_or(u64::MAX);
    if current >= wanted {
        return current;
    }
    match setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum: limit.maximum }) {
        Ok(()) => wanted,
        Err(error) => {
            tracing::warn!(%error, current, wanted, "the limit of open files can't be raised");
            current
        }
    }
}

impl Files {
    /// Shares out a limit. A connection may need a second file, for a body or a result on the disk.
    pub fn share(limit: u64, config: &Config) -> Self {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let reserved = FOR_STORAGE + config.fetch.max_concurrent + config.batch.concurrent_fetches;
        // With very few files storage still comes first.
        let connections = limit.saturating_sub(reserved).max(limit / 8).max(1);
        Self { limit, connections }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn storage_comes_before_connections() {
        let config = Config::default();
        let reserved = FOR_STORAGE + config.fetch.max_concurrent + config.batch.concurrent_fetches;
        assert_eq!(Files::share(1024, &config).connections, 1024 - reserved);
        assert_eq!(Files::share(64, &config).connections, 8);
        assert_eq!(Files::share(1, &config).connections, 1);
        assert!(Files::share(u64::MAX, &config).connections > 1 << 40);
    }
}
