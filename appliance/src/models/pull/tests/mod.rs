//! Versions that hold Weir bundles: what gets into the store, what is gone on with, and all that is refused.

mod disk;
mod plain;

use std::fs;
use std::sync::atomic::Ordering;

use inference::bundle::testing::{edit, made, sha256_of};

use crate::models::testing::{Shelf, ignore, limits, names};
use crate::models::{ModelStore, Origin, Progress, PullError, PullLimits, pull};

#[tokio::test]
async fn a_bundle_is_downloaded_once_with_no_file_that_it_does_not_name() {
    let shelf = Shelf::new();
    let nested = shelf.path().join("artifacts/colours");
    inference::bundle::testing::write_bundle(&nested, "colours.onnx");
    fs::write(nested.join("LICENSE.txt"), "free").unwrap();
    fs::write(nested.join("checkpoint.pt"), "not named").unwrap();
    fs::write(shelf.path().join("conda.yaml"), "not named").unwrap();
    let root = tempfile::tempdir().unwrap();
    let store = ModelStore::open(root.path()).unwrap();
    let told = parking_lot::Mutex::new(Vec::new());
    let note = |progress: Progress| told.lock().push(progress);
    let pulled = pull(&shelf, &shelf.version("7"), &store, &limits(), &note).await.unwrap();
    assert!(!pulled.known);
    assert_eq!((pulled.model.as_str(), pulled.version.as_str()), ("colours", "1"));
    let bundle = store.bundle(&pulled.digest).unwrap();
    let expected = ["LICENSE.txt", "bundle.toml", "golden", "labels.txt", "model.onnx"];
    assert_eq!(names(bundle.dir()), expected.map(String::from).into());
    assert_eq!(names(&root.path().join("partial")), [].into());
    let entry = &store.list().unwrap()[0];
    assert_eq!(entry.origins, [Origin::of(&shelf.version("7"))]);
    assert_eq!(entry.files.len(), 5);
    assert_eq!(told.lock().first(), Some(&Progress::Listed { files: 7 }));
    assert_eq!(told.lock().last(), Some(&Progress::Admitting));

    let (calls, again) = (shelf.calls.load(Ordering::SeqCst), ModelStore::open(root.path()).unwrap());
    let known = pull(&shelf, &shelf.version("7"), &again, &limits(), &ignore).await.unwrap();
    assert!(known.known && known.digest == pulled.digest);
    assert_eq!(shelf.calls.load(Ordering::SeqCst), calls, "nothing is asked for twice");
    // Another version with the same content is the same bundle, and is known by both names.
    let other = pull(&shelf, &shelf.version("8"), &store, &limits(), &ignore).await.unwrap();
    assert_eq!(other.digest, pulled.digest);
    let origins = &store.list().unwrap()[0].origins;
    assert_eq!(origins.iter().map(|o| o.version.as_str()).collect::<Vec<_>>(), ["7", "8"]);
}

#[tokio::test]
async fn an_interrupted_download_goes_on_where_it_ended() {
    let shelf = Shelf::with_bundle();
    let total: u64 = ["bundle.toml", "labels.txt", "model.onnx", "golden/red.png"]
        .map(|file| fs::metadata(shelf.path().join(file)).unwrap().len())
        .iter()
        .sum();
    let root = tempfile::tempdir().unwrap();
    for cut in [1, total / 2, total - 1] {
        let store = ModelStore::open(&root.path().join(cut.to_string())).unwrap();
        shelf.sent.store(0, Ordering::SeqCst);
        shelf.breaks_after.store(cut, Ordering::SeqCst);
        // The attempt after it brings nothing, so that the pull ends.
        shelf.away.store(1, Ordering::SeqCst);
        let error = shelf.pull_to(&store).await.unwrap_err();
        assert!(error.is_transient(), "{error}");
        assert_eq!(shelf.away.load(Ordering::SeqCst), 0, "it was not tried again");
        assert_eq!(shelf.sent.load(Ordering::SeqCst), cut);
        let store = ModelStore::open(store.root()).unwrap();
        shelf.pull_to(&store).await.unwrap();
        assert_eq!(shelf.sent.load(Ordering::SeqCst), total, "each byte is sent once");
    }
}

