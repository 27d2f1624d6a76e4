//! Batches: accepted, queued, processed, reported.
//!
//! A batch flows through these modules in this order: [`spool`] (the body, on disk) -> [`parsing`] (read under bounds)
//! -> `submit` (state, blobs, queue) -> [`worker`] -> `status` (also results, cancellation). [`object_keys`] says
//! where its objects are, [`result_store`] reads and writes those of results.
//!
//! Invariants:
//! - The same `request_id` with the same content is the same batch, however often and wherever it is sent.
//! - What is answered with 202 is in the queue, durably. An interrupted submission is completed by sending it again.
//! - No list of images is ever in memory as a whole.

mod batch_manifest;
mod chunker;
mod error;
pub mod gc;
pub mod image_url;
pub mod load;
pub mod message;
mod metrics;
pub mod object_keys;
pub mod parsing;
pub mod result_store;
pub mod retry;
pub mod spool;
mod status;
mod submit;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
pub mod worker;

use std::collections::HashSet;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use cloud_sync::batch_status::BatchStatusStore;
use cloud_sync::blob::BlobStore;
use cloud_sync::queue::JobQueue;
use parking_lot::Mutex;
use tempfile::TempPath;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

pub use batch_manifest::BatchRecord;
pub use error::BatchError;
pub use metrics::{BatchMetrics, BatchReading};
pub use status::{BatchView, ResultsFile};
pub use submit::Accepted;

pub(crate) use batch_manifest::rfc3339_text;

use crate::config::{BatchConfig, Config};
use parsing::{BatchOptions, Intake, IntakeBounds};
use result_store::ResultStore;
use spool::{Spool, SpoolError};

/// Concurrent submissions: each may have a body on the disk.
pub(crate) const MAX_SUBMISSIONS: usize = 8;
/// Concurrent downloads of results: each has a copy on the disk.
pub(crate) const MAX_DOWNLOADS: usize = 4;
/// Concurrent recoveries of statuses from the blob store.
const MAX_RECOVERIES: usize = 2;

/// The three stores that batches need.
#[derive(Debug, Clone)]
pub struct BatchStores {
    /// The queue of batch work.
    pub queue: Arc<dyn JobQueue>,
    /// The progress of each batch.
    pub state: Arc<dyn BatchStatusStore>,
    /// Files, records and results.
    pub blob: Arc<dyn BlobStore>,
}

/// Accepts batches and reports on them.
pub struct BatchService {
    /// The queue of batch work.
    pub queue: Arc<dyn JobQueue>,
    /// The progress of each batch.
    pub state: Arc<dyn BatchStatusStore>,
    /// Files, records and results.
    pub blob: Arc<dyn BlobStore>,
    /// Bounds and sizes.
    pub config: BatchConfig,
    spool: Spool,
    results: ResultStore,
    max_file: u64,
    labels: CountLabels,
    submissions: Arc<Semaphore>,
    downloads: Arc<Semaphore>,
    recoveries: Semaphore,
    /// Ids of the batches that are being submitted by this process.
    submitting: Mutex<HashSet<String>>,
}

impl fmt::Debug for BatchService {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.debug_struct("BatchService").field("queue", &self.queue).finish_non_exhaustive()
    }
}

/// Returns the number of labels of the model that classifies batches.
pub type CountLabels = Box<dyn Fn() -> usize + Send + Sync>;

/// Where bodies and results are spooled in a data directory.
pub fn spool_dir(config: &Config) -> PathBuf {
    config.data_dir.join("spool")
}

impl BatchService {
    /// A service on these stores; blocking. `labels` returns the number of labels of the current model.
    ///
    /// # Errors
    /// When the spool folder can't be used.
    pub fn open(stores: BatchStores, config: &Config, labels: CountLabels) -> Result<Arc<Self>, SpoolError> {
        let spool = Spool::open(spool_dir(config))?;
        Ok(Arc::new(Self {
            results: ResultStore::new(Arc::clone(&stores.blob), spool.clone()),
            queue: stores.queue,
            state: stores.state,
            blob: stores.blob,
            spool,
            max_file: config.http.max_body.as_u64(),
            labels,
            config: config.batch.clone(),
            submissions: Arc::new(Semaphore::new(MAX_SUBMISSIONS)),
            downloads: Arc::new(Semaphore::new(MAX_DOWNLOADS)),
            recoveries: Semaphore::new(MAX_RECOVERIES),
            submitting: Mutex::default(),
        }))
    }

    /// Admits one more submission, for as long as the permit lives.
    ///
    /// # Errors
    /// [`BatchError::Busy`] at the bound.
    pub fn admit(&self) -> Result<OwnedSemaphorePermit, BatchError> {
        let permit = Arc::clone(&self.submissions).try_acquire_owned();
        permit.map_err(|_| BatchError::Busy { what: "batch submissions", limit: MAX_SUBMISSIONS })
    }

    /// Where bodies are stored.
    pub fn spool(&self) -> &Spool {
        &self.spool
    }

    /// Most labels that a result may have.
    pub fn labels(&self) -> usize {
        (self.labels)()
    }

    /// Reads a spooled body.
    ///
    /// # Errors
    /// [`BatchError::Intake`], with the first thing that is wrong.
    pub async fn read(
        &self,
        body: TempPath,
        content_type: &str,
        query: BatchOptions,
    ) -> Result<Intake, BatchError> {
        let bounds = IntakeBounds {
            max_images: self.config.max_images,
            max_file: self.max_file,
            labels: self.labels(),
        };
        Ok(parsing::read(body, content_type, query, &self.spool, bounds).await?)
    }
}
