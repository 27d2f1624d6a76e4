//! The blob store in a directory: the contract, and faults of the disk.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, reason = "tests")]

#[path = "contract/blob.rs"]
mod contract;

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use cloud_sync::blob::{BlobStore, Bound, DirStore, StoreFull};
use cloud_sync::check::CheckStep;
use contract::{content, key, keys, put};
use tempfile::{TempDir, tempdir};

struct InDirectory(TempDir);

#[async_trait]
impl contract::Harness for InDirectory {
    async fn new() -> Self {
        Self(tempdir().unwrap())
    }

    async fn open(&self) -> [Arc<dyn BlobStore>; 2] {
        [open(self.0.path()), open(self.0.path())]
    }

    async fn check(&self) -> Vec<CheckStep> {
        DirStore::open(self.0.path()).unwrap().check().await
    }
}

contract::suite!(InDirectory);

/// The same contract with a limit that is never reached, by a single store, as a limit requires.
mod bounded {
    use super::*;

    struct Bounded(TempDir);

    #[async_trait]
    impl contract::Harness for Bounded {
        async fn new() -> Self {
            Self(tempdir().unwrap())
        }

        async fn open(&self) -> [Arc<dyn BlobStore>; 2] {
            let store = open_bounded(self.0.path(), 1 << 30);
            [Arc::new(store.clone()), Arc::new(store)]
        }

        async fn check(&self) -> Vec<CheckStep> {
            open_bounded(self.0.path(), 1 << 30).check().await
        }
    }

    contract::suite!(Bounded);
}

/// A store with a limit, of which keys that begin with `half/` take at most half.
fn open_bounded(path: &Path, max_bytes: u64) -> DirStore {
    let share = |key: &str| if key.starts_with("half/") { 50 } else { 100 };
    DirStore::open_bounded(path, Bound { max_bytes, min_free: 0, share }).unwrap()
}

fn open(path: &Path) -> Arc<dyn BlobStore> {
    Arc::new(DirStore::open(path).unwrap())
}

/// Every file below a folder, as a path relative to it.
fn files(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
            } else {
                found.push(entry.path().strip_prefix(dir).unwrap().to_str().unwrap().to_owned());
            }
        }
    }
    found.sort();
    found
}

