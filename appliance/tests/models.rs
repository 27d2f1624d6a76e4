//! Models from a registry, from an operator's view: followed, swapped under load, evaluated, rolled back, pinned, served
//! side by side.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use support::models::{
    Colours, Registry, TOKEN, model, picture, send_command, start, start_in, until, until_rejected,
    until_serving, weir_models,
};
use support::{Daemon, client, sample};

const RED: [u8; 3] = [220, 10, 10];
const BLUE: [u8; 3] = [10, 10, 220];

/// A model that swaps red and blue, with a matching golden case.
const SWAPPED: Colours<'static> =
    Colours { model: "colours.onnx", labels: &["blue", "green", "red"], golden: "blue" };

fn served(daemon: &Daemon, query: &str, body: &[u8]) -> Value {
    let reply = daemon.post(&format!("/predict{query}"), &[], body);
    assert_eq!(reply.status, 200, "{}", reply.text());
    reply.json()
}

#[test]
fn an_alias_is_followed_rolled_back_pinned_and_remembered() {
    let registry = Registry::new();
    registry.publish_fish("1", "first");
    registry.publish_fish("2", "second");
    let env = registry.env("fish@champion");
    let daemon = start(&env, &[]);
    let (photo, label) = sample();
    // There is no alias yet: the configured bundle serves, and the reason is shown.
    assert_eq!(model(&daemon, "fish")["serving"], "bundle");
    until(&daemon, "fish", "saying that there is no alias", |model| {
        model["error"].as_str().is_some_and(|error| error.contains("fish@champion: the registry has no such"))
    });
    for version in ["1", "2"] {
        registry.alias("fish", "champion", version);
        until_serving(&daemon, "fish", &format!("fish/{version}"));
        let answer = served(&daemon, "", &photo);
        let says = if version == "1" { "first" } else { "second" };
        assert_eq!((&answer["model"]["version"], &answer["species"]), (&json!(says), &json!(label)));
        assert_eq!(answer["cached"], false, "an answer of another version is not this one's");
    }
    until(&daemon, "fish", "tagged", |_| registry.tags("fish", "2")["weir.dock-3.state"] == "serving");
    assert_eq!(registry.tags("fish", "1")["weir.dock-3.state"], "replaced by fish/2");

    // Commands need the token.
    for (token, status, code) in [(None, 401, "unauthorized"), (Some("wrong"), 401, "unauthorized")] {
        let reply = send_command(&daemon, "/models/fish/rollback", token);
        assert_eq!((reply.status, reply.code().as_str()), (status, code));
    }
    let (ok, text) = weir_models(&daemon, &env, &["rollback", "fish"]);
    assert!(ok && text.contains("fish/1 serves again; fish/2 is rejected"), "{text}");
    assert_eq!(model(&daemon, "fish")["serving"], "fish/1");
    assert_eq!(until_rejected(&daemon, "fish", "fish/2"), "rolled back by an operator");
    until(&daemon, "fish", "tagged", |_| {
        registry.tags("fish", "2")["weir.dock-3.state"] == "rejected: rolled back by an operator"
    });
    // The alias still points to it, and it stays rejected over several polls.
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(model(&daemon, "fish")["serving"], "fish/1");
    let (ok, text) = weir_models(&daemon, &env, &["reload", "fish"]);
    assert!(ok, "{text}");
    until_serving(&daemon, "fish", "fish/2");

    let (ok, text) = weir_models(&daemon, &env, &["pin", "fish", "1"]);
    assert!(ok && text.contains("pinned to fish/1"), "{text}");
    until_serving(&daemon, "fish", "fish/1");
    let (ok, text) = weir_models(&daemon, &env, &["list"]);
    assert!(ok && text.contains("fish/1 (fish first)") && text.contains("fish@champion"), "{text}");
    // Tags follow the change.
    until(&daemon, "fish", "tagged", |_| registry.tags("fish", "1")["weir.dock-3.state"] == "serving");
    let (ok, text) = weir_models(&daemon, &env, &["show", "fish"]);
    assert!(ok && text.contains("champion") && text.contains("dock-3: serving"), "{text}");
    let (ok, text) = weir_models(&daemon, &env, &["unpin", "fish"]);
    assert!(ok, "{text}");
    until_serving(&daemon, "fish", "fish/2");
    let (ok, text) = weir_models(&daemon, &env, &["promote", "fish"]);
    assert!(!ok && text.contains("no version is on trial"), "{text}");
    let (ok, text) = weir_models(&daemon, &env, &["show", "birds"]);
    assert!(!ok && text.contains("there is no model \"birds\" here; there are fish"), "{text}");

    // The changes are recorded as events, in metrics and in /health.
    let changes: Vec<(String, String)> = daemon
        .events()
        .iter()
        .filter(|event| event["kind"] == "model")
        .map(|e| (e["version"].as_str().unwrap().to_owned(), e["state"].as_str().unwrap().to_owned()))
        .collect();
    let expected = [
        ("fish/1", "serving"),
        ("fish/2", "serving"),
        ("fish/2", "rolled_back"),
        ("fish/2", "serving"),
        ("fish/1", "serving"),
        ("fish/2", "serving"),
    ];
    assert_eq!(changes, expected.map(|(version, state)| (version.to_owned(), state.to_owned())));
    let metrics = daemon.get("/metrics").text();
    for line in [
        "weir_model_changes_total{model=\"fish\",state=\"serving\"} 5",
        "weir_model_changes_total{model=\"fish\",state=\"rolled_back\"} 1",
        "weir_model_predictions_total{model=\"fish\",version=\"first\"} 1",
        "weir_model_predictions_total{model=\"fish\",version=\"second\"} 1",
    ] {
        assert!(metrics.contains(line), "{line} is not in {metrics}");
    }
    assert_eq!(daemon.get("/health").json()["models"][0]["serving"], "fish/2");

    // Without the registry the node starts with its last version.
    let data = daemon.kill();
    drop(registry);
    let daemon = start_in(data, &env, &[]);
    assert_eq!(model(&daemon, "fish")["serving"], "fish/2");
    assert_eq!(served(&daemon, "", &photo)["model"]["version"], "second");
    // Without `follow` the configured bundle serves.
    let daemon = start_in(daemon.kill(), &[], &[]);
    assert_eq!(model(&daemon, "fish")["serving"], "bundle");
    assert_eq!(served(&daemon, "", &photo)["model"]["version"], "1");
}

