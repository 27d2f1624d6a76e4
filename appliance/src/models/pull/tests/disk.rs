//! A disk without space: said before the download, and borne when it happens in the middle.

use std::os::unix::fs::MetadataExt;
use std::process::Command;

use crate::models::testing::{Shelf, ignore, limits, names};
use crate::models::{ModelStore, Origin, PullError, PullLimits, StoreError, pull};

#[tokio::test]
async fn too_little_space_is_said_before_the_download() {
    let shelf = Shelf::with_bundle();
    let root = tempfile::tempdir().unwrap();
    let store = ModelStore::open(root.path()).unwrap();
    let greedy = PullLimits { keep_free: u64::MAX / 2, ..limits() };
    let error = pull(&shelf, &shelf.version("1"), &store, &greedy, &ignore).await.unwrap_err();
    assert!(matches!(&error, PullError::Store(StoreError::NoRoom { .. })), "{error}");
    assert!(error.is_transient() && error.is_disk_full());
    let text = error.to_string();
    assert!(text.contains(root.path().to_str().unwrap()) && text.contains("Remedy"), "{text}");
}

#[tokio::test]
async fn a_disk_that_fills_up_during_the_download_is_given_back() {
    let mut shelf = Shelf::with_bundle();
    shelf.full = true;
    let error = shelf.refusal().await;
    assert!(error.is_disk_full() && error.is_transient(), "{error:?}");
}

/// On a file system of its own that holds 1 MiB, which needs a process of its own.
#[test]
fn a_disk_that_is_full_when_the_bundle_is_taken_in_leaves_nothing_half_done() {
    const DISK: &str = "WEIR_TEST_SMALL_DISK";
    if let Some(disk) = std::env::var_os(DISK) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        return runtime.block_on(on_a_small_disk(disk.as_ref()));
    }
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new("unshare");
    if !rustix::process::geteuid().is_root() {
        command.args(["--user", "--map-root-user"]);
    }
    let name =
        "models::pull::tests::disk::a_disk_that_is_full_when_the_bundle_is_taken_in_leaves_nothing_half_done";
    let status = command
        .args(["--mount", "--propagation", "private", "sh", "-c"])
        .arg("mount -t tmpfs -o size=1m,nr_inodes=40 weir \"$1\" && exec \"$2\" --exact \"$3\"")
        .args(["sh".as_ref(), folder.path().as_os_str()])
        .arg(std::env::current_exe().unwrap())
        .arg(name)
        .env(DISK, folder.path())
        .status()
        .unwrap();
    assert!(status.success());
}

async fn on_a_small_disk(disk: &std::path::Path) {
    // Else this is not the small disk, and nothing here would fail.
    assert_ne!(disk.metadata().unwrap().dev(), disk.parent().unwrap().metadata().unwrap().dev());
    let store = ModelStore::open(&disk.join("models")).unwrap();
    let shelf = Shelf::with_bundle();
    let mut fillers = 0;
    // Names run out before bytes do: each time one more is free, and another step is the one that fails.
    while std::fs::write(disk.join(format!("filler-{fillers}")), "").is_ok() {
        fillers += 1;
    }
    let mut failures = 0;
    loop {
        match shelf.pull_to(&store).await {
            Ok(pulled) => {
                assert!(store.bundle(&pulled.digest).is_ok());
                break;
            }
            Err(error) => {
                assert!(error.is_disk_full() && error.is_transient(), "{error:?}");
                assert!(error.to_string().contains("space"), "{error}");
                assert!(store.list().unwrap().is_empty());
                assert!(names(&disk.join("models/bundles")).is_empty(), "after {error}");
                assert!(names(&disk.join("models/files")).is_empty(), "after {error}");
                assert!(store.find(&Origin::of(&shelf.version("1"))).unwrap().is_none());
            }
        }
        failures += 1;
        fillers -= 1;
        std::fs::remove_file(disk.join(format!("filler-{fillers}"))).unwrap();
    }
    assert!(failures > 8, "only {failures} steps failed");
}
