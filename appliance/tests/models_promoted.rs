//! The active version: monitored after its promotion, restored after a start that could not load it.
#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used)]

mod support;

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use support::models::{
    Colours, Registry, model, picture, start, start_in, until, until_rejected, until_serving,
};
use support::{Daemon, sample};
use test_services::gpu::compile;

const BLUE: [u8; 3] = [10, 10, 220];

fn served(daemon: &Daemon, query: &str, body: &[u8]) -> Value {
    let reply = daemon.post(&format!("/predict{query}"), &[], body);
    assert_eq!(reply.status, 200, "{}", reply.text());
    reply.json()
}

#[test]
fn a_version_that_fails_after_its_promotion_is_rolled_back() {
    let registry = Registry::new();
    registry.publish_colours("1", &Colours::default());
    registry.publish_colours("2", &Colours { model: "moody.onnx", ..Colours::default() });
    registry.alias("colours", "champion", "1");
    let env = registry.env("colours@champion");
    let daemon = start(&env, &[("WEIR__ROLLOUT__MAX_LATENCY_RATIO", "1000")]);
    until_serving(&daemon, "colours", "colours/1");
    registry.alias("colours", "champion", "2");
    until_serving(&daemon, "colours", "colours/2");
    // Exactly the required number: after the last one it may be rolled back immediately.
    for seed in 0..20 {
        let answer = daemon.post("/predict", &[], &picture(BLUE, seed));
        assert_eq!((answer.status, answer.json()["code"].as_str()), (500, Some("invalid_scores")));
    }
    // The reason contains the kind of value.
    let metrics = daemon.get("/metrics").text();
    assert!(metrics.contains("weir_invalid_scores_total{reason=\"not_finite\"} 20"), "{metrics}");
    until_serving(&daemon, "colours", "colours/1");
    let reason = until_rejected(&daemon, "colours", "colours/2");
    assert!(
        reason.contains("after it was promoted") && reason.contains("rollout.max_error_rate"),
        "{reason}"
    );
    assert_eq!(served(&daemon, "", &picture(BLUE, 99))["species"], "blue");
    until(&daemon, "colours", "tagged", |_| {
        let tags = registry.tags("colours", "2");
        tags["weir.dock-3.state"]
            .as_str()
            .is_some_and(|tag| tag.starts_with("rejected: after it was promoted"))
    });
}

#[test]
fn a_version_with_which_processes_crash_is_rolled_back_at_startup() {
    let registry = Registry::new();
    registry.publish_colours("1", &Colours::default());
    registry.publish_colours("2", &Colours::default());
    registry.alias("colours", "champion", "1");
    let env = registry.env("colours@champion");
    let serving = |daemon: &Daemon| model(daemon, "colours")["serving"].clone();
    let daemon = start(&env, &[]);
    until_serving(&daemon, "colours", "colours/1");
    registry.alias("colours", "champion", "2");
    until_serving(&daemon, "colours", "colours/2");
    let mut daemon = start_in(daemon.kill(), &env, &[]);
    assert_eq!(serving(&daemon), "colours/2");
    // A regular shutdown clears the count.
    daemon.terminate();
    assert!(daemon.wait(Duration::from_secs(30)).expect("it did not end").success());
    let mut data = daemon.kill();
    for _ in 0..3 {
        let daemon = start_in(data, &env, &[]);
        assert_eq!(serving(&daemon), "colours/2");
        data = daemon.kill();
    }
    let daemon = start_in(data, &env, &[]);
    assert_eq!(serving(&daemon), "colours/1", "from the start on");
    let reason = until_rejected(&daemon, "colours", "colours/2");
    assert!(reason.contains("after it was promoted, 3 processes that served it died"), "{reason}");
    until(&daemon, "colours", "tagged", |_| {
        let tags = registry.tags("colours", "2");
        tags["weir.dock-3.state"].as_str().is_some_and(|tag| tag.starts_with("rejected: after it was"))
    });
    let daemon = start_in(daemon.kill(), &env, &[]);
    assert_eq!(serving(&daemon), "colours/1");
}