#[tokio::test]
async fn a_connection_that_ends_early_fails_no_pull() {
    let shelf = Shelf::with_bundle();
    let model = fs::metadata(shelf.path().join("model.onnx")).unwrap().len();
    let root = tempfile::tempdir().unwrap();
    let manifest = fs::metadata(shelf.path().join("bundle.toml")).unwrap().len();
    shelf.breaks_after.store(manifest + model / 2, Ordering::SeqCst);
    let store = ModelStore::open(root.path()).unwrap();
    let pulled = shelf.pull_to(&store).await.unwrap();
    assert_eq!(shelf.calls.load(Ordering::SeqCst), 5, "four files, and one of them in two parts");
    let stored = store.bundle(&pulled.digest).unwrap().dir().join("model.onnx");
    assert_eq!(sha256_of(&stored), sha256_of(&made("colours.onnx")));
}

#[tokio::test]
async fn a_leftover_of_another_content_is_fetched_anew() {
    let shelf = Shelf::with_bundle();
    let root = tempfile::tempdir().unwrap();
    let store = ModelStore::open(root.path()).unwrap();
    let partial = store.partial(&Origin::of(&shelf.version("1"))).unwrap().unwrap();
    fs::write(partial.file("model.onnx"), "of another version").unwrap();
    std::os::unix::fs::symlink(root.path().join("elsewhere"), partial.file("labels.txt")).unwrap();
    drop(partial);
    let pulled = shelf.pull_to(&store).await.unwrap();
    assert_eq!(
        sha256_of(&store.bundle(&pulled.digest).unwrap().dir().join("model.onnx")),
        sha256_of(&made("colours.onnx"))
    );
    assert!(!root.path().join("elsewhere").exists(), "something was written through a link");
}

#[tokio::test]
async fn damaged_files_are_refused_for_good() {
    let shelf = Shelf::with_bundle();
    let model = shelf.path().join("model.onnx");
    let whole = fs::read(&model).unwrap();
    fs::write(&model, &whole[..whole.len() / 2]).unwrap();
    let error = shelf.refusal().await;
    assert!(
        matches!(&error, PullError::Digest { file, .. } if file == "model.onnx") && !error.is_transient()
    );

    let shelf = Shelf::with_bundle();
    edit(&shelf.path().join("bundle.toml"), &sha256_of(&made("red.png")), &"ab".repeat(32));
    let error = shelf.refusal().await.to_string();
    assert!(error.contains("golden/red.png") && error.contains("abab"), "{error}");

    let shelf = Shelf::with_bundle();
    fs::write(shelf.path().join("labels.txt"), "red\ngreen\n").unwrap();
    let error = shelf.refusal().await;
    assert!(error.to_string().contains("labels") && !error.is_transient(), "{error}");

    let shelf = Shelf::with_bundle();
    fs::remove_file(shelf.path().join("model.onnx")).unwrap();
    fs::remove_file(shelf.path().join("labels.txt")).unwrap();
    let error = shelf.refusal().await.to_string();
    assert!(error.contains("model.onnx, labels.txt"), "{error}");
    assert_eq!(shelf.calls.load(Ordering::SeqCst), 1, "only the manifest is fetched");
}

#[tokio::test]
async fn sizes_that_are_not_true_and_too_much_of_anything_are_refused() {
    let mut shelf = Shelf::with_bundle();
    for (lie, part) in [(10, "larger than 10"), (100_000, "lists 100000")] {
        shelf.lies.insert("model.onnx".into(), Some(lie));
        let error = shelf.refusal().await;
        assert!(error.to_string().contains(part) && !error.is_transient(), "{error}");
    }
    // A registry that does not know the length is held to what is left.
    shelf.lies.insert("model.onnx".into(), None);
    let root = tempfile::tempdir().unwrap();
    let store = ModelStore::open(root.path()).unwrap();
    let manifest = fs::metadata(shelf.path().join("bundle.toml")).unwrap().len();
    let tight = PullLimits { max_bytes: manifest + 200, ..limits() };
    let error = pull(&shelf, &shelf.version("1"), &store, &tight, &ignore).await.unwrap_err();
    assert!(error.to_string().contains("larger than"), "{error}");
    shelf.lies.insert("model.onnx".into(), Some(1 << 40));
    assert!(matches!(shelf.refusal().await, PullError::TooLarge { limit: 1_048_576, .. }));
    shelf.lies.clear();
    (0..20).for_each(|number| shelf.list(&format!("extra/{number}"), 1));
    assert!(shelf.refusal().await.to_string().contains("more than 20 files"));
}

