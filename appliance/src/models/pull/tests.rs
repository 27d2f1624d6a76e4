//! What gets into the store, what is resumed, and all that is refused: Weir bundles, plain ONNX models as MLflow logs them,
//! and a disk without space.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::Ordering;

use gpu_kernels::DecodeLimits;
use inference::bundle::testing::{edit, made, sha256_of};
use inference::bundle::{Bundle, DeviceTag, Precision};
use inference::bundle_check::{CheckError, check_bundle};
use inference::engine::Runtime;

use crate::models::testing::{Shelf, ignore, limits, names};
use crate::models::{ModelStore, Origin, Progress, PullError, PullLimits, StoreError, pull};

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
    assert_eq!(told.lock().last(), Some(&Progress::Importing));

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
    let staging = store.staging_dir(&Origin::of(&shelf.version("1"))).unwrap().unwrap();
    fs::write(staging.file("model.onnx"), "of another version").unwrap();
    std::os::unix::fs::symlink(root.path().join("elsewhere"), staging.file("labels.txt")).unwrap();
    drop(staging);
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
    let _held = one.staging_dir(&Origin::of(&version)).unwrap().unwrap();
    let error = pull(&shelf, &version, &two, &hurried, &ignore).await.unwrap_err();
    assert!(matches!(error, PullError::Busy) && error.is_transient());
}

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
        "models::pull::tests::a_disk_that_is_full_when_the_bundle_is_taken_in_leaves_nothing_half_done";
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

const PREPROCESS: &str = "resize=8,crop=8,mean=127,std=128";

/// As `mlflow.onnx.log_model` writes it.
fn logged(model: &str) -> Shelf {
    let shelf = Shelf::new();
    fs::copy(made(model), shelf.path().join("model.onnx")).unwrap();
    let mlmodel = "artifact_path: model\nflavors:\n  onnx:\n    code: null\n    data: model.onnx\n    onnx_session_options: \
                   null\n    onnx_version: 1.16.0\n    providers:\n    - CPUExecutionProvider\n  python_function:\n    \
                   data: model.onnx\n    env:\n      conda: conda.yaml\n    loader_module: mlflow.onnx\nmlflow_version: \
                   2.9.2\nutc_time_created: '2026-05-01 10:00:00.000000'\n";
    fs::write(shelf.path().join("MLmodel"), mlmodel).unwrap();
    fs::write(shelf.path().join("conda.yaml"), "name: x").unwrap();
    shelf
}

fn tagged(model: &str) -> Shelf {
    let mut shelf = logged(model);
    shelf.tags.insert("weir.preprocess".into(), PREPROCESS.into());
    shelf.tags.insert("weir.labels".into(), "red, green, blue".into());
    shelf
}

async fn bundle(shelf: &Shelf, root: &Path) -> Bundle {
    let store = ModelStore::open(root).unwrap();
    let pulled = shelf.pull_to(&store).await.unwrap();
    store.bundle(&pulled.digest).unwrap()
}