#[test]
fn without_a_token_nothing_can_be_changed_and_a_wrong_command_reports_the_cause() {
    let daemon = Daemon::start(&[]);
    let reply = send_command(&daemon, "/models/fish/rollback", Some(TOKEN));
    assert_eq!((reply.status, reply.code().as_str()), (403, "admin_disabled"));
    drop(daemon);
    let daemon = Daemon::start(&[("WEIR__ADMIN__TOKEN", TOKEN)]);
    for (path, status, code) in [
        ("/models/birds/rollback", 404, "unknown_model"),
        ("/models/fish/destroy", 404, "not_found"),
        ("/models/fish/promote?version=3", 400, "invalid_query"),
        ("/models/fish/pin?version=../3", 400, "invalid_query"),
        ("/models/fish/pin?version=3", 409, "refused"),
        ("/models/fish/rollback", 409, "refused"),
        ("/models/fish/reload", 409, "refused"),
    ] {
        let reply = send_command(&daemon, path, Some(TOKEN));
        assert_eq!((reply.status, reply.code().as_str()), (status, code), "{path}: {}", reply.text());
    }
    assert_eq!(daemon.get("/models/birds").code(), "unknown_model");
    assert_eq!(daemon.get("/models/fish/rollback").code(), "method_not_allowed");
    assert_eq!(daemon.get("/models/fish/destroy").code(), "not_found");
    assert_eq!(daemon.get("/models").json()["models"][0]["serving"], "bundle");
}

#[test]
fn a_shadow_version_is_compared_and_answers_no_request() {
    let registry = Registry::new();
    registry.publish_colours("1", &Colours::default());
    registry.alias("colours", "champion", "1");
    let env = registry.env("colours@champion");
    let shadow = [
        ("WEIR__ROLLOUT__SHADOW_IMAGES", "30"),
        ("WEIR__ROLLOUT__CANARY", "50"),
        ("WEIR__ROLLOUT__CANARY_TIME", "0s"),
        ("WEIR__ROLLOUT__CANARY_IMAGES", "1"),
    ];
    let daemon = start(&env, &shadow);
    // The previous bundle has other labels, so that each image would differ: this version is promoted manually.
    until(&daemon, "colours", "in the shadow", |model| model["step"] == "shadow");
    let reply = send_command(&daemon, "/models/colours/promote", Some(TOKEN));
    assert_eq!(reply.status, 200, "{}", reply.text());
    // The response is sent when it serves; the canary stage is skipped.
    assert_eq!(model(&daemon, "colours")["serving"], "colours/1");

    // A version with the same predictions passes.
    registry.publish_colours("2", &Colours::default());
    registry.alias("colours", "champion", "2");
    let mut seed = 0;
    let mut send = |daemon: &Daemon| {
        seed += 1;
        let answer = served(daemon, "", &picture(if seed % 2 == 0 { RED } else { BLUE }, seed));
        assert_eq!(answer["species"], if seed % 2 == 0 { "red" } else { "blue" });
        answer["model"]["version"].as_str().unwrap().to_owned()
    };
    until(&daemon, "colours", "serving 2", |before| {
        let version = send(&daemon);
        // Read after the response: the canary may have begun since `before`.
        let in_shadow = || model(&daemon, "colours")["step"] == "shadow";
        assert!(version == "1" || !in_shadow(), "the version in the shadow has answered");
        before["serving"] == "colours/2"
    });
    // A version with other predictions is rejected, and no client has seen them.
    registry.publish_colours("3", &SWAPPED);
    registry.alias("colours", "champion", "3");
    until(&daemon, "colours", "rejecting 3", |model| {
        assert_eq!(send(&daemon), "2");
        model["rejected"].as_array().is_some_and(|rejected| !rejected.is_empty())
    });
    let reason = until_rejected(&daemon, "colours", "colours/3");
    assert!(reason.contains("rollout.max_disagreement"), "{reason}");
    until(&daemon, "colours", "tagged", |_| {
        let tags = registry.tags("colours", "3");
        tags["weir.dock-3.state"].as_str().is_some_and(|state| state.starts_with("rejected: on "))
    });
}

