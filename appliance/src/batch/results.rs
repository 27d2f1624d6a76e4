//! The results of a finished batch, as a file that can be given out.

use tempfile::TempPath;
use tokio::fs::File;
use tokio::sync::OwnedSemaphorePermit;

use super::object_keys::{check_any_id, results_key};
use super::{BatchError, BatchService, MAX_DOWNLOADS};

/// The results of a batch: one line of JSON an image, in the order of the images.
#[derive(Debug)]
pub struct ResultsFile {
    /// The file, at its beginning.
    pub file: File,
    /// Its length.
    pub bytes: u64,
    _path: TempPath,
    _permit: OwnedSemaphorePermit,
}

impl BatchService {
    /// The results of a finished batch.
    ///
    /// # Errors
    /// [`BatchError::NotFinished`], [`BatchError::Unknown`], [`BatchError::Busy`] when as many as allowed are being
    /// given out, or [`BatchError::Link`].
    pub async fn results(&self, id: &str) -> Result<ResultsFile, BatchError> {
        check_any_id(id).map_err(|_| BatchError::Unknown { request_id: id.chars().take(128).collect() })?;
        let busy = || BatchError::Busy { what: "downloads of results", limit: MAX_DOWNLOADS };
        let permit = std::sync::Arc::clone(&self.downloads).try_acquire_owned().map_err(|_| busy())?;
        let key = results_key(id)?;
        let (_, path) = self.spool.file().await?;
        let copied = self.blob.get_file(&key, &path).await.map_err(BatchError::link(id))?;
        let Some(bytes) = copied else {
            // Either error says why there are none.
            self.status(id).await?;
            return Err(BatchError::NotFinished { request_id: id.to_owned() });
        };
        // The store may have put another file in the place of ours.
        let file = File::open(&path).await.map_err(|e| self.spool.failed(e))?;
        Ok(ResultsFile { file, bytes, _path: path, _permit: permit })
    }
}
