//! The contract of every blob store, one test per guarantee of `cloud_sync::blob`.
//!
//! A test binary has this file as its `mod contract` and names its harness once, `contract::suite!(MyHarness);`.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use cloud_sync::blob::{BlobKey, BlobStore, MAX_PART_BYTES};
use cloud_sync::check::CheckStep;
use futures_util::{StreamExt, stream};

/// An isolated location for one test.
#[async_trait]
pub(crate) trait Harness: Send + Sync {
    /// An empty location.
    async fn new() -> Self;

    /// A store there; the second one is another handle, as another process would have it.
    async fn open(&self) -> [Arc<dyn BlobStore>; 2];

    /// Result of the store's own check.
    async fn check(&self) -> Vec<CheckStep>;
}

macro_rules! suite {
    ($harness:ty) => { $crate::contract::suite!($harness:
        an_object_comes_back_as_it_was_put,
        the_newest_put_wins,
        what_is_not_there_is_none,
        an_object_over_the_bound_is_refused,
        a_large_object_goes_through_memory_and_files,
        a_file_that_cannot_be_read_or_written_is_named,
        a_listing_has_every_object_once_in_the_order_of_bytes,
        a_listing_comes_in_pages,
        a_reader_never_sees_a_part,
        puts_and_removals_beside_each_other_all_work,
        keys_of_any_kind_come_back,
        a_check_goes_through_and_leaves_nothing,
    ); };
    ($harness:ty: $($promise:ident,)*) => { $(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $promise() {
            let harness = <$harness as $crate::contract::Harness>::new().await;
            $crate::contract::$promise(&harness).await;
        }
    )* };
}
pub(crate) use suite;

const TEXT: &str = "text/plain";

pub(crate) fn key(text: &str) -> BlobKey {
    BlobKey::new(text).unwrap()
}

/// Bytes that differ by position, so that a misplaced part shows.
pub(crate) fn content(length: usize) -> Bytes {
    let mut random = fastrand::Rng::with_seed(length as u64);
    let mut bytes = vec![0; length];
    random.fill(&mut bytes);
    bytes.into()
}

pub(crate) async fn put(store: &Arc<dyn BlobStore>, name: &str, bytes: &Bytes) {
    store.put(&key(name), bytes.clone(), TEXT).await.unwrap();
}

/// All keys of a listing, page by page.
pub(crate) async fn keys(store: &Arc<dyn BlobStore>, prefix: &str) -> Vec<String> {
    let (mut keys, mut next) = (Vec::new(), None);
    loop {
        let page = store.list(prefix, next.as_deref()).await.unwrap();
        keys.extend(page.objects.into_iter().map(|object| object.key));
        next = page.next;
        if next.is_none() {
            return keys;
        }
    }
}

pub(crate) async fn an_object_comes_back_as_it_was_put<H: Harness>(harness: &H) {
    let [store, other] = harness.open().await;
    for (name, length) in [("empty", 0), ("one.bin", 1), ("a/b/photo.jpg", 200_000), ("big.bin", 3 << 20)] {
        let bytes = content(length);
        let before = SystemTime::now() - Duration::from_secs(3);
        put(&store, name, &bytes).await;
        assert_eq!(other.get(&key(name), 4 << 20).await.unwrap(), Some(bytes), "{name}");
        let info = other.head(&key(name)).await.unwrap().unwrap();
        assert_eq!((info.key.as_str(), info.bytes), (name, length as u64));
        assert!(info.modified.is_some_and(|at| at >= before), "{info:?}");
        assert!(store.uri(&key(name)).ends_with(".jpg") == name.ends_with(".jpg"));
        assert_eq!(store.uri(&key(name)), other.uri(&key(name)));
    }
}

pub(crate) async fn the_newest_put_wins<H: Harness>(harness: &H) {
    let [store, other] = harness.open().await;
    for length in [1000, 10, 100_000, 0] {
        put(&store, "k/object.bin", &content(length)).await;
        assert_eq!(other.get(&key("k/object.bin"), 1 << 20).await.unwrap(), Some(content(length)));
        assert_eq!(other.head(&key("k/object.bin")).await.unwrap().unwrap().bytes, length as u64);
    }
    assert_eq!(keys(&other, "").await, ["k/object.bin"]);
}

