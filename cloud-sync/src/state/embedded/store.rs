//! The state store of one process: what it promises, put together from the cache and the file.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use moka::policy::EvictionPolicy;
use moka::sync::Cache;
use parking_lot::Mutex;
use redb::Durability;
use tokio::task::spawn_blocking;

use super::batches::{Batches, Bounds, Change};
use super::record::{Record, millis};
use super::{EmbeddedState, StateConfig, StateStats};
use crate::database::Stop;
use crate::error::{Link, SyncError, SyncResult};
use crate::state::{
    BatchOutcome, BatchPhase, BatchSpec, BatchStatus, ChunkDone, ChunkStart, Created, StateStore, WorkStarts,
};

const FILE: &str = "batches.redb";
/// Bytes of batches, chunks and inline results on disk.
const MAX_BYTES: u64 = 256 << 20;
/// Bytes of batches that changed lately, in memory: those that are asked for.
const RECENT_BYTES: u64 = 8 << 20;

/// State for one process: the content cache in memory, batches in `batches.redb` in a directory, where they
/// survive restarts and crashes.
///
/// A batch is forgotten when its time to live has passed since its last change. All batches together are
/// bounded: beyond 256 MiB the finished ones that changed longest ago are forgotten earlier, and where none is
/// finished new ones are refused. A batch that changed lately is answered from memory; asking for it waits
/// for no disk and no writer.
#[derive(Debug)]
pub struct EmbeddedStore {
    cache: EmbeddedState,
    batches: Arc<Kept>,
}

#[derive(Debug)]
struct Kept {
    file: Batches,
    /// As they are in the file. Only changes put something here, in their order, so nothing old gets in.
    recent: Cache<String, Arc<Record>>,
    /// Held from the begin of a change until it is in `recent`.
    writing: Mutex<()>,
}

impl EmbeddedStore {
    /// Opens the store in the directory `dir`, and makes it if it is not there.
    ///
    /// The whole file is read and checked, so this blocks for as long as the disk takes.
    ///
    /// # Errors
    /// Permanent, with the file's name, when another process has it open or it is of another version; transient
    /// when the disk is full. A file that is damaged or no such file is set aside, and the store is empty:
    /// [`Self::quarantined`].
    pub fn open(dir: impl Into<PathBuf>, cache: StateConfig, status_ttl: Duration) -> SyncResult<Self> {
        Self::open_bounded(dir.into(), cache, Bounds { ttl: status_ttl, max_bytes: MAX_BYTES })
    }

    pub(super) fn open_bounded(dir: PathBuf, cache: StateConfig, bounds: Bounds) -> SyncResult<Self> {
        let file = Batches::open(dir.join(FILE), bounds)?;
        let recent = Cache::builder()
            .max_capacity(RECENT_BYTES)
            .weigher(|_: &String, record: &Arc<Record>| u32::try_from(record.weight()).unwrap_or(u32::MAX))
            .eviction_policy(EvictionPolicy::lru())
            .build();
        let batches = Arc::new(Kept { file, recent, writing: Mutex::new(()) });
        Ok(Self { cache: EmbeddedState::new(cache), batches })
    }

    /// Where the damaged file is that had to be set aside when the store was opened, if it had to be.
    #[must_use]
    pub fn quarantined(&self) -> Option<&Path> {
        self.batches.file.quarantined()
    }

    /// What the content cache holds and how it fared.
    #[must_use]
    pub fn cache_stats(&self) -> StateStats {
        self.cache.stats()
    }

    /// Runs what blocks on the disk where it may. It runs to its end also when nobody waits for it any more.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Kept) -> SyncResult<T> + Send + 'static,
    ) -> SyncResult<T> {
        let batches = Arc::clone(&self.batches);
        spawn_blocking(move || work(&batches)).await.unwrap_or_else(|error| {
            Err(SyncError::transient(Link::Disk, "the work on a batch was broken off").because(error))
        })
    }

    #[cfg(test)]
    pub(super) fn file(&self) -> &Batches {
        &self.batches.file
    }
}

impl Kept {
    /// Changes a batch. `work` is given the batch if it is known, and returns what it shall be.
    fn change<T>(
        &self,
        id: &str,
        durability: Durability,
        work: impl FnOnce(&Change<'_>, Option<Record>) -> Result<(T, Option<Record>), Stop>,
    ) -> SyncResult<T> {
        let _writing = self.writing.lock();
        let changed = self.file.change(id, durability, work).inspect_err(|_| {
            // Whether it is on the disk is not known: the file will say.
            self.recent.invalidate(id);
        })?;
        match changed.record {
            Some(record) => self.recent.insert(id.to_owned(), Arc::new(record)),
            None => self.recent.invalidate(id),
        }
        for id in &changed.forgotten {
            self.recent.invalidate(id);
        }
        Ok(changed.value)
    }
}

#[async_trait]
impl StateStore for EmbeddedStore {
    async fn get(&self, key: &[u8; 32]) -> SyncResult<Option<Bytes>> {
        Ok(self.cache.get(key))
    }