#[tokio::test]
async fn paths_that_climb_out_are_refused_before_anything_is_fetched() {
    for path in
        ["../model.onnx", "/etc/cron.d/weir", "a/../../b", "C:\\model.onnx", "golden/nul", "MODEL.onnx"]
    {
        let mut shelf = Shelf::with_bundle();
        shelf.list(path, 1);
        let error = shelf.refusal().await;
        assert!(matches!(&error, PullError::Path { .. }), "{error}");
        assert_eq!(shelf.calls.load(Ordering::SeqCst), 0);
    }
    let shelf = Shelf::with_bundle();
    edit(&shelf.path().join("bundle.toml"), "file = \"golden/red.png\"", "file = \"../red.png\"");
    assert!(shelf.refusal().await.to_string().contains("../red.png"));
}

#[tokio::test]
async fn what_is_no_model_is_refused_with_what_to_do() {
    for archive in ["colours.zip", "model/colours.TAR.gz"] {
        let mut shelf = Shelf::new();
        shelf.list(archive, 100);
        let error = shelf.refusal().await;
        assert!(matches!(&error, PullError::Archive { path } if path == archive), "{error}");
        assert!(error.to_string().contains("log the folder itself"), "{error}");
    }
    let mut shelf = Shelf::new();
    assert!(shelf.refusal().await.to_string().contains("no files"));
    shelf.list("model.pkl", 100);
    assert!(shelf.refusal().await.to_string().contains("model.pkl"));
    let shelf = Shelf::with_bundle();
    inference::bundle::testing::write_bundle(&shelf.path().join("second"), "colours.onnx");
    let error = shelf.refusal().await.to_string();
    assert!(error.contains("bundle.toml and second/bundle.toml"), "{error}");
    let shelf = Shelf::with_bundle();
    edit(&shelf.path().join("bundle.toml"), "format = 1", "format = 2");
    assert!(shelf.refusal().await.to_string().contains("format = 2"));
}

#[tokio::test]
async fn a_damaged_bundle_in_the_store_is_fetched_again() {
    let shelf = Shelf::with_bundle();
    let root = tempfile::tempdir().unwrap();
    let store = ModelStore::open(root.path()).unwrap();
    let pulled = shelf.pull_to(&store).await.unwrap();
    let model = store.bundle(&pulled.digest).unwrap().dir().join("model.onnx");
    fs::write(&model, "rotten").unwrap();
    assert!(store.bundle(&pulled.digest).is_err());
    let again = shelf.pull_to(&store).await.unwrap();
    assert!(!again.known && again.digest == pulled.digest);
    assert!(store.bundle(&pulled.digest).is_ok());
    assert_eq!(store.list().unwrap().len(), 1);
}

#[tokio::test]
async fn two_who_want_the_same_version_download_it_once() {
    let mut shelf = Shelf::with_bundle();
    shelf.delay = 30;
    let root = tempfile::tempdir().unwrap();
    let (one, two) = (ModelStore::open(root.path()).unwrap(), ModelStore::open(root.path()).unwrap());
    let (first, second) = tokio::join!(shelf.pull_to(&one), shelf.pull_to(&two));
    let (first, second) = (first.unwrap(), second.unwrap());
    assert_eq!(first.digest, second.digest);
    assert!(first.known != second.known, "one of them downloads");
    assert_eq!(shelf.calls.load(Ordering::SeqCst), 4);
    let hurried = PullLimits { wait: std::time::Duration::ZERO, ..limits() };
    let version = shelf.version("2");
    let _held = one.partial(&Origin::of(&version)).unwrap().unwrap();
    let error = pull(&shelf, &version, &two, &hurried, &ignore).await.unwrap_err();
    assert!(matches!(error, PullError::Busy) && error.is_transient());
}
