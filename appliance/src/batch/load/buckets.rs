//! Which objects an `s3://` URL may name.

use std::collections::BTreeMap;
use std::sync::Arc;

use cloud_sync::blob::BlobStore;
use cloud_sync::capture::KEY_PREFIX as CAPTURED;
use cloud_sync::error::SyncResult;

use super::LoadFailure;
use crate::batch::object_keys::FOLDERS;

/// The prefix that is listed to check whether the storage serves the appliance at all. It may be empty.
const PROBE: &str = "weir-check/";

/// The buckets that `s3://` URLs may name.
#[derive(Debug, Default)]
pub struct Buckets {
    /// Stores by bucket name, which read by whole keys.
    pub stores: BTreeMap<String, Arc<dyn BlobStore>>,
    /// The appliance's own bucket, which may be one of them.
    pub own: Option<OwnBucket>,
}

/// The bucket in which the appliance has objects of its own.
#[derive(Debug)]
pub struct OwnBucket {
    /// Its name.
    pub name: String,
    /// Prefix of the appliance's own keys: empty, or with a slash at its end.
    pub prefix: String,
    /// Prefixes of other keys that may be read.
    pub allow_prefixes: Vec<String>,
    /// The store under the prefix.
    pub store: Arc<dyn BlobStore>,
}

impl Buckets {
    /// The store that has an object, if the object may be read.
    pub(super) fn store(&self, bucket: &str, key: &str) -> Result<&dyn BlobStore, LoadFailure> {
        let refused = |error| Err(LoadFailure { code: "url_refused", error });
        let Some(store) = self.stores.get(bucket) else {
            return refused(format!(
                "image_url: bucket {bucket:?} is not one that images may come from; an operator can allow it in \
                 s3.allow_buckets"
            ));
        };
        match &self.own {
            Some(own) if own.name == bucket && !own.opens(key) => refused(format!(
                "image_url: images may not come from that part of bucket {bucket:?}; an operator can allow others \
                 than those under s3.prefix in s3.allow_prefixes, but not the appliance's own batches, results and \
                 dead letters"
            )),
            _ => Ok(store.as_ref()),
        }
    }

    /// Checks whether the storage serves the appliance's own calls: then a refusal is about the object.
    pub(super) async fn serve(&self) -> SyncResult<()> {
        match &self.own {
            Some(own) => own.store.list(PROBE, None).await.map(drop),
            None => Ok(()),
        }
    }
}

impl OwnBucket {
    /// Whether an `s3://` URL may name the key.
    fn opens(&self, key: &str) -> bool {
        // Some servers treat several slashes as one.
        let plain = key.split('/').filter(|part| !part.is_empty()).collect::<Vec<_>>().join("/");
        let under = |folder: &str| {
            let folder = format!("{}{folder}/", self.prefix);
            plain.starts_with(&folder)
        };
        if FOLDERS.iter().any(|folder| under(folder)) {
            return false;
        }
        if self.allow_prefixes.iter().any(|prefix| key.starts_with(prefix)) {
            return true;
        }
        key.starts_with(&self.prefix) && !under(CAPTURED)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::testing::MemoryBlob;

    fn own(prefix: &str, allow: &[&str]) -> OwnBucket {
        OwnBucket {
            name: "own".into(),
            prefix: prefix.into(),
            allow_prefixes: allow.iter().map(|prefix| (*prefix).to_owned()).collect(),
            store: Arc::<MemoryBlob>::default(),
        }
    }

    #[test]
    fn what_is_the_appliances_own_is_never_open_and_what_is_others_only_when_allowed() {
        // prefix, allowed, key, open
        for (prefix, allow, key, open) in [
            ("", &[][..], "raw/a.jpg", true),
            ("", &[], "a.jpg", true),
            ("", &[], "datasets/2026/a.jpg", true),
            ("", &[], "batches.jpg", true),
            ("", &[], "raw/batches/a.jpg", true),
            ("", &[], "batches/b1/files/00000000", false),
            ("", &[], "/batches/b1/files/00000000", false),
            ("", &[], "batches//b1/files/00000000", false),
            ("", &[], "results/b1.jsonl", false),
            ("", &[], "dead-letter/2026-01-31/p.json", false),
            ("", &[], "datasets/captured/2026-01-31/dock/d.jpg", false),
            ("", &[], "datasets//captured/2026-01-31/dock/d.jpg", false),
            ("", &["datasets/captured/"], "datasets/captured/2026-01-31/dock/d.jpg", true),
            ("", &["batches/"], "batches/b1/files/00000000", false),
            ("fleet-a/", &[], "fleet-a/raw/a.jpg", true),
            ("fleet-a/", &[], "fleet-a/batches/b1/files/00000000", false),
            ("fleet-a/", &[], "/fleet-a/batches/b1/files/00000000", false),
            ("fleet-a/", &[], "fleet-a/datasets/captured/d.jpg", false),
            ("fleet-a/", &[], "fleet-b/batches/b1/files/00000000", false),
            ("fleet-a/", &[], "raw/a.jpg", false),
            ("fleet-a/", &[], "fleet-ab/a.jpg", false),
            ("fleet-a/", &["raw/"], "raw/a.jpg", true),
            ("fleet-a/", &["raw/"], "/raw/a.jpg", false),
            ("fleet-a/", &["raw/"], "fleet-a/a.jpg", true),
            ("fleet-a/", &[""], "anything/a.jpg", true),
            ("fleet-a/", &[""], "fleet-a/results/b1.jsonl", false),
            ("fleet-a/", &[""], "fleet-a//results/b1.jsonl", false),
        ] {
            assert_eq!(own(prefix, allow).opens(key), open, "{prefix:?} {allow:?} {key}");
        }
    }

    #[test]
    fn the_rule_is_the_own_buckets_alone() {
        let store: Arc<dyn BlobStore> = Arc::<MemoryBlob>::default();
        let stores = BTreeMap::from([("own".into(), Arc::clone(&store)), ("other".into(), store)]);
        let buckets = Buckets { stores, own: Some(own("", &[])) };
        let code = |bucket, key| buckets.store(bucket, key).map(drop).map_err(|failure| failure.code);
        assert_eq!(code("own", "raw/a.jpg"), Ok(()));
        assert_eq!(code("own", "batches/b/files/00000000"), Err("url_refused"));
        assert_eq!(code("other", "batches/b/files/00000000"), Ok(()));
        assert_eq!(code("third", "a.jpg"), Err("url_refused"));
    }
}