    async fn put(&self, key: &[u8; 32], value: Bytes, ttl: Duration) -> SyncResult<()> {
        self.cache.put(key, value, ttl);
        Ok(())
    }

    async fn create_batch(&self, spec: &BatchSpec) -> SyncResult<Created> {
        let spec = spec.clone();
        let create = move |kept: &Kept| {
            kept.change(&spec.request_id, Durability::Immediate, |change, found| {
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
        let submit = move |kept: &Kept| {
            kept.change(&id, Durability::Immediate, |_, mut found| {
                found.as_mut().map(Record::submit);
                Ok(((), found))
            })
        };
        self.blocking(submit).await
    }

    async fn start_chunk(&self, spec: &BatchSpec, chunk: u32) -> SyncResult<ChunkStart> {
        let spec = spec.clone();
        let start = move |kept: &Kept| {
            let id = &spec.request_id;
            if let Some((record, owner)) = kept.file.look(id, Some(chunk))?
                && record.phase != BatchPhase::Queued
            {
                return Ok(record.started(false, owner));
            }
            // Not forced to the disk: `batches` says why.
            kept.change(id, Durability::None, |change, found| {
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
        let complete = move |kept: &Kept| {
            kept.change(&spec.request_id, Durability::Immediate, |change, found| {
                let mut record = found.unwrap_or_else(|| Record::new(&spec, true, change.now));
                record.check(chunk)?;
                let owner = match change.owner(chunk)? {
                    Some(owner) => owner,
                    None => {
                        change.own(chunk, &position)?;
                        record.count(completed, failed);
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
        let finish = move |kept: &Kept| {
            kept.change(&spec.request_id, Durability::Immediate, |change, found| {
                let mut record = found.unwrap_or_else(|| Record::new(&spec, true, change.now));
                record.finish(&outcome);
                Ok((record.phase, Some(record)))
            })
        };
        self.blocking(finish).await
    }

    async fn cancel_batch(&self, spec: &BatchSpec) -> SyncResult<BatchStatus> {
        let spec = spec.clone();
        let cancel = move |kept: &Kept| {
            kept.change(&spec.request_id, Durability::Immediate, |change, found| {
                let mut record = found.unwrap_or_else(|| Record::new(&spec, true, change.now));
                record.cancel(change.now);
                Ok((record.status(), Some(record)))
            })
        };
        self.blocking(cancel).await
    }

    async fn batch(&self, request_id: &str) -> SyncResult<Option<BatchStatus>> {
        if let Some(record) = self.batches.recent.get(request_id) {
            let is_past = record.is_past(self.batches.file.ttl(), millis(SystemTime::now()));
            return Ok((!is_past).then(|| record.status()));
        }
        let id = request_id.to_owned();
        let look = move |kept: &Kept| Ok(kept.file.look(&id, None)?.map(|(record, _)| record.status()));
        self.blocking(look).await
    }

    async fn forget_batch(&self, request_id: &str) -> SyncResult<()> {
        let id = request_id.to_owned();
        let forget = move |kept: &Kept| kept.change(&id, Durability::Immediate, |_, _| Ok(((), None)));
        self.blocking(forget).await
    }

    async fn work_starts(&self, position: &str) -> SyncResult<WorkStarts> {
        let position = position.to_owned();
        self.blocking(move |kept: &Kept| kept.file.starts(&position).map(WorkStarts::so_far)).await
    }

    async fn begin_work(&self, position: &str, image: Option<u64>, step: u64) -> SyncResult<()> {
        let position = position.to_owned();
        let begin = move |kept: &Kept| {
            kept.file.work(&position, |mut starts| {
                starts.begin(image, step);
                Some(starts)
            })
        };
        self.blocking(begin).await
    }

    async fn end_work(&self, position: &str, step: Option<u64>) -> SyncResult<()> {
        let position = position.to_owned();
        let end = move |kept: &Kept| {
            kept.file.work(&position, |mut starts| {
                starts.give_back(step?);
                (starts != WorkStarts::default()).then_some(starts)
            })
        };
        self.blocking(end).await
    }
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
