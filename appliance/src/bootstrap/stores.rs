//! The stores in the data directory: the directory itself, the outbox, objects, batches, captured images.

use std::cell::OnceCell;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cloud_sync::batch_status::EmbeddedBatchStatus;
use cloud_sync::blob::{BlobStore, Bound, DirStore};
use cloud_sync::capture::{Capture, CaptureConfig, CaptureError, CaptureRule as Rule};
use cloud_sync::error::SyncResult;
use cloud_sync::outbox::{Outbox, OutboxConfig, Recovery};
use cloud_sync::queue::{EmbeddedQueue, EmbeddedQueueConfig};
use tokio::runtime::Handle;

use super::{Links, StartError};
use crate::batch::{BatchStores, gc};
use crate::config::{CaptureRule, Config};

/// Creates a directory with mode 0700; an existing one stays as it is.
pub fn create_private(dir: &Path) -> std::io::Result<()> {
    if let Some(parent) = dir.parent() {
        std::fs::create_dir_all(parent)?;
    }
    match std::fs::DirBuilder::new().mode(0o700).create(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists && dir.is_dir() => Ok(()),
        made => made,
    }
}

/// Whether other users have access to a directory.
pub fn is_open_to_others(dir: &Path) -> bool {
    std::fs::metadata(dir).is_ok_and(|metadata| metadata.permissions().mode() & 0o077 != 0)
}

pub(super) fn make_data_dir(config: &Config) -> Result<(), StartError> {
    let dir = &config.data_dir;
    create_private(dir).map_err(|source| StartError::DataDir { path: dir.clone(), source })?;
    // The directory may be shared on purpose, so its mode is left as it is.
    if is_open_to_others(dir) {
        tracing::warn!(
            data_dir = %dir.display(),
            "other users of this machine have access to the data directory. Remedy: chmod 700"
        );
    }
    Ok(())
}

/// Opens the outbox in the data directory.
pub(super) fn open_outbox(config: &Config) -> Result<Outbox, StartError> {
    let (outbox, recovery) = Outbox::open(outbox_config(config))?;
    report(&recovery);
    Ok(outbox)
}

fn outbox_config(config: &Config) -> OutboxConfig {
    OutboxConfig {
        max_bytes: config.outbox.max_bytes.as_u64(),
        max_age: config.outbox.max_age,
        segment_bytes: config.outbox.segment.as_u64(),
        when_full: config.outbox.when_full,
        bulk_share: config.outbox.batch_share,
        durability: config.outbox.durability,
        reserve: config.outbox.reserve,
        has_consumer: config.kafka.publish_events && !config.kafka.bootstrap_servers.is_empty(),
        ..OutboxConfig::new(outbox_dir(&config.data_dir))
    }
}

/// The outbox's directory in a data directory.
pub fn outbox_dir(data_dir: &Path) -> PathBuf {
    data_dir.join("outbox")
}

/// The models' directory in a data directory.
pub fn models_dir(data_dir: &Path) -> PathBuf {
    data_dir.join("models")
}

fn report(recovery: &Recovery) {
    if recovery.truncated_bytes > 0 {
        tracing::warn!(
            bytes = recovery.truncated_bytes,
            "the outbox ended with an incomplete event, which was never acknowledged; it was truncated"
        );
    }
    if let Some(reason) = recovery.lost_end {
        tracing::error!(?reason, "the outbox has lost its newest events, or may have");
    }
    for damage in &recovery.damaged {
        let path = damage.path.display();
        tracing::error!(%path, offset = damage.offset, bytes = damage.bytes, "part of the outbox cannot be read");
    }
    tracing::info!(events = recovery.events, segments = recovery.segments, "outbox open");
}

/// The blob store in the data directory. It is opened on first use and shared, since its limits hold for all of its users.
pub(super) struct LocalBlobStore<'a> {
    config: &'a Config,
    opened: OnceCell<DirStore>,
}

impl<'a> LocalBlobStore<'a> {
    pub(super) fn new(config: &'a Config) -> Self {
        Self { config, opened: OnceCell::new() }
    }

    pub(super) fn store(&self) -> SyncResult<DirStore> {
        if let Some(store) = self.opened.get() {
            return Ok(store.clone());
        }
        let blobs = &self.config.blobs;
        let bound = Bound {
            max_bytes: blobs.max_bytes.as_u64(),
            min_free: blobs.min_free.as_u64(),
            share: gc::share,
        };
        let store = DirStore::open_bounded(self.config.data_dir.join("blobs"), bound)?;
        Ok(self.opened.get_or_init(|| store).clone())
    }

    /// The store, if it is used.
    pub(super) fn opened(&self) -> Option<DirStore> {
        self.opened.get().cloned()
    }
}

/// The stores of batches in the data directory, and the paths of damaged files that were quarantined.
pub(super) fn embedded_batch_stores(
    config: &Config,
    outbox: &Arc<Outbox>,
    local: &LocalBlobStore<'_>,
) -> SyncResult<(BatchStores, Vec<PathBuf>)> {
    let dir = &config.data_dir;
    let queue = EmbeddedQueueConfig {
        inflight: config.batch.inflight,
        max_bytes: config.batch.max_queued.as_u64(),
        dir: dir.join("batches"),
    };
    let state = EmbeddedBatchStatus::open(dir.join("batches"), config.batch.status_ttl)?;
    let queue = EmbeddedQueue::open(queue, Arc::clone(outbox))?;
    let quarantined = [state.quarantined(), queue.quarantined()];
    let quarantined = quarantined.into_iter().flatten().map(Path::to_path_buf).collect();
    let stores =
        BatchStores { queue: Arc::new(queue), state: Arc::new(state), blob: Arc::new(local.store()?) };
    Ok((stores, quarantined))
}

/// Opens the capture of images, where it is configured.
///
/// # Errors
/// When its directory cannot be used.
pub(super) fn open_capture(
    config: &Config,
    links: &Links,
    local: &LocalBlobStore<'_>,
) -> Result<Option<Arc<Capture>>, StartError> {
    let rule = match config.capture.rule {
        CaptureRule::None => return Ok(None),
        CaptureRule::All => Rule::All,
        CaptureRule::Below => Rule::Below(config.capture.confidence_below),
        CaptureRule::Sample => Rule::Sample(config.capture.sample),
    };
    let store: Arc<dyn BlobStore> = match &links.s3 {
        Some(s3) => Arc::clone(&s3.client) as Arc<dyn BlobStore>,
        None => Arc::new(local.store()?),
    };
    let capture = CaptureConfig {
        max_bytes: config.capture.max_bytes.as_u64(),
        // Waiting images are held in the memory for bodies; a slow disk must leave half of it to requests.
        max_waiting: (config.http.max_inflight.as_u64() / 2).max(config.http.max_body.as_u64()),
        ..CaptureConfig::new(config.data_dir.join("captured"), rule, &config.node.name)
    };
    let opened: Result<Capture, CaptureError> = Capture::open(capture, store, &Handle::current());
    Ok(Some(Arc::new(opened?)))
}
