//! Plain ONNX models as MLflow logs them: completed by tags or a sidecar, or refused with everything that is missing.

use std::fs;
use std::path::Path;

use gpu_kernels::DecodeLimits;
use inference::bundle::testing::{edit, made, sha256_of};
use inference::bundle::{Bundle, DeviceTag, Precision};
use inference::bundle_check::{CheckError, check_bundle};
use inference::engine::Runtime;

use crate::models::testing::Shelf;
use crate::models::{ModelStore, PullError};

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
