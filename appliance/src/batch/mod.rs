//! Batches: taken, put into the queue, asked about.
//!
//! A batch flows through these modules in this order: [`spool`] (the body, on disk) -> [`intake`] (read under bounds)
//! -> `submit` (state, blobs, queue) -> a worker -> `status` and `results`, unless it is stopped by `cancel`. [`layout`]
//! says where everything lies.
//!
//! Invariants:
//! - The same `request_id` with the same content is the same batch, however often and wherever it is sent.
//! - What is answered with 202 is in the queue, durably. A submission that was broken off is finished by sending it
//!   again.
//! - No list of images is ever in memory as a whole.

mod batch_manifest;
mod cancel;
mod chunker;
mod drain;
mod error;
pub mod gc;
pub mod image_url;
mod lines;
pub mod load;
pub mod message;
mod metrics;
pub mod object_keys;
pub mod parsing;
mod pausing;
mod results;
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
pub use results::ResultsFile;
pub use status::BatchView;
pub use submit::Accepted;

pub(crate) use batch_manifest::rfc3339_text;

use crate::config::{BatchConfig, Config};
use parsing::{BatchOptions, Intake, IntakeBounds};
use spool::{Spool, SpoolError};

/// Submissions at once: each may have a body on the disk.
pub(crate) const MAX_SUBMISSIONS: usize = 8;
/// Results being given out at once: each has a copy on the disk.
pub(crate) const MAX_DOWNLOADS: usize = 4;
/// Statuses being put together from the blob store at once.
const MAX_RECOVERIES: usize = 2;

/// The three stores that batches need.
#[derive(Debug, Clone)]
pub struct BatchStores {
    /// Where the work waits.
    pub queue: Arc<dyn JobQueue>,
    /// How far each batch is.
    pub state: Arc<dyn BatchStatusStore>,
    /// Files, records and results.
    pub blob: Arc<dyn BlobStore>,
}

/// What takes batches and answers for them.
pub struct BatchService {
    /// Where the work waits.
    pub queue: Arc<dyn JobQueue>,
    /// How far each batch is.
    pub state: Arc<dyn BatchStatusStore>,
    /// Files, records and results.
    pub blob: Arc<dyn BlobStore>,
    /// Bounds and sizes.
    pub config: BatchConfig,
    spool: Spool,
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

/// Tells how many labels the model has that batches are worked off with.
pub type CountLabels = Box<dyn Fn() -> usize + Send + Sync>;

/// Where bodies and results are spooled in a data directory.
pub fn spool_dir(config: &Config) -> PathBuf {
    config.data_dir.join("spool")
}

impl BatchService {
    /// A service on these stores; blocking. `labels` tells how many labels the model has at the moment.
    ///
    /// # Errors
    /// When the spool folder can't be used.
    pub fn open(stores: BatchStores, config: &Config, labels: CountLabels) -> Result<Arc<Self>, SpoolError> {
        Ok(Arc::new(Self {
            queue: stores.queue,
            state: stores.state,
            blob: stores.blob,
            spool: Spool::open(spool_dir(config))?,
            max_file: config.http.max_body.as_u64(),
            labels,
            config: config.batch.clone(),
            submissions: Arc::new(Semaphore::new(MAX_SUBMISSIONS)),
            downloads: Arc::new(Semaphore::new(MAX_DOWNLOADS)),
            recoveries: Semaphore::new(MAX_RECOVERIES),
            submitting: Mutex::default(),
        }))
    }

    /// Lets one more submission in, for as long as the permit lives.
    ///
    /// # Errors
    /// [`BatchError::Busy`] at the bound.
    pub fn admit(&self) -> Result<OwnedSemaphorePermit, BatchError> {
        let permit = Arc::clone(&self.submissions).try_acquire_owned();
        permit.map_err(|_| BatchError::Busy { what: "batch submissions", limit: MAX_SUBMISSIONS })
    }

    /// Where a body is to be put.
    pub fn spool(&self) -> &Spool {
        &self.spool
    }

    /// How many labels a result may have.
    pub fn labels(&self) -> usize {
        (self.labels)()
    }

    /// Reads a body that was put into the spool.
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