#[test]
fn a_canary_is_sticky_by_camera_and_promoted_if_it_succeeds() {
    let registry = Registry::new();
    registry.publish_colours("1", &Colours::default());
    registry.publish_colours("2", &SWAPPED);
    registry.alias("colours", "champion", "1");
    let canary = [
        ("WEIR__ROLLOUT__CANARY", "50"),
        ("WEIR__ROLLOUT__CANARY_IMAGES", "60"),
        ("WEIR__ROLLOUT__CANARY_TIME", "0s"),
        ("WEIR__ROLLOUT__MAX_DISAGREEMENT", "1"),
        ("WEIR__ROLLOUT__MAX_LATENCY_RATIO", "1000"),
    ];
    let daemon = start(&registry.env("colours@champion"), &canary);
    until(&daemon, "colours", "on trial", |model| model["step"] == "canary");
    assert_eq!(send_command(&daemon, "/models/colours/promote", Some(TOKEN)).status, 200);
    until_serving(&daemon, "colours", "colours/1");
    registry.alias("colours", "champion", "2");
    until(&daemon, "colours", "on trial", |model| model["step"] == "canary");
    // Twenty cameras twice: about half of them get the new version, and each gets only one. Fewer images than the trial requires.
    let species = |camera: u32, round: u32| {
        let answer = served(&daemon, &format!("?camera=dock-{camera}"), &picture(RED, camera * 100 + round));
        answer["species"].as_str().unwrap().to_owned()
    };
    let first: Vec<String> = (0..20).map(|camera| species(camera, 0)).collect();
    let second: Vec<String> = (0..20).map(|camera| species(camera, 1)).collect();
    assert_eq!(first, second, "a camera changes its version");
    let new = first.iter().filter(|species| *species == "blue").count();
    assert!((3..=17).contains(&new), "{first:?}");
    assert_eq!(model(&daemon, "colours")["trial"]["percent"], 50.0);
    let mut round = 2;
    until(&daemon, "colours", "serving 2", |_| {
        round += 1;
        species(round % 20, round);
        model(&daemon, "colours")["serving"] == "colours/2"
    });
    assert!((0..20).all(|camera| species(camera, 1000) == "blue"));
}

#[test]
fn failures_of_a_canary_are_answered_by_the_active_version_and_reject_it() {
    let registry = Registry::new();
    registry.publish_colours("1", &Colours::default());
    // Passes its golden case, but computes NaN for blue pictures.
    registry.publish_colours("2", &Colours { model: "moody.onnx", ..Colours::default() });
    let canary = [("WEIR__ROLLOUT__CANARY", "100"), ("WEIR__ROLLOUT__MAX_LATENCY_RATIO", "1000")];
    registry.alias("colours", "champion", "1");
    let env = registry.env("colours@champion");
    let daemon = start(&env, &canary);
    until(&daemon, "colours", "on trial", |model| model["step"] == "canary");
    assert_eq!(send_command(&daemon, "/models/colours/promote", Some(TOKEN)).status, 200);
    until_serving(&daemon, "colours", "colours/1");
    registry.alias("colours", "champion", "2");
    until(&daemon, "colours", "on trial", |model| model["step"] == "canary");
    let mut seed = 0;
    until(&daemon, "colours", "rejecting 2", |model| {
        seed += 1;
        let answer = served(&daemon, "", &picture(BLUE, seed));
        assert_eq!((&answer["species"], &answer["model"]["version"]), (&json!("blue"), &json!("1")));
        model["rejected"].as_array().is_some_and(|rejected| !rejected.is_empty())
    });
    let reason = until_rejected(&daemon, "colours", "colours/2");
    assert!(reason.contains("rollout.max_error_rate"), "{reason}");
    let metrics = daemon.get("/metrics").text();
    assert!(metrics.contains("weir_model_failures_total{model=\"colours\",version=\"2\"}"), "{metrics}");
}

