//! A store in memory that can be unavailable or refuse, to test the uploader.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;

use crate::blob::{BlobInfo, BlobKey, BlobPage, BlobStore};
use crate::error::{Link, SyncError, SyncResult};

#[derive(Debug, Default)]
pub(super) struct MemoryStore {
    pub(super) objects: Mutex<BTreeMap<String, Bytes>>,
    /// Every put of an image, in order.
    pub(super) puts: Mutex<Vec<String>>,
    faults: Mutex<Faults>,
}

#[derive(Debug, Default)]
struct Faults {
    away: bool,
    refuse_all: bool,
    refuse: HashSet<String>,
}

impl MemoryStore {
    pub(super) fn set_away(&self, away: bool) {
        self.faults.lock().away = away;
    }

    pub(super) fn refuse_all(&self, all: bool) {
        self.faults.lock().refuse_all = all;
    }

    /// Refuses every key that holds `part`.
    pub(super) fn refuse(&self, part: &str) {
        self.faults.lock().refuse.insert(part.to_owned());
    }

    pub(super) fn keys(&self) -> Vec<String> {
        self.objects.lock().keys().cloned().collect()
    }

    fn check(&self, key: &str) -> SyncResult<()> {
        let faults = self.faults.lock();
        if faults.away {
            return Err(SyncError::transient(Link::S3, "cannot connect"));
        }
        if faults.refuse_all || faults.refuse.iter().any(|part| key.contains(part)) {
            return Err(SyncError::permanent(Link::S3, format!("access denied: {key}")));
        }
        Ok(())
    }
}

#[async_trait]
impl BlobStore for MemoryStore {
    async fn put(&self, key: &BlobKey, bytes: Bytes, content_type: &str) -> SyncResult<()> {
        self.check(key.as_str())?;
        assert_eq!(content_type == "application/json", key.as_str().ends_with(".json"));
        self.puts.lock().push(key.to_string());
        self.objects.lock().insert(key.to_string(), bytes);
        Ok(())
    }

    async fn put_file(&self, key: &BlobKey, file: &Path, content_type: &str) -> SyncResult<()> {
        self.put(key, std::fs::read(file).unwrap().into(), content_type).await
    }

    async fn get(&self, key: &BlobKey, _max_bytes: u64) -> SyncResult<Option<Bytes>> {
        self.check("")?;
        Ok(self.objects.lock().get(key.as_str()).cloned())
    }

    async fn get_file(&self, key: &BlobKey, file: &Path) -> SyncResult<Option<u64>> {
        let Some(bytes) = self.get(key, u64::MAX).await? else { return Ok(None) };
        std::fs::write(file, &bytes).unwrap();
        Ok(Some(bytes.len() as u64))
    }

    async fn head(&self, key: &BlobKey) -> SyncResult<Option<BlobInfo>> {
        let found = self.get(key, u64::MAX).await?;
        Ok(found.map(|b| BlobInfo { key: key.to_string(), bytes: b.len() as u64, modified: None }))
    }

    async fn list(&self, prefix: &str, _next: Option<&str>) -> SyncResult<BlobPage> {
        self.check("")?;
        let objects = self.objects.lock();
        let with = objects.iter().filter(|(key, _)| key.starts_with(prefix));
        let info = |(key, b): (&String, &Bytes)| BlobInfo {
            key: key.clone(),
            bytes: b.len() as u64,
            modified: None,
        };
        Ok(BlobPage { objects: with.map(info).collect(), next: None })
    }

    async fn delete(&self, key: &BlobKey) -> SyncResult<()> {
        self.objects.lock().remove(key.as_str());
        Ok(())
    }

    fn uri(&self, key: &BlobKey) -> String {
        format!("memory:{key}")
    }
}