#[tokio::test]
async fn tags_make_a_bundle_of_a_model() {
    let root = tempfile::tempdir().unwrap();
    let made_of_tags = bundle(&tagged("colours.onnx"), root.path()).await;
    let manifest = made_of_tags.manifest();
    assert_eq!((manifest.name.as_str(), manifest.version.as_str()), ("Colour-model", "1"));
    assert_eq!((manifest.input.name.as_str(), manifest.input.shape), ("image", [0, 3, 8, 8]));
    assert_eq!((manifest.output.name.as_str(), manifest.output.shape), ("scores", [0, 3]));
    assert_eq!((manifest.labels[2].as_str(), manifest.preprocess.std), ("blue", [128.0; 3]));
    assert_eq!(manifest.variants[0].precision, Precision::Fp32);
    let runtime = Runtime::load(None).unwrap();
    check_bundle(&runtime, &made_of_tags, None, DecodeLimits::default()).unwrap();

    let mut shelf = logged("colours.onnx");
    for (tag, text) in [
        ("weir.preprocess", r#"{"resize": 9, "crop": 8, "mean": [1, 2, 3], "std": 1}"#),
        ("weir.labels_file", "classes.txt"),
        ("weir.model", "colours"),
        ("weir.sha256", &sha256_of(&made("colours.onnx"))),
    ] {
        shelf.tags.insert(tag.into(), text.into());
    }
    fs::write(shelf.path().join("classes.txt"), "rouge\r\nvert\r\nbleu\r\n").unwrap();
    let root = tempfile::tempdir().unwrap();
    let other = bundle(&shelf, root.path()).await;
    assert_eq!(other.manifest().labels, ["rouge", "vert", "bleu"]);
    assert_eq!((other.manifest().name.as_str(), other.preprocess().mean), ("colours", [1.0, 2.0, 3.0]));
    shelf.tags.insert("weir.sha256".into(), "00".repeat(32));
    assert!(matches!(shelf.refusal().await, PullError::Digest { .. }));
}

fn with_sidecar(more: &str) -> Shelf {
    let shelf = logged("external.onnx");
    fs::copy(made("weights.data"), shelf.path().join("weights.data")).unwrap();
    fs::copy(made("red.png"), shelf.path().join("red.png")).unwrap();
    let text = format!(
        "name = \"colours\"\nlicense = \"MIT\"\nlabels = [\"red\", \"green\", \"blue\"]\n{more}\n[preprocess]\nresize = 8\n\
         crop = 8\nmean = 127\nstd = [128, 128, 128]\n[[golden]]\nfile = \"red.png\"\nlabel = \"red\"\nmin_score = 0.9\n"
    );
    fs::write(shelf.path().join("weir.toml"), text).unwrap();
    shelf
}

#[tokio::test]
async fn a_sidecar_makes_one_with_external_data_and_golden_cases() {
    let shelf = with_sidecar("input = { name = \"image\", shape = [0, 3, 8, 8] }");
    let root = tempfile::tempdir().unwrap();
    let made_of_it = bundle(&shelf, root.path()).await;
    let manifest = made_of_it.manifest();
    assert_eq!((manifest.name.as_str(), manifest.license.as_str()), ("colours", "MIT"));
    assert_eq!(manifest.variants[0].data[0].file, "weights.data");
    assert_eq!(manifest.golden[0].file, "golden/red.png");
    let runtime = Runtime::load(None).unwrap();
    check_bundle(&runtime, &made_of_it, None, DecodeLimits::default()).unwrap();

    let refused = with_sidecar("output = { name = \"probabilities\" }").refusal().await.to_string();
    assert!(refused.contains("`scores` in the graph and `probabilities` in weir.toml"), "{refused}");
    let refused = with_sidecar("surprise = 1").refusal().await.to_string();
    assert!(refused.contains("surprise"), "{refused}");
    let wrong = with_sidecar("");
    edit(&wrong.path().join("weir.toml"), "label = \"red\"", "label = \"blue\"");
    let root = tempfile::tempdir().unwrap();
    let error = check_bundle(&runtime, &bundle(&wrong, root.path()).await, None, DecodeLimits::default());
    assert!(matches!(error, Err(CheckError::Golden { .. })), "{error:?}");
    let without = with_sidecar("");
    fs::remove_file(without.path().join("weights.data")).unwrap();
    let refused = without.refusal().await.to_string();
    assert!(refused.contains("does not load") && refused.contains("weights.data"), "{refused}");
}

#[tokio::test]
async fn everything_that_is_missing_is_named_at_once() {
    let shelf = logged("colours.onnx");
    fs::remove_file(shelf.path().join("model.onnx")).unwrap();
    let error = shelf.refusal().await;
    let text = error.to_string();
    assert!(!error.is_transient());
    for part in ["weir.preprocess", "weir.labels", "weir.toml", "model.onnx"] {
        assert!(text.contains(part), "{part:?} is missing in: {text}");
    }
    for (tag, text, part) in [
        ("weir.preprocess", "", "preprocess: set the tag"),
        ("weir.preprocess", "resize=8,crop=8,mean=127", "std"),
        ("weir.preprocess", "resize=8,crop=9,mean=127,std=128", "crop"),
        ("weir.preprocess", "resize=8,crop=8,mean=127,std=128,gamma=2", "gamma"),
        ("weir.labels", "", "labels: set the tag"),
        ("weir.labels", "[\"red\", 1]", "weir.labels"),
        ("weir.labels", "red,green,red", "twice"),
        ("weir.labels", "red,green", "2 labels"),
    ] {
        let mut shelf = tagged("colours.onnx");
        shelf.tags.insert(tag.into(), text.into());
        let refused = shelf.refusal().await.to_string();
        assert!(refused.contains(part), "{part:?} is missing in: {refused}");
    }
    let mut shelf = tagged("colours.onnx");
    shelf.tags.remove("weir.labels");
    shelf.tags.insert("weir.labels_file".into(), "classes.txt".into());
    let refused = shelf.refusal().await.to_string();
    assert!(refused.contains("classes.txt"), "{refused}");
    let shelf = with_sidecar("");
    fs::remove_file(shelf.path().join("red.png")).unwrap();
    assert!(shelf.refusal().await.to_string().contains("red.png"));
}

#[tokio::test]
async fn what_is_no_classifier_is_refused() {
    let shelf = tagged("colours.onnx");
    fs::write(shelf.path().join("model.onnx"), "this is not ONNX").unwrap();
    let error = shelf.refusal().await;
    assert!(error.to_string().contains("does not load") && !error.is_transient(), "{error}");
    let refused = tagged("side16.onnx").refusal().await.to_string();
    assert!(refused.contains("[0, 3, 16, 16]") && refused.contains("crop = 8"), "{refused}");
    let refused = tagged("two_labels.onnx").refusal().await.to_string();
    assert!(refused.contains("3 labels") && refused.contains("2 scores"), "{refused}");
    for (mlmodel, part) in [
        ("flavors:\n  sklearn:\n    data: model.pkl\n", "only sklearn"),
        ("flavors: [", "MLmodel can't be read"),
        ("flavors:\n  onnx:\n    data: ../../model.onnx\n", "../../model.onnx"),
        ("flavors:\n  onnx:\n    data: model.pkl\n", "model.pkl"),
    ] {
        let shelf = tagged("colours.onnx");
        fs::write(shelf.path().join("MLmodel"), mlmodel).unwrap();
        let refused = shelf.refusal().await.to_string();
        assert!(refused.contains(part), "{part:?} is missing in: {refused}");
    }
}

#[tokio::test]
async fn half_precision_is_for_gpus() {
    let root = tempfile::tempdir().unwrap();
    let half = bundle(&tagged("fp16.onnx"), root.path()).await;
    assert_eq!(half.variant(DeviceTag::Cuda, None).unwrap().precision, Precision::Fp16);
    let runtime = Runtime::load(None).unwrap();
    let error = check_bundle(&runtime, &half, None, DecodeLimits::default()).unwrap_err().to_string();
    assert!(error.contains("no variant for cpu"), "{error}");
}