pub(crate) async fn what_is_not_there_is_none<H: Harness>(harness: &H) {
    let [store, _] = harness.open().await;
    put(&store, "a/there.bin", &content(5)).await;
    let dir = tempfile::tempdir().unwrap();
    for name in ["gone", "a/gone", "a/there.bin2", "a/there.bi", "b/c/gone.bin", "a"] {
        assert_eq!(store.get(&key(name), 100).await.unwrap(), None, "{name}");
        assert_eq!(store.head(&key(name)).await.unwrap(), None, "{name}");
        assert_eq!(store.get_file(&key(name), &dir.path().join("x")).await.unwrap(), None);
        store.delete(&key(name)).await.unwrap();
        assert_eq!(keys(&store, &format!("{name}/gone")).await, [""; 0]);
    }
    store.delete(&key("a/there.bin")).await.unwrap();
    assert_eq!(store.get(&key("a/there.bin"), 100).await.unwrap(), None);
    store.delete(&key("a/there.bin")).await.unwrap();
    assert_eq!(keys(&store, "").await, [""; 0]);
}

pub(crate) async fn an_object_over_the_bound_is_refused<H: Harness>(harness: &H) {
    let [store, _] = harness.open().await;
    put(&store, "o.bin", &content(1000)).await;
    assert_eq!(store.get(&key("o.bin"), 1000).await.unwrap().unwrap().len(), 1000);
    for bound in [999, 1, 0] {
        let error = store.get(&key("o.bin"), bound).await.unwrap_err();
        assert!(!error.is_transient());
        let text = error.in_full();
        assert!(
            text.contains("o.bin") && text.contains("1000") && text.contains(&bound.to_string()),
            "{text}"
        );
    }
    put(&store, "empty.bin", &Bytes::new()).await;
    assert_eq!(store.get(&key("empty.bin"), 0).await.unwrap(), Some(Bytes::new()));
}

pub(crate) async fn a_large_object_goes_through_memory_and_files<H: Harness>(harness: &H) {
    let [store, other] = harness.open().await;
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    // Below and above the size of a part, and not a multiple of it.
    for length in [0, (1 << 20) + 1, (16 << 20) + 1, (25 << 20) + 7] {
        let bytes = content(length);
        std::fs::write(&from, &bytes).unwrap();
        std::fs::write(&to, "what was there").unwrap();
        store.put_file(&key("large/file.bin"), &from, "application/octet-stream").await.unwrap();
        let copied = other.get_file(&key("large/file.bin"), &to).await.unwrap();
        assert_eq!(copied, Some(length as u64));
        assert!(std::fs::read(&to).unwrap() == bytes, "{length} bytes through a file");
        put(&store, "large/memory.bin", &bytes).await;
        let back = other.get(&key("large/memory.bin"), 1 << 30).await.unwrap().unwrap();
        assert!(back == bytes, "{length} bytes through memory");
    }
}

pub(crate) async fn a_file_that_cannot_be_read_or_written_is_named<H: Harness>(harness: &H) {
    let [store, _] = harness.open().await;
    put(&store, "o.bin", &content(10)).await;
    let dir = tempfile::tempdir().unwrap();
    let gone = dir.path().join("no-folder/file");
    for error in [
        store.put_file(&key("new.bin"), &gone, TEXT).await.unwrap_err(),
        store.get_file(&key("o.bin"), &gone).await.unwrap_err(),
        store.put_file(&key("new.bin"), dir.path(), TEXT).await.unwrap_err(),
    ] {
        assert!(!error.is_transient(), "{error:?}");
        let path: &Path = dir.path();
        assert!(error.in_full().contains(path.to_str().unwrap()), "{}", error.in_full());
    }
    assert_eq!(keys(&store, "").await, ["o.bin"]);
}

pub(crate) async fn a_listing_has_every_object_once_in_the_order_of_bytes<H: Harness>(harness: &H) {
    let [store, other] = harness.open().await;
    // Around the slash (0x2f), where the order of names and that of keys differ.
    let mut names =
        ["a-1/x.bin", "a.txt", "a/b.bin", "a/b/c.bin", "a/b-c.bin", "a0", "a!.bin", "A.bin", "ab/c.bin", "z"];
    for name in names {
        put(&store, name, &content(name.len())).await;
    }
    names.sort_unstable();
    assert_eq!(keys(&other, "").await, names);
    for prefix in ["a", "a/", "a/b", "a/b/", "a/b.bin", "a-", "A", "ab", "b", "zz", "a/b/c.bin/d"] {
        let expected: Vec<_> = names.iter().filter(|name| name.starts_with(prefix)).copied().collect();
        assert_eq!(keys(&other, prefix).await, expected, "{prefix}");
    }
    let page = other.list("a/b", None).await.unwrap();
    assert_eq!(page.next, None);
    for object in page.objects {
        assert_eq!(object.bytes, object.key.len() as u64);
        assert!(object.modified.is_some());
    }
}

