//! The status of batches for one process, in `batches.redb`, with the recently changed ones in memory.

mod record;
mod tables;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use moka::policy::EvictionPolicy;
use moka::sync::Cache;
use parking_lot::Mutex;
use redb::Durability;
use tokio::task::spawn_blocking;

use super::{
    BatchOutcome, BatchPhase, BatchSpec, BatchStatus, BatchStatusStore, ChunkDone, ChunkStart, Created,
    WorkStarts,
};
use crate::database::Stop;
use crate::error::{Link, SyncError, SyncResult};
use crate::event::unix_ms;
use record::Record;
use tables::{Batches, Bounds, Change};

const FILE: &str = "batches.redb";
/// Maximum bytes of batches, chunks and inline results on disk.
const MAX_BYTES: u64 = 256 << 20;
/// Maximum bytes of recently changed batches in memory: those are the ones that are queried.
const RECENT_BYTES: u64 = 8 << 20;

/// The status of batches for one process, in `batches.redb` in a directory, where it survives restarts and crashes.
///
/// A batch is removed when its time to live has passed since its last change. All batches together are
/// bounded: above 256 MiB the least recently changed finished ones are removed earlier, and where none is
/// finished new ones are refused. A recently changed batch is read from memory: the query waits
/// for no disk and no writer.
#[derive(Debug)]
pub struct EmbeddedBatchStatus {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    file: Batches,
    /// Records as they are in the file. Only changes insert here, in their order, so no stale record gets in.
    recent: Cache<String, Arc<Record>>,
    /// Held from the start of a change until it is in `recent`.
    writing: Mutex<()>,
}

impl EmbeddedBatchStatus {
    /// Opens the store in the directory `dir`, and creates it if it does not exist.
    ///
    /// The whole file is read and checked, so this blocks for as long as the disk takes.
    ///
    /// # Errors
    /// Permanent, with the file's name, when another process has it open or it is of another version; transient
    /// when the disk is full. A file that is damaged or of another kind is quarantined, and the store is empty:
    /// [`Self::quarantined`].
    pub fn open(dir: impl Into<PathBuf>, status_ttl: Duration) -> SyncResult<Self> {
        Self::open_bounded(dir.into(), Bounds { ttl: status_ttl, max_bytes: MAX_BYTES })
    }

    fn open_bounded(dir: PathBuf, bounds: Bounds) -> SyncResult<Self> {
        let file = Batches::open(dir.join(FILE), bounds)?;
        let recent = Cache::builder()
            .max_capacity(RECENT_BYTES)
            .weigher(|_: &String, record: &Arc<Record>| u32::try_from(record.weight()).unwrap_or(u32::MAX))
            .eviction_policy(EvictionPolicy::lru())
            .build();
        Ok(Self { inner: Arc::new(Inner { file, recent, writing: Mutex::new(()) }) })
    }

    /// The damaged file that was quarantined when the store was opened, if there was one.
    #[must_use]
    pub fn quarantined(&self) -> Option<&Path> {
        self.inner.file.quarantined()
    }

    /// Runs blocking disk I/O on a blocking thread. It completes even when the caller no longer waits for it.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> SyncResult<T> + Send + 'static,
    ) -> SyncResult<T> {
        let inner = Arc::clone(&self.inner);
        spawn_blocking(move || work(&inner)).await.unwrap_or_else(|error| {
            Err(SyncError::transient(Link::Disk, "a change of a batch was aborted").because(error))
        })
    }

    #[cfg(test)]
    fn file(&self) -> &Batches {
        &self.inner.file
    }
}

impl Inner {
    /// Changes a batch. `work` receives the current record, if any, and returns the new one.
    fn change<T>(
        &self,
        id: &str,
        durability: Durability,
        work: impl FnOnce(&Change<'_>, Option<Record>) -> Result<(T, Option<Record>), Stop>,
    ) -> SyncResult<T> {
        let _writing = self.writing.lock();
        let changed = self.file.change(id, durability, work).inspect_err(|_| {
            // Whether it reached the disk is unknown: the next read is from the file.
            self.recent.invalidate(id);
        })?;
        match changed.record {
            Some(record) => self.recent.insert(id.to_owned(), Arc::new(record)),
            None => self.recent.invalidate(id),
        }
        for id in &changed.removed {
            self.recent.invalidate(id);
        }
        Ok(changed.value)
    }
}

#[async_trait]
impl BatchStatusStore for EmbeddedBatchStatus {
    async fn create_batch(&self, spec: &BatchSpec) -> SyncResult<Created> {
        let spec = spec.clone();
        let create = move |inner: &Inner| {
            inner.change(&spec.request_id, Durability::Immediate, |change, found| {
                if let Some(record) = found {
                    return Ok((Created::Existing(Box::new(record.status())), Some(record)));
                }
                change.check_room()?;
                Ok((Created::New, Some(Record::new(&spec, false, change.now))))
            })
        };
        self.blocking(create).await
    }

