//! Startup errors are reported immediately with a remedy; there is no partial start.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::net::TcpListener;
use std::path::Path;

use support::{Daemon, assert_says, bundle, copy, failure, serve, weir};

#[test]
fn a_port_already_taken() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let data = tempfile::tempdir().unwrap();
    let text = failure(weir().args(["serve", "--listen", &address, "--data-dir"]).arg(data.path()));
    assert_says(&text, &[&address, "another process has this port", "--listen"]);
}

#[test]
fn a_data_directory_that_cannot_be_written() {
    // Root may write anywhere, so the parent is a file.
    let file = tempfile::NamedTempFile::new().unwrap();
    let dir = file.path().join("data");
    assert_says(&failure(&mut serve(&dir)), &["data directory", &dir.display().to_string(), "--data-dir"]);
}

#[test]
fn a_data_directory_in_use() {
    let daemon = Daemon::start(&[]);
    assert_says(&failure(&mut serve(daemon.data.path())), &["in use by another process"]);
}

#[test]
fn a_damaged_bundle() {
    let data = tempfile::tempdir().unwrap();
    let damaged = |change: &dyn Fn(&Path)| {
        let dir = tempfile::tempdir().unwrap();
        copy(&bundle(), dir.path());
        change(dir.path());
        failure(serve(data.path()).env("WEIR__MODEL__BUNDLE", dir.path()))
    };
    let text = damaged(&|dir| std::fs::write(dir.join("model.int8.onnx"), b"other").unwrap());
    assert_says(&text, &["model.int8.onnx", "sha256", "damaged"]);
    let text = damaged(&|dir| std::fs::remove_file(dir.join("model.int8.onnx")).unwrap());
    assert_says(&text, &["model.int8.onnx", "can't be read"]);
    let text = damaged(&|dir| std::fs::write(dir.join("labels.txt"), "tench\n").unwrap());
    assert_says(&text, &["labels.txt"]);
    let text = damaged(&|dir| std::fs::remove_file(dir.join("bundle.toml")).unwrap());
    assert_says(&text, &["bundle.toml"]);
    // A golden case that does not match the model's result.
    let text = damaged(&|dir| {
        let path = dir.join("bundle.toml");
        let manifest = std::fs::read_to_string(&path).unwrap();
        let (head, golden) = manifest.split_once("[[golden]]").unwrap();
        let line = golden.lines().find(|l| l.starts_with("label")).unwrap();
        std::fs::write(&path, format!("{head}[[golden]]{}", golden.replacen(line, "label = \"gar\"", 1)))
            .unwrap();
    });
    assert_says(&text, &["golden case", "expected gar"]);
}

#[test]
fn labels_that_do_not_fit_the_output() {
    let data = tempfile::tempdir().unwrap();
    let dir = tempfile::tempdir().unwrap();
    copy(&bundle(), dir.path());
    let path = dir.path().join("bundle.toml");
    let manifest = std::fs::read_to_string(&path).unwrap();
    // The manifest is consistent, but the graph has 17 scores.
    let manifest =
        manifest.replacen("\"tench\"", "\"extra\", \"tench\"", 1).replacen("[0, 17]", "[0, 18]", 1);
    std::fs::write(&path, manifest).unwrap();
    let labels = std::fs::read_to_string(dir.path().join("labels.txt")).unwrap();
    std::fs::write(dir.path().join("labels.txt"), format!("extra\n{labels}")).unwrap();
    let text = failure(serve(data.path()).env("WEIR__MODEL__BUNDLE", dir.path()));
    assert_says(&text, &["model.int8.onnx", "does not fit its bundle.toml", "17", "18"]);
}

