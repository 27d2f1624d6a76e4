//! Versions that must not serve: each is rejected with its reason and leaves nothing behind, and the active version keeps serving.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::fs;
use std::path::Path;
use std::time::Duration;

use support::models::{Colours, Registry, model, picture, start, until, until_rejected, until_serving};

fn edit(path: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(path).unwrap();
    assert!(text.contains(from), "{} has no {from:?}", path.display());
    fs::write(path, text.replacen(from, to, 1)).unwrap();
}

/// Writes a version with one defect, and returns a part of the expected reason.
type Wrong = (&'static str, fn(&Registry, &str) -> Vec<&'static str>);

const WRONG: [Wrong; 14] = [
    ("an artifact that is cut short", |registry, version| {
        let dir = registry.publish_colours(version, &Colours::default());
        let graph = fs::read(dir.join("model.onnx")).unwrap();
        fs::write(dir.join("model.onnx"), &graph[..graph.len() / 2]).unwrap();
        vec!["model.onnx has sha256", "it is damaged or was changed"]
    }),
    ("a wrong digest", |registry, version| {
        let dir = registry.publish_colours(version, &Colours::default());
        edit(&dir.join("bundle.toml"), "sha256 = \"", "sha256 = \"00");
        vec!["sha256"]
    }),
    ("a graph that does not parse", |registry, version| {
        // A correct digest of a file that is not a graph.
        let dir = registry.publish_colours(version, &Colours { model: "make.py", ..Colours::default() });
        assert!(dir.join("model.onnx").is_file());
        vec!["model.onnx"]
    }),
    ("another shape of the input", |registry, version| {
        registry.publish_colours(version, &Colours { model: "side16.onnx", ..Colours::default() });
        vec!["input", "16"]
    }),
    ("labels that do not fit the output", |registry, version| {
        registry.publish_colours(version, &Colours { model: "two_labels.onnx", ..Colours::default() });
        vec!["output"]
    }),
    ("labels that contradict labels.txt", |registry, version| {
        let dir = registry.publish_colours(version, &Colours::default());
        edit(&dir.join("labels.txt"), "green", "yellow");
        vec!["labels.txt"]
    }),
    ("scores that are no numbers", |registry, version| {
        registry.publish_colours(version, &Colours { model: "nan.onnx", ..Colours::default() });
        vec!["not a finite number"]
    }),
    ("logits that are not declared", |registry, version| {
        registry.publish_colours(version, &Colours { model: "logits.onnx", ..Colours::default() });
        vec!["not to 1", "kind = \"logits\""]
    }),
    ("a golden case that comes out wrong", |registry, version| {
        registry.publish_colours(version, &Colours { golden: "blue", ..Colours::default() });
        vec!["golden case golden/red.png"]
    }),
    ("a missing file", |registry, version| {
        let dir = registry.publish_colours(version, &Colours::default());
        fs::remove_file(dir.join("golden/red.png")).unwrap();
        vec!["golden/red.png"]
    }),
    ("a path that climbs out", |registry, version| {
        let dir = registry.publish_colours(version, &Colours::default());
        edit(&dir.join("bundle.toml"), "\"model.onnx\"", "\"../../1/model.onnx\"");
        vec!["../../1/model.onnx"]
    }),
    ("a symbolic link", |registry, version| {
        let dir = registry.publish_colours(version, &Colours::default());
        fs::remove_file(dir.join("model.onnx")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", dir.join("model.onnx")).unwrap();
        vec!["model.onnx"]
    }),
    ("an archive", |registry, version| {
        let dir = registry.version("colours", version);
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("bundle.zip"), b"PK\x03\x04 a bomb, for all that is known").unwrap();
        vec!["bundle.zip", "archives are not unpacked"]
    }),
    ("nothing", |registry, version| {
        fs::create_dir_all(registry.version("colours", version)).unwrap();
        vec!["no files"]
    }),
];

#[test]
fn each_is_rejected_with_its_reason_and_the_active_version_keeps_serving() {
    let registry = Registry::new();
    registry.publish_colours("1", &Colours::default());
    registry.alias("colours", "champion", "1");
    let daemon = start(&registry.env("colours@champion"), &[]);
    until_serving(&daemon, "colours", "colours/1");
    for (count, (what, write)) in WRONG.into_iter().enumerate() {
        let version = (count + 2).to_string();
        let words = write(&registry, &version);
        registry.alias("colours", "champion", &version);
        let reason = until_rejected(&daemon, "colours", &format!("colours/{version}"));
        for word in words {
            assert!(reason.contains(word), "{what}: {reason:?} lacks {word:?}");
        }
        let seen = daemon.post("/predict", &[], &picture([220, 10, 10], count as u32));
        assert_eq!((seen.status, &seen.json()["species"]), (200, &"red".into()), "{what}");
        until(&daemon, "colours", "tagged", |model| {
            let tags = registry.tags("colours", &version);
            model["step"] == "idle"
                && tags["weir.dock-3.state"].as_str().is_some_and(|state| state.starts_with("rejected: "))
        });
        assert_eq!(model(&daemon, "colours")["serving"], "colours/1", "{what}");
    }
    // Only verified files of them are on disk, and they are not downloaded repeatedly.
    let partial = daemon.data.path().join("models/partial");
    assert_eq!(fs::read_dir(partial).unwrap().count(), 0);
    let (rejected, events) = (WRONG.len(), daemon.events().len());
    std::thread::sleep(Duration::from_millis(500));
    let now = model(&daemon, "colours");
    assert_eq!((now["rejected"].as_array().unwrap().len(), daemon.events().len()), (rejected, events));
    // A valid version after them serves.
    registry.publish_colours("99", &Colours::default());
    registry.alias("colours", "champion", "99");
    until_serving(&daemon, "colours", "colours/99");
}

#[test]
fn a_full_disk_is_waited_out() {
    let registry = Registry::new();
    registry.publish_fish("1", "first");
    registry.alias("fish", "champion", "1");
    let (mut command, data) = support::on_a_small_disk();
    command.env("WEIR__LOG__FORMAT", "json").envs(registry.env("fish@champion"));
    // The reserved free space is larger than this disk, so every download finds it full.
    let daemon = support::Daemon::spawn(command, data);
    let full = until(&daemon, "fish", "saying that the disk is full", |model| {
        model["error"]
            .as_str()
            .is_some_and(|error| error.contains("bytes free") || error.contains("no space"))
    });
    assert_eq!((&full["serving"], &full["rejected"]), (&"bundle".into(), &serde_json::Value::Null));
    let (photo, label) = support::sample();
    let seen = daemon.post("/predict", &[], &photo);
    assert_eq!((seen.status, &seen.json()["species"]), (200, &label.into()));
}