#[tokio::test]
async fn an_object_and_objects_below_it_can_both_be_there() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    let mut names = ["a", "a/b", "a/b/c", "a.b", "a.b/c", "a.b/c.d/e", "a.b/c.d"];
    for name in names.iter().chain(names.iter().rev()) {
        put(&store, name, &Bytes::from(name.to_string())).await;
    }
    names.sort_unstable();
    assert_eq!(keys(&store, "").await, names);
    for name in names {
        assert_eq!(store.get(&key(name), 100).await.unwrap().unwrap(), name.as_bytes());
    }
    for (n, name) in names.iter().enumerate() {
        store.delete(&key(name)).await.unwrap();
        assert_eq!(keys(&store, "").await, names[n + 1..]);
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "only the folder of partial files");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_that_is_empty_again_and_again_is_no_obstacle() {
    let dir = tempdir().unwrap();
    let tasks: Vec<_> = (0..8)
        .map(|task| {
            let store = open(dir.path());
            tokio::spawn(async move {
                let name = format!("shared/deep/{task}.bin");
                for n in 0..40 {
                    put(&store, &name, &content(n)).await;
                    assert_eq!(store.get(&key(&name), 100).await.unwrap(), Some(content(n)));
                    store.delete(&key(&name)).await.unwrap();
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(files(dir.path()), [""; 0]);
    assert!(!dir.path().join("shared").exists());
}

#[tokio::test]
async fn files_are_called_as_their_keys_and_the_uri_leads_to_them() {
    let dir = tempdir().unwrap();
    let root = dir.path().join("with space");
    let store = open(&root);
    put(&store, "results/b-1/results.jsonl", &content(10)).await;
    put(&store, "10.0.0.5/plain", &content(10)).await;
    assert_eq!(files(&root), ["10.0.0.5$/plain$", "results/b-1/results.jsonl"]);
    for name in ["results/b-1/results.jsonl", "10.0.0.5/plain"] {
        let uri = store.uri(&key(name));
        assert!(uri.starts_with("file:///"), "{uri}");
        let path = url::Url::parse(&uri).unwrap().to_file_path().unwrap();
        assert_eq!(std::fs::read(path).unwrap(), content(10));
    }
}

#[tokio::test]
async fn what_a_crash_has_left_is_not_listed_and_removed_at_the_next_start() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    put(&store, "o.bin", &content(10)).await;
    let left = dir.path().join(".partial~/01JD.partial~");
    std::fs::write(&left, "half of").unwrap();
    assert_eq!(keys(&store, "").await, ["o.bin"]);
    // Not a file that another process is writing: it holds a lock.
    let live = dir.path().join(".partial~/live.partial~");
    let lock = std::fs::File::create(&live).unwrap();
    lock.lock().unwrap();
    let store = open(dir.path());
    assert!(!left.exists() && live.exists());
    assert_eq!(keys(&store, "").await, ["o.bin"]);
    drop(lock);
    let start = Instant::now();
    // A child of another test holds the lock, too, between its fork and its exec.
    while live.exists() {
        open(dir.path());
        assert!(start.elapsed() < Duration::from_secs(20));
    }
}

#[tokio::test]
async fn a_symbolic_link_is_not_followed() {
    let (dir, outside) = (tempdir().unwrap(), tempdir().unwrap());
    std::fs::write(outside.path().join("secret.txt"), "secret").unwrap();
    let store = open(dir.path());
    symlink(outside.path(), dir.path().join("out")).unwrap();
    symlink(outside.path().join("secret.txt"), dir.path().join("link.txt")).unwrap();
    assert_eq!(keys(&store, "").await, [""; 0]);
    for error in [
        store.get(&key("out/secret.txt"), 100).await.unwrap_err(),
        store.get(&key("link.txt"), 100).await.unwrap_err(),
        store.put(&key("out/new.txt"), content(5), "").await.unwrap_err(),
        store.delete(&key("out/secret.txt")).await.unwrap_err(),
    ] {
        assert!(!error.is_transient() && error.in_full().contains("symbolic link"), "{}", error.in_full());
    }
    // A put replaces a link, not its target.
    put(&store, "link.txt", &content(5)).await;
    assert_eq!(std::fs::read(outside.path().join("secret.txt")).unwrap(), b"secret");
    assert_eq!(files(outside.path()), ["secret.txt"]);
    assert_eq!(store.get(&key("link.txt"), 100).await.unwrap(), Some(content(5)));
}

#[tokio::test]
async fn what_others_put_there_is_neither_listed_nor_read() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    std::fs::create_dir(dir.path().join("photo.jpg")).unwrap();
    std::fs::create_dir(dir.path().join("lost+found")).unwrap();
    std::fs::write(dir.path().join("stray"), "x").unwrap();
    let pipe = Command::new("mkfifo").arg(dir.path().join("pipe.bin")).status().unwrap();
    assert!(pipe.success());
    assert_eq!(keys(&store, "").await, [""; 0]);
    for name in ["photo.jpg", "pipe.bin"] {
        let error = store.get(&key(name), 100).await.unwrap_err();
        assert!(error.in_full().contains("not a regular file"), "{}", error.in_full());
    }
    let error = store.put(&key("photo.jpg"), content(5), "").await.unwrap_err();
    assert!(!error.is_transient() && error.in_full().contains("remove it"), "{}", error.in_full());
    assert_eq!(files(&dir.path().join(".partial~")), [""; 0], "nothing is left of the failed put");
}

#[tokio::test]
async fn a_store_whose_folder_is_gone_says_so() {
    let dir = tempdir().unwrap();
    let root = dir.path().join("store");
    let store = open(&root);
    put(&store, "o.bin", &content(5)).await;
    std::fs::rename(&root, dir.path().join("elsewhere")).unwrap();
    for error in [
        store.get(&key("o.bin"), 100).await.unwrap_err(),
        store.put(&key("o.bin"), content(5), "").await.unwrap_err(),
        store.list("", None).await.unwrap_err(),
    ] {
        assert!(error.is_transient() && error.in_full().contains("is gone"), "{}", error.in_full());
    }
    assert!(!root.exists());
    std::fs::rename(dir.path().join("elsewhere"), &root).unwrap();
    assert_eq!(store.get(&key("o.bin"), 100).await.unwrap(), Some(content(5)));
    std::fs::write(dir.path().join("file"), "").unwrap();
    let error = DirStore::open(dir.path().join("file/store")).unwrap_err();
    assert!(error.in_full().contains("file/store"), "{}", error.in_full());
}

/// Set in the process that runs under a limit: the directory of its store.
const LIMITED: &str = "WEIR_TEST_LIMITED_STORE";

/// A full disk, by a limit on the size of files: the write fails half way.
#[test]
fn a_put_that_fails_half_way_leaves_the_old_object_and_nothing_else() {
    let dir = tempdir().unwrap();
    let me = std::env::current_exe().unwrap();
    let run = Command::new("sh")
        .arg("-c")
        // 64 blocks of 512 bytes, and the signal that comes with the limit ignored.
        .arg("trap '' XFSZ; ulimit -f 64; exec \"$0\" --exact the_process_under_a_limit --nocapture")
        .arg(me)
        .env(LIMITED, dir.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&run.stdout);
    assert!(run.status.success() && said.contains("the limit was met"), "{said}");
    assert_eq!(std::fs::read(dir.path().join("k/o.bin")).unwrap(), content(1000));
    assert_eq!(files(dir.path()), ["k/o.bin"]);
}

/// Does nothing by itself: the test above runs it in a separate process.
#[tokio::test]
async fn the_process_under_a_limit() {
    let Some(path) = std::env::var_os(LIMITED) else { return };
    let store = open(Path::new(&path));
    put(&store, "k/o.bin", &content(1000)).await;
    let error = store.put(&key("k/o.bin"), content(1 << 20), "").await.unwrap_err();
    assert!(error.in_full().contains("k/o.bin"), "{}", error.in_full());
    assert_eq!(store.get(&key("k/o.bin"), 1 << 20).await.unwrap(), Some(content(1000)));
    println!("the limit was met: {}", error.in_full());
}

const BLOCK: u64 = 4096;

#[tokio::test]
async fn a_bound_counts_what_is_there_replaced_and_removed() {
    let dir = tempdir().unwrap();
    let bytes = |blocks: u64| content(usize::try_from(blocks * BLOCK).unwrap());
    put(&open(dir.path()), "from/before.bin", &bytes(2)).await;
    let store = open_bounded(dir.path(), 10 * BLOCK);
    let shared: Arc<dyn BlobStore> = Arc::new(store.clone());
    assert_eq!(store.room(), None, "it is counted when it is first needed");
    assert_eq!(store.measure(false).await.unwrap().unwrap().bytes, 2 * BLOCK);
    put(&shared, "a.bin", &bytes(6)).await;
    let held = || store.room().unwrap().bytes / BLOCK;
    assert_eq!(held(), 8);
    let error = store.put(&key("b.bin"), bytes(3), "").await.unwrap_err();
    assert!(error.is_transient(), "{}", error.in_full());
    assert_eq!(StoreFull::of(&error).unwrap().needed, 3 * BLOCK);
    assert_eq!(store.get(&key("b.bin"), 1 << 20).await.unwrap(), None);
    // A replaced object counts for the difference, once the new one is placed.
    put(&shared, "a.bin", &bytes(1)).await;
    assert_eq!(held(), 3);
    let file = dir.path().join("source");
    std::fs::write(&file, bytes(5)).unwrap();
    store.put_file(&key("c/file.bin"), &file, "").await.unwrap();
    assert_eq!(held(), 8);
    let error = store.put_file(&key("d.bin"), &file, "").await.unwrap_err();
    assert!(StoreFull::of(&error).is_some(), "{}", error.in_full());
    store.delete(&key("c/file.bin")).await.unwrap();
    store.delete(&key("c/file.bin")).await.unwrap();
    assert_eq!(held(), 3);
    // A byte takes a block.
    put(&shared, "small.bin", &content(1)).await;
    assert_eq!(held(), 4);
    let error = store.put(&key("half/x.bin"), bytes(2), "").await.unwrap_err();
    assert!(StoreFull::of(&error).is_some(), "{}", error.in_full());
    put(&shared, "half/x.bin", &bytes(1)).await;
    let oldest: Vec<String> =
        store.oldest("", 2).await.unwrap().into_iter().map(|object| object.key).collect();
    assert_eq!(oldest, ["from/before.bin", "a.bin"]);
    std::fs::remove_file(&file).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_at_once_stay_within_the_bound() {
    let dir = tempdir().unwrap();
    let store = open_bounded(dir.path(), 20 * BLOCK);
    let tasks: Vec<_> = (0..8)
        .map(|task| {
            let store = store.clone();
            tokio::spawn(async move {
                let (mut put, mut refused) = (0, 0);
                for n in 0..30_u64 {
                    // Two tasks share each name.
                    let name = key(&format!("{}/{}.bin", task / 2, n % 4));
                    match store.put(&name, content(usize::try_from((n % 3 + 1) * BLOCK).unwrap()), "").await {
                        Ok(()) => put += 1,
                        Err(error) if StoreFull::of(&error).is_some() => refused += 1,
                        Err(error) => panic!("{}", error.in_full()),
                    }
                    assert!(store.room().unwrap().bytes <= 20 * BLOCK);
                    if n % 5 == 4 {
                        store.delete(&name).await.unwrap();
                    }
                }
                (put, refused)
            })
        })
        .collect();
    let (mut put, mut refused) = (0, 0);
    for task in tasks {
        let counts = task.await.unwrap();
        put += counts.0;
        refused += counts.1;
    }
    assert!(put > 0 && refused > 0, "{put} put, {refused} refused");
    let counted = store.room().unwrap().bytes;
    let again = open_bounded(dir.path(), 20 * BLOCK).measure(false).await.unwrap().unwrap().bytes;
    assert_eq!(counted, again, "what was counted is not what is there");
}

#[tokio::test]
async fn room_is_left_to_others_on_the_disk() {
    let dir = tempdir().unwrap();
    let share = |key: &str| if key.starts_with("half/") { 50 } else { 100 };
    let free = open_bounded(dir.path(), 1 << 40).measure(false).await.unwrap().unwrap().free;
    // More than half of the free bytes: the rest may be taken only by objects of full share.
    let bound = Bound { max_bytes: 1 << 50, min_free: free + free / 2, share };
    let store = DirStore::open_bounded(dir.path(), bound).unwrap();
    let error = store.put(&key("half/a.bin"), content(10), "").await.unwrap_err();
    assert!(StoreFull::of(&error).is_some(), "{}", error.in_full());
    store.put(&key("a.bin"), content(10), "").await.unwrap();
    let bound = Bound { min_free: free * 3, ..bound };
    let store = DirStore::open_bounded(dir.path(), bound).unwrap();
    let error = store.put(&key("b.bin"), content(10), "").await.unwrap_err();
    assert!(StoreFull::of(&error).is_some(), "{}", error.in_full());
}