#[test]
fn a_model_that_is_no_onnx() {
    use sha2::Digest;
    let data = tempfile::tempdir().unwrap();
    let dir = tempfile::tempdir().unwrap();
    copy(&bundle(), dir.path());
    let hex =
        |bytes: &[u8]| sha2::Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect::<String>();
    let old = hex(&std::fs::read(dir.path().join("model.int8.onnx")).unwrap());
    std::fs::write(dir.path().join("model.int8.onnx"), b"not a model").unwrap();
    let path = dir.path().join("bundle.toml");
    let manifest = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, manifest.replace(&old, &hex(b"not a model"))).unwrap();
    let text = failure(serve(data.path()).env("WEIR__MODEL__BUNDLE", dir.path()));
    assert_says(&text, &["model.int8.onnx", "does not load"]);
}

#[test]
fn onnx_runtime_that_is_missing_or_no_library() {
    let data = tempfile::tempdir().unwrap();
    let text = failure(serve(data.path()).env("ORT_DYLIB_PATH", "/nowhere/libonnxruntime.so"));
    assert_says(&text, &["/nowhere/libonnxruntime.so", "ORT_DYLIB_PATH", "Remedy"]);
    let text = failure(serve(data.path()).env("WEIR__ENGINE__ONNXRUNTIME", "/nowhere/else.so"));
    assert_says(&text, &["/nowhere/else.so", "engine.onnxruntime", "Remedy"]);
    let fake = data.path().join("libonnxruntime.so");
    std::fs::write(&fake, b"no library").unwrap();
    let text = failure(serve(data.path()).env("WEIR__ENGINE__ONNXRUNTIME", &fake));
    assert_says(&text, &["can't be loaded", "Remedy"]);
}

#[test]
fn a_bad_configuration_names_key_value_and_source() {
    let data = tempfile::tempdir().unwrap();
    let text = failure(serve(data.path()).env("WEIR__CACHE__TTL", "an hour"));
    assert_says(&text, &["WEIR__CACHE__TTL", "cache.ttl", "an hour"]);
    let text = failure(serve(data.path()).env("WEIR__CASH__TTL", "1h"));
    assert_says(&text, &["WEIR__CASH__TTL", "cash.ttl", "unknown field"]);
    let text = failure(weir().args(["serve", "--listen", "somewhere"]));
    assert_says(&text, &["--listen", "somewhere"]);
}

#[test]
fn certificates_for_fetches_that_are_none() {
    let data = tempfile::tempdir().unwrap();
    let file = data.path().join("cameras.pem");
    let text = failure(serve(data.path()).env("WEIR__FETCH__CA_FILE", &file));
    assert_says(&text, &["fetch.ca_file", "cameras.pem", "No such file", "Remedy"]);
    std::fs::write(&file, "not a certificate").unwrap();
    let text = failure(serve(data.path()).env("WEIR__FETCH__CA_FILE", &file));
    assert_says(&text, &["fetch.ca_file", "cameras.pem", "no PEM certificate"]);
    let mut doctor = weir();
    doctor.args(["doctor", "--data-dir"]).arg(data.path()).env("WEIR__HTTP__LISTEN", "127.0.0.1:0");
    let output = doctor.env("WEIR__FETCH__CA_FILE", &file).output().unwrap();
    assert!(!output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    assert_says(&text, &["FAIL ] fetch", "cameras.pem", "no PEM certificate"]);
}

#[test]
fn a_worker_without_work() {
    let data = tempfile::tempdir().unwrap();
    let mut worker = weir();
    worker.args(["worker", "--listen", "127.0.0.1:0", "--data-dir"]).arg(data.path());
    let text = failure(worker.env("WEIR__BATCH__ENABLED", "false"));
    assert_says(&text, &["batch.enabled = false", "Remedy"]);
}

#[test]
fn doctor_shows_no_secret_and_warns_of_one_sent_unencrypted() {
    let doctor = |env: &[(&str, &str)]| {
        let data = tempfile::tempdir().unwrap();
        let mut doctor = weir();
        doctor.args(["doctor", "--data-dir"]).arg(data.path()).env("WEIR__HTTP__LISTEN", "127.0.0.1:0");
        let output = doctor.envs(env.iter().copied()).output().unwrap();
        let text = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap()).concat();
        assert!(!text.contains("hunter2"), "{text}");
        text
    };
    doctor(&[("AWS_ENDPOINT_URL_S3", "http://key:hunter2@127.0.0.1:1"), ("S3_BUCKET", "b")]);
    doctor(&[("WEIR__KAFKA__PASSWD", "hunter2")]);
    // No server exists; an unresolvable name is detected immediately.
    let redis = [("REDIS_HOST", "redis.invalid"), ("REDIS_PASSWORD", "hunter2")];
    let warned = |text: &str| text.contains("the password travels unencrypted to another machine");
    assert!(warned(&doctor(&redis)));
    assert!(!warned(&doctor(&[redis.as_slice(), &[("REDIS_TLS", "true")]].concat())));
    assert!(!warned(&doctor(&[("REDIS_HOST", "127.0.0.1"), ("REDIS_PORT", "1"), redis[1]])));
}

