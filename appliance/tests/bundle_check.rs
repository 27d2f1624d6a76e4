//! `weir bundle check`: the table, the JSON document, the exit code.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use serde_json::Value;

fn check(args: &[&str]) -> (Option<i32>, String) {
    let mut command = support::weir();
    let output = command.args(["bundle", "check"]).args(args).output().unwrap();
    (output.status.code(), String::from_utf8(output.stdout).unwrap())
}

#[test]
fn the_exit_code_of_a_bundle_check() {
    let bundle = support::bundle();
    let (code, text) = check(&[bundle.to_str().unwrap()]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("can serve") && text.contains("golden/anemone_fish.jpg"), "{text}");

    let folder = tempfile::tempdir().unwrap();
    for file in ["bundle.toml", "labels.txt", "model.int8.onnx"] {
        std::fs::copy(bundle.join(file), folder.path().join(file)).unwrap();
    }
    let (code, text) = check(&[folder.path().to_str().unwrap(), "--json"]);
    assert_eq!(code, Some(1), "{text}");
    let report: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(report["ok"], false);
    let found = report["steps"][0]["found"].as_str().unwrap();
    assert!(found.contains("model.fp16.onnx"), "{found}");
    assert!(report["steps"][0]["remedy"].is_string());
}