#[test]
fn several_models_are_served_by_name() {
    let colours = tempfile::tempdir().unwrap();
    Colours::default().write(colours.path(), "7");
    let config = tempfile::NamedTempFile::new().unwrap();
    let (late, dir) = (tempfile::tempdir().unwrap(), colours.path().display());
    let text = format!(
        "registry.dir = \"{}\"\nregistry.poll_interval = \"100ms\"\n[models.colours]\nbundle = \"{dir}\"\n[models.late]\nfollow = \"late@now\"\n",
        late.path().display()
    );
    std::fs::write(config.path(), text).unwrap();
    let mut command = support::weir();
    let data = tempfile::tempdir().unwrap();
    command.args(["serve", "--listen", "127.0.0.1:0", "--data-dir"]).arg(data.path());
    command.arg("--config").arg(config.path()).env("WEIR__LOG__FORMAT", "json");
    let daemon = Daemon::spawn(command, data);
    let (photo, label) = sample();
    assert_eq!(served(&daemon, "", &photo)["species"], label);
    assert_eq!(served(&daemon, "?model=fish", &photo)["species"], label);
    let answer = served(&daemon, "?model=colours&top_k=1", &picture(BLUE, 1));
    assert_eq!((&answer["species"], &answer["model"]["name"]), (&json!("blue"), &json!("colours")));
    let reply = daemon.post("/predict?model=colours&top_k=4", &[], &picture(BLUE, 1));
    assert_eq!((reply.status, reply.code().as_str()), (400, "invalid_query"), "{}", reply.text());
    let reply = daemon.post("/predict?model=birds", &[], &photo);
    assert_eq!((reply.status, reply.code().as_str()), (404, "unknown_model"));
    assert!(reply.text().contains("served are fish, colours, late"), "{}", reply.text());
    // A model without a first version is refused, and served as soon as it is loaded.
    let reply = daemon.post("/predict?model=late", &[], &photo);
    assert_eq!(reply.status, 503, "{}", reply.text());
    assert!(reply.header("retry-after").is_some());
    let registry = Registry { dir: late };
    Colours::default().write(&registry.version("late", "1"), "1");
    registry.alias("late", "now", "1");
    until_serving(&daemon, "late", "late/1");
    assert_eq!(served(&daemon, "?model=late", &picture(RED, 2))["species"], "red");

    // Lanes are shared: while one model is saturated, the other responds.
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for client in 0..8u32 {
            let (address, stop) = (daemon.address, &stop);
            scope.spawn(move || {
                for n in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let body = support::pictures::bmp(320, 240, client << 20 | n);
                    let reply = client::post(address, "/predict", &[], &body);
                    assert!(matches!(reply.status, 200 | 429), "{}", reply.text());
                }
            });
        }
        for n in 0..50 {
            served(&daemon, "?model=colours", &picture(RED, 1000 + n));
        }
        stop.store(true, Ordering::Relaxed);
    });
}

#[test]
fn no_request_fails_while_models_are_swapped() {
    let registry = Registry::new();
    registry.publish_fish("1", "first");
    registry.publish_fish("2", "second");
    registry.alias("fish", "champion", "1");
    let daemon = start(&registry.env("fish@champion"), &[("WEIR__ROLLOUT__KEEP_PREVIOUS_LOADED", "0s")]);
    until_serving(&daemon, "fish", "fish/1");
    let stop = AtomicBool::new(false);
    let answers: usize = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..4u32)
            .map(|client| {
                let (daemon, stop) = (&daemon, &stop);
                scope.spawn(move || {
                    let mut answers = 0;
                    while !stop.load(Ordering::Relaxed) {
                        let body = support::pictures::bmp(200, 160, client << 20 | answers);
                        let reply = client::post(daemon.address, "/predict", &[], &body);
                        assert_eq!(reply.status, 200, "{}", reply.text());
                        answers += 1;
                    }
                    answers as usize
                })
            })
            .collect();
        for swap in 0..6 {
            let version = if swap % 2 == 0 { "2" } else { "1" };
            registry.alias("fish", "champion", version);
            until_serving(&daemon, "fish", &format!("fish/{version}"));
        }
        stop.store(true, Ordering::Relaxed);
        clients.into_iter().map(|client| client.join().unwrap()).sum()
    });
    assert!(answers > 50, "the load was no load");
    assert_eq!(daemon.events().iter().filter(|event| event["kind"] == "prediction").count(), answers);
}
