//! Bundles that open, and must not serve all the same: found on the real engine.

use std::fs;

use gpu_kernels::DecodeLimits;

use super::{CheckError, CpuPipeline, check_bundle};
use crate::bundle::testing::{edit, sha256_of, write_bundle};
use crate::bundle::{Bundle, DeviceTag, Precision};
use crate::engine::{EngineError, Runtime};

fn check(model: &str, change: impl FnOnce(&std::path::Path)) -> Result<(), CheckError> {
    let folder = tempfile::tempdir().unwrap();
    write_bundle(folder.path(), model);
    change(folder.path());
    let bundle = Bundle::open(folder.path()).unwrap();
    check_bundle(&Runtime::load(None).unwrap(), &bundle, None, DecodeLimits::default())
}

#[test]
fn a_bundle_that_computes_what_it_promises_passes() {
    check("colours.onnx", |_| ()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    write_bundle(folder.path(), "colours.onnx");
    let bundle = Bundle::open(folder.path()).unwrap();
    let runtime = Runtime::load(None).unwrap();
    let error = check_bundle(&runtime, &bundle, Some(Precision::Int8), DecodeLimits::default()).unwrap_err();
    assert!(matches!(error, CheckError::Bundle(_)), "{error}");
}

#[test]
fn a_golden_case_that_fails_is_named_with_both_answers() {
    let error =
        check("colours.onnx", |dir| edit(&dir.join("bundle.toml"), "label = \"red\"", "label = \"blue\""));
    let text = error.unwrap_err().to_string();
    assert!(
        text.contains("golden/red.png") && text.contains("expected blue") && text.contains("got red"),
        "{text}"
    );
    let error = check("colours.onnx", |dir| {
        fs::write(dir.join("golden/red.png"), "no picture").unwrap();
        let digest = sha256_of(&dir.join("golden/red.png"));
        let old = sha256_of(&crate::bundle::testing::made("red.png"));
        edit(&dir.join("bundle.toml"), &old, &digest);
    });
    assert!(matches!(error, Err(CheckError::Classify { .. })), "{error:?}");
}

#[test]
fn scores_that_are_no_numbers_are_refused_on_a_blank_image() {
    let error = check("nan.onnx", |_| ()).unwrap_err();
    assert!(matches!(error, CheckError::Engine(EngineError::NotFinite { .. })), "{error}");
}

/// Writes the small bundle without its golden case.
fn without_golden(dir: &std::path::Path) {
    let text = fs::read_to_string(dir.join("bundle.toml")).unwrap();
    fs::write(dir.join("bundle.toml"), &text[..text.find("[[golden]]").unwrap()]).unwrap();
}

#[test]
fn a_graph_that_ends_in_logits_is_refused_with_its_numbers_and_the_remedy() {
    let error = check("logits.onnx", |_| ()).unwrap_err().to_string();
    assert!(error.contains("kind = \"logits\""), "{error}");
    let error = check("logits.onnx", without_golden).unwrap_err().to_string();
    assert!(error.contains("kind = \"logits\""), "{error}");
}

#[test]
fn logits_that_are_declared_are_served_as_probabilities() {
    let declare = |dir: &std::path::Path| {
        edit(&dir.join("bundle.toml"), "shape = [0, 3]", "shape = [0, 3]\nkind = \"logits\"");
    };
    check("logits.onnx", declare).unwrap();
    let folder = tempfile::tempdir().unwrap();
    write_bundle(folder.path(), "logits.onnx");
    declare(folder.path());
    let (logits, runtime) = (Bundle::open(folder.path()).unwrap(), Runtime::load(None).unwrap());
    let softmax = tempfile::tempdir().unwrap();
    write_bundle(softmax.path(), "colours.onnx");
    let softmax = Bundle::open(softmax.path()).unwrap();
    let scores = |bundle: &Bundle| {
        let model = bundle.variant(DeviceTag::Cpu, None).unwrap();
        let mut pipeline = CpuPipeline::new(&runtime, bundle, &model, DecodeLimits::default(), 1).unwrap();
        let red = fs::read(crate::bundle::testing::made("red.png")).unwrap();
        pipeline.classify(&red).unwrap().scores
    };
    for (ours, graphs) in scores(&logits).iter().zip(scores(&softmax)) {
        assert!((ours - graphs).abs() < 1e-6, "{ours} {graphs}");
    }
}

#[test]
fn a_bundle_without_golden_cases_is_tried_on_pictures_all_the_same() {
    check("colours.onnx", without_golden).unwrap();
    // A blank image passes; the picture that is blue does not.
    let error = check("moody.onnx", without_golden).unwrap_err();
    assert!(error.to_string().contains("built-in"), "{error}");
}

#[test]
fn a_graph_that_is_not_the_manifests_is_refused() {
    for (model, part) in [("side16.onnx", "16"), ("two_labels.onnx", "2"), ("fp16.onnx", "f32")] {
        let error = check(model, |_| ()).unwrap_err();
        assert!(matches!(&error, CheckError::Engine(EngineError::Mismatch { .. })), "{error}");
        assert!(error.to_string().contains(part), "{error}");
    }
    let error = check("red.png", |_| ()).unwrap_err();
    assert!(matches!(&error, CheckError::Engine(EngineError::Model { .. })), "{error}");
}