#[test]
fn a_version_that_cannot_be_loaded_at_startup_serves_as_soon_as_possible() {
    let registry = Registry::new();
    registry.publish_fish("1", "first");
    registry.alias("fish", "champion", "1");
    let env = registry.env("fish@champion");
    let daemon = start(&env, &[]);
    until_serving(&daemon, "fish", "fish/1");
    let data = daemon.kill();
    drop(registry);
    // A folder instead of the weights cannot be read, which is not a fault of the version.
    let bundles = std::fs::read_dir(data.path().join("models/bundles")).unwrap();
    let bundle = bundles.map(|entry| entry.unwrap().path()).find(|path| path.is_dir()).unwrap();
    let (weights, aside) = (bundle.join("model.int8.onnx"), bundle.join("aside"));
    std::fs::rename(&weights, &aside).unwrap();
    std::fs::create_dir(&weights).unwrap();
    let daemon = start_in(data, &env, &[]);
    assert_eq!(model(&daemon, "fish")["serving"], "bundle");
    let (photo, _) = sample();
    served(&daemon, "", &photo);
    until(&daemon, "fish", "saying why", |model| {
        model["error"].as_str().is_some_and(|error| error.contains("fish/1 can't be loaded now"))
    });
    std::fs::remove_dir(&weights).unwrap();
    std::fs::rename(&aside, &weights).unwrap();
    until_serving(&daemon, "fish", "fish/1");
    assert_eq!(served(&daemon, "", &photo)["model"]["version"], "first");
}

/// A library for LD_PRELOAD with which ONNX Runtime gets no file descriptor for a model of the store while the file `marker` exists.
fn without_descriptors(dir: &Path) -> PathBuf {
    let (source, library) = (dir.join("no_files.c"), dir.join("no_files.so"));
    let code = r#"
        #define _GNU_SOURCE
        #include <dlfcn.h>
        #include <errno.h>
        #include <stdarg.h>
        #include <stdlib.h>
        #include <string.h>
        #include <unistd.h>
        int open(const char *path, int flags, ...) {
            va_list arguments;
            va_start(arguments, flags);
            int mode = va_arg(arguments, int);
            va_end(arguments);
            const char *marker = getenv("WEIR_TEST_NO_FILES");
            size_t length = strlen(path);
            if (marker && length > 5 && strstr(path, "/bundles/") && !strcmp(path + length - 5, ".onnx")
                && !access(marker, F_OK)) {
                errno = EMFILE;
                return -1;
            }
            int (*system_open)(const char *, int, ...) = (int (*)(const char *, int, ...))dlsym(RTLD_NEXT, "open");
            return system_open(path, flags, mode);
        }
    "#;
    std::fs::write(&source, code).unwrap();
    compile(source.to_str().unwrap(), &library);
    library
}

#[test]
fn a_lack_of_file_descriptors_at_startup_demotes_no_version() {
    let registry = Registry::new();
    registry.publish_fish("1", "first");
    registry.alias("fish", "champion", "1");
    let env = registry.env("fish@champion");
    let faults = tempfile::tempdir().unwrap();
    let (library, marker) = (without_descriptors(faults.path()), faults.path().join("marker"));
    let more = [("LD_PRELOAD", library.to_str().unwrap()), ("WEIR_TEST_NO_FILES", marker.to_str().unwrap())];
    let daemon = start(&env, &more);
    until_serving(&daemon, "fish", "fish/1");
    let data = daemon.kill();
    let journal = data.path().join("models/rollouts.json");
    let serving = move || -> Value {
        let text: Value = serde_json::from_slice(&std::fs::read(&journal).unwrap()).unwrap();
        text["models"]["fish"]["serving"]["version"].clone()
    };
    assert_eq!(serving(), "1");
    // The configured bundle can be loaded, the active version in the journal cannot.
    std::fs::write(&marker, "").unwrap();
    let daemon = start_in(data, &env, &more);
    assert_eq!(model(&daemon, "fish")["serving"], "bundle");
    let (photo, _) = sample();
    served(&daemon, "", &photo);
    until(&daemon, "fish", "saying why", |model| {
        let error = model["error"].as_str().unwrap_or_default();
        error.contains("fish/1 can't be loaded now") && error.contains("model.int8.onnx does not load")
    });
    assert_eq!(serving(), "1");
    assert!(
        model(&daemon, "fish")["rejected"].as_array().is_none_or(Vec::is_empty),
        "no version is at fault"
    );
    std::fs::remove_file(&marker).unwrap();
    until_serving(&daemon, "fish", "fish/1");
    assert_eq!(served(&daemon, "", &photo)["model"]["version"], "first");
}