    async fn batch_submitted(&self, request_id: &str) -> SyncResult<()> {
        let id = request_id.to_owned();
        let submit = move |inner: &Inner| {
            inner.change(&id, Durability::Immediate, |_, mut found| {
                found.as_mut().map(Record::submit);
                Ok(((), found))
            })
        };
        self.blocking(submit).await
    }

    async fn start_chunk(&self, spec: &BatchSpec, chunk: u32) -> SyncResult<ChunkStart> {
        let spec = spec.clone();
        let start = move |inner: &Inner| {
            let id = &spec.request_id;
            if let Some((record, owner)) = inner.file.find(id, Some(chunk))?
                && record.phase != BatchPhase::Queued
            {
                return Ok(record.started(false, owner));
            }
            // Not synced to disk: `tables` says why.
            inner.change(id, Durability::None, |change, found| {
                let created = found.is_none();
                let mut record = found.unwrap_or_else(|| Record::new(&spec, true, change.now));
                record.start();
                Ok((record.started(created, change.owner(chunk)?), Some(record)))
            })
        };
        self.blocking(start).await
    }

    async fn complete_chunk(
        &self,
        spec: &BatchSpec,
        chunk: u32,
        position: &str,
        completed: u64,
        failed: u64,
    ) -> SyncResult<ChunkDone> {
        let (spec, position) = (spec.clone(), position.to_owned());
        let complete = move |inner: &Inner| {
            inner.change(&spec.request_id, Durability::Immediate, |change, found| {
                let mut record = found.unwrap_or_else(|| Record::new(&spec, true, change.now));
                record.check_chunk(chunk)?;
                let owner = match change.owner(chunk)? {
                    Some(owner) => owner,
                    None => {
                        change.set_owner(chunk, &position)?;
                        record.add_chunk(completed, failed);
                        position
                    }
                };
                Ok((record.done(owner), Some(record)))
            })
        };
        self.blocking(complete).await
    }

    async fn finish_batch(&self, spec: &BatchSpec, outcome: &BatchOutcome) -> SyncResult<BatchPhase> {
        let (spec, outcome) = (spec.clone(), outcome.clone());
        let finish = move |inner: &Inner| {
            inner.change(&spec.request_id, Durability::Immediate, |change, found| {
                let mut record = found.unwrap_or_else(|| Record::new(&spec, true, change.now));
                record.finish(&outcome);
                Ok((record.phase, Some(record)))
            })
        };
        self.blocking(finish).await
    }

    async fn cancel_batch(&self, spec: &BatchSpec) -> SyncResult<BatchStatus> {
        let spec = spec.clone();
        let cancel = move |inner: &Inner| {
            inner.change(&spec.request_id, Durability::Immediate, |change, found| {
                let mut record = found.unwrap_or_else(|| Record::new(&spec, true, change.now));
                record.cancel(change.now);
                Ok((record.status(), Some(record)))
            })
        };
        self.blocking(cancel).await
    }

    async fn batch(&self, request_id: &str) -> SyncResult<Option<BatchStatus>> {
        if let Some(record) = self.inner.recent.get(request_id) {
            let is_expired = record.is_expired(self.inner.file.ttl(), unix_ms(SystemTime::now()));
            return Ok((!is_expired).then(|| record.status()));
        }
        let id = request_id.to_owned();
        let find = move |inner: &Inner| Ok(inner.file.find(&id, None)?.map(|(record, _)| record.status()));
        self.blocking(find).await
    }

    async fn forget_batch(&self, request_id: &str) -> SyncResult<()> {
        let id = request_id.to_owned();
        let forget = move |inner: &Inner| inner.change(&id, Durability::Immediate, |_, _| Ok(((), None)));
        self.blocking(forget).await
    }

    async fn work_starts(&self, position: &str) -> SyncResult<WorkStarts> {
        let position = position.to_owned();
        self.blocking(move |inner: &Inner| inner.file.starts(&position).map(WorkStarts::so_far)).await
    }

    async fn begin_work(&self, position: &str, image: Option<u64>, step: u64) -> SyncResult<()> {
        let position = position.to_owned();
        let begin = move |inner: &Inner| {
            inner.file.work(&position, |mut starts| {
                starts.begin(image, step);
                Some(starts)
            })
        };
        self.blocking(begin).await
    }

    async fn end_work(&self, position: &str, step: Option<u64>) -> SyncResult<()> {
        let position = position.to_owned();
        let end = move |inner: &Inner| {
            inner.file.work(&position, |mut starts| {
                starts.revert(step?);
                (starts != WorkStarts::default()).then_some(starts)
            })
        };
        self.blocking(end).await
    }
}

#[cfg(test)]
mod tests;