pub(crate) async fn a_listing_comes_in_pages<H: Harness>(harness: &H) {
    const OBJECTS: usize = 1003;
    let [store, _] = harness.open().await;
    let names: Vec<_> = (0..OBJECTS).map(|n| format!("p{}/{n:04}.bin", n % 3)).collect();
    let puts = names.iter().map(|name| {
        let store = Arc::clone(&store);
        async move { put(&store, name, &Bytes::from_static(b"x")).await }
    });
    stream::iter(puts).buffer_unordered(16).collect::<Vec<()>>().await;
    let first = store.list("p", None).await.unwrap();
    assert_eq!(first.objects.len(), 1000);
    let second = store.list("p", first.next.as_deref()).await.unwrap();
    assert_eq!((second.objects.len(), second.next), (OBJECTS - 1000, None));
    let mut all: Vec<_> = first.objects.into_iter().chain(second.objects).map(|object| object.key).collect();
    assert!(all.is_sorted());
    all.dedup();
    assert_eq!(all.len(), OBJECTS);
    assert_eq!(all.into_iter().collect::<HashSet<_>>(), names.into_iter().collect());
}

pub(crate) async fn a_reader_never_sees_a_part<H: Harness>(harness: &H) {
    let [store, other] = harness.open().await;
    let object = |n: u8| Bytes::from(vec![n; 50_000 + 10_000 * usize::from(n)]);
    store.put(&key("o.bin"), object(0), TEXT).await.unwrap();
    let writer = tokio::spawn(async move {
        for n in (0..40).map(|n| n % 7) {
            store.put(&key("o.bin"), object(n), TEXT).await.unwrap();
        }
    });
    let mut read = 0;
    while !writer.is_finished() || read < 5 {
        let bytes = other.get(&key("o.bin"), 1 << 20).await.unwrap().unwrap();
        assert!(bytes == object(bytes[0]), "a part of {} and {} bytes", bytes[0], bytes.len());
        let listed = keys(&other, "").await;
        assert_eq!(listed, ["o.bin"]);
        read += 1;
    }
    writer.await.unwrap();
}

pub(crate) async fn puts_and_removals_beside_each_other_all_work<H: Harness>(harness: &H) {
    let stores = harness.open().await;
    put(&stores[0], "shared/deep/stays.bin", &content(5)).await;
    let tasks: Vec<_> = (0..8)
        .map(|task| {
            let store = Arc::clone(&stores[task % 2]);
            tokio::spawn(async move {
                let name = format!("shared/deep/{task}.bin");
                for n in 0..10 {
                    put(&store, &name, &content(n)).await;
                    assert_eq!(store.get(&key(&name), 100).await.unwrap(), Some(content(n)));
                    store.delete(&key(&name)).await.unwrap();
                    assert_eq!(store.get(&key(&name), 100).await.unwrap(), None);
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(keys(&stores[0], "").await, ["shared/deep/stays.bin"]);
}

pub(crate) async fn keys_of_any_kind_come_back<H: Harness>(harness: &H) {
    let [store, other] = harness.open().await;
    let long = "n".repeat(MAX_PART_BYTES);
    let deep = ["d"; 40].join("/");
    let mut names =
        ["10.0.0.5/2026-05-01/x.jpg", ".hidden/.x", "...", "a=b,c(d)!~@+", "-", "UPPER/lower", &long, &deep];
    for name in names {
        put(&store, name, &Bytes::from(name.to_owned())).await;
    }
    for name in names {
        assert_eq!(other.get(&key(name), 1000).await.unwrap().unwrap(), name.as_bytes(), "{name}");
    }
    names.sort_unstable();
    assert_eq!(keys(&other, "").await, names);
    let uris: HashSet<_> = names.iter().map(|name| store.uri(&key(name))).collect();
    assert_eq!(uris.len(), names.len());
}

pub(crate) async fn a_check_goes_through_and_leaves_nothing<H: Harness>(harness: &H) {
    let [store, _] = harness.open().await;
    let steps = harness.check().await;
    let names: Vec<_> = steps.iter().map(|step| &*step.what).collect();
    assert_eq!(names, ["put an object", "get it and compare", "remove it"]);
    for step in steps {
        step.outcome.unwrap();
    }
    assert_eq!(keys(&store, "").await, [""; 0]);
}