#[test]
fn doctor_reports_what_works_and_what_does_not() {
    let data = tempfile::tempdir().unwrap();
    let fine = weir()
        .args(["doctor", "--data-dir"])
        .arg(data.path())
        .env("WEIR__HTTP__LISTEN", "127.0.0.1:0")
        .output();
    let fine = fine.unwrap();
    let text = String::from_utf8_lossy(&fine.stdout);
    assert!(fine.status.success(), "{text}");
    for part in ["onnxruntime", "bundle", "golden cases", "data directory", "weir can serve here"] {
        assert!(text.contains(part), "{part:?} is missing in:\n{text}");
    }
    let broken = weir()
        .args(["doctor", "--json", "--data-dir"])
        .arg(data.path())
        .env("WEIR__ENGINE__ONNXRUNTIME", "/nowhere.so")
        .output()
        .unwrap();
    assert_eq!(broken.status.code(), Some(1));
    let checks: serde_json::Value = serde_json::from_slice(&broken.stdout).unwrap();
    let failed: Vec<_> = checks.as_array().unwrap().iter().filter(|c| c["verdict"] == "failed").collect();
    assert_eq!(failed.len(), 1, "{checks}");
    assert!(failed[0]["remedy"].as_str().unwrap().contains("make"), "{checks}");
}

#[test]
fn damaged_files_are_quarantined_and_reported() {
    let data = tempfile::tempdir().unwrap();
    std::fs::create_dir(data.path().join("batches")).unwrap();
    for name in ["queue.redb", "batches.redb"] {
        std::fs::write(data.path().join("batches").join(name), "no database at all").unwrap();
    }
    let daemon = Daemon::start_in(data, &[("WEIR__HTTP__ADMIN_LISTEN", "127.0.0.1:0")]);
    let health = daemon.get("/health");
    assert_eq!(
        (health.status, health.json()["status"].as_str()),
        (200, Some("degraded")),
        "{}",
        health.text()
    );
    assert!(!health.text().contains(".damaged-"), "paths are the operator's business: {}", health.text());
    let health = daemon.get_as_operator("/health").json();
    let told = health["quarantined"].as_array().unwrap();
    assert_eq!((told.len(), &health["batches"]["quarantined_files"]), (2, &serde_json::json!(2)), "{health}");
    for path in told {
        assert!(std::path::Path::new(path.as_str().unwrap()).is_file(), "{path}");
    }
    let (picture, _) = support::sample();
    assert_eq!(daemon.post("/predict", &[], &picture).status, 200);
    let mut doctor = weir();
    doctor.args(["doctor", "--json", "--data-dir"]).arg(daemon.data.path());
    let output = doctor.env("WEIR__HTTP__LISTEN", "127.0.0.1:0").output().unwrap();
    let checks: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let check = checks.as_array().unwrap().iter().find(|check| check["name"] == "damaged files");
    let found = check.unwrap_or_else(|| panic!("{checks}"))["found"].as_str().unwrap();
    assert!(found.contains("queue.redb.damaged-") && found.contains("batches.redb.damaged-"), "{found}");
    // They are kept for inspection, and do not affect the health of later starts.
    let daemon = Daemon::start_in(daemon.kill(), &[]);
    assert_eq!(daemon.get("/health").json()["status"], "ready");
}
