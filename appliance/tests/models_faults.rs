//! Rollouts that are killed at random times, and hundreds of rollouts in sequence.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::time::{Duration, Instant};

use support::models::{Registry, model, start_in, until_serving};
use support::{Daemon, sample};

/// Kills, at times between the change of the alias and after the promotion.
const KILLS: u32 = 20;
const SWAPS: usize = 200;
/// Swaps after which memory usage is stable.
const WARM: usize = 30;

#[test]
fn a_node_that_is_killed_during_a_rollout_restarts_with_one_verified_model() {
    let registry = Registry::new();
    registry.publish_fish("1", "first");
    registry.publish_fish("2", "second");
    registry.alias("fish", "champion", "1");
    let mut env = registry.env("fish@champion");
    // Without this a version with which processes crash soon after its promotion would be rolled back.
    env.push(("WEIR__ROLLOUT__MONITOR_TIME".into(), "0s".into()));
    let (photo, label) = sample();
    let daemon = start_in(tempfile::tempdir().unwrap(), &env, &[]);
    let mut slowest = Duration::ZERO;
    for version in ["1", "3", "4"] {
        if version != "1" {
            registry.publish_fish(version, &format!("measured-{version}"));
            registry.alias("fish", "champion", version);
        }
        let began = Instant::now();
        until_serving(&daemon, "fish", &format!("fish/{version}"));
        slowest = slowest.max(began.elapsed());
    }
    // Twice as long as the slowest of three rollouts: later ones may be slower, and half of the kills still fall within one as quick.
    let whole = slowest * 2 + Duration::from_millis(150);
    let mut data = daemon.kill();
    let mut seen = std::collections::BTreeMap::new();
    let mut random = fastrand::Rng::with_seed(20);
    for kill in 0..KILLS {
        // A new version each time, so that each rollout downloads, and each with another digest.
        let version = (10 + kill).to_string();
        registry.publish_fish(&version, &format!("round-{kill}"));
        let daemon = start_in(data, &env, &[]);
        let before = model(&daemon, "fish")["serving"].as_str().unwrap().to_owned();
        registry.alias("fish", "champion", &version);
        std::thread::sleep(whole.mul_f64((f64::from(kill) + random.f64()) / f64::from(KILLS)));
        data = daemon.kill();
        // The version after the restart, before the registry can be polled again.
        registry.alias("fish", "champion", "no-such-version");
        let daemon = start_in(data, &env, &[]);
        let now = model(&daemon, "fish");
        let serving = now["serving"].as_str().unwrap().to_owned();
        let new = format!("fish/{version}");
        assert!(serving == before || serving == new, "kill {kill}: {before} served, then {now:#}");
        let answer = daemon.post("/predict", &[], &photo);
        assert_eq!((answer.status, &answer.json()["species"]), (200, &label.clone().into()));
        *seen.entry(if serving == new { "new" } else { "old" }).or_insert(0) += 1;
        data = daemon.kill();
    }
    assert!(seen.len() == 2, "the kills came all before or all after the change-over: {seen:?}");
    // Without further kills the rollout completes.
    registry.alias("fish", "champion", "2");
    let daemon = start_in(data, &env, &[]);
    until_serving(&daemon, "fish", "fish/2");
}

/// Threads of lanes.
fn lanes(daemon: &Daemon) -> usize {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", daemon.child.id())).unwrap();
    // A thread may end during the iteration.
    let names = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
    let number = |name: &str| name.strip_prefix("weir-lane-")?.trim().parse::<usize>().ok();
    names.filter(|name| number(name).is_some()).count()
}

#[test]
fn two_hundred_swaps_with_failed_ones_between_do_not_leak() {
    let registry = Registry::new();
    registry.publish_fish("1", "first");
    registry.publish_fish("2", "second");
    // Loads but fails its golden case, and has to be unloaded.
    registry.publish_fish("bad", "third");
    let manifest = registry.version("fish", "bad").join("bundle.toml");
    let text = std::fs::read_to_string(&manifest).unwrap();
    let at = text.find("[[golden]]").unwrap();
    let (head, golden) = text.split_at(at);
    let wrong = golden.replacen("label = \"anemone_fish\"", "label = \"tench\"", 1);
    assert_ne!(golden, wrong);
    std::fs::write(&manifest, format!("{head}{wrong}")).unwrap();
    registry.alias("fish", "champion", "1");
    let env = registry.env("fish@champion");
    // Two lanes, so that the number of threads does not depend on the machine's cores.
    let more = [("WEIR__ROLLOUT__KEEP_PREVIOUS_LOADED", "0s"), ("WEIR__ENGINE__LANES", "2")];
    let daemon = start_in(tempfile::tempdir().unwrap(), &env, &more);
    until_serving(&daemon, "fish", "fish/1");
    let mut warm = Vec::new();
    let mut late = Vec::new();
    for swap in 1..=SWAPS {
        if swap % 10 == 0 {
            registry.alias("fish", "champion", "bad");
            support::models::until(&daemon, "fish", "rejecting bad", |model| {
                model["step"] == "idle"
                    && model["rejected"].as_array().is_some_and(|rejected| !rejected.is_empty())
            });
            let reply =
                support::models::send_command(&daemon, "/models/fish/reload", Some(support::models::TOKEN));
            assert_eq!(reply.status, 200, "{}", reply.text());
        }
        let version = if swap % 2 == 0 { "1" } else { "2" };
        registry.alias("fish", "champion", version);
        until_serving(&daemon, "fish", &format!("fish/{version}"));
        // The previous version is unloaded at the lowest priority: on a busy machine some lanes may still exist.
        support::load::wait_until("the version before is unloaded", || lanes(&daemon) == 2);
        if (WARM..WARM + 20).contains(&swap) {
            warm.push(daemon.memory("VmRSS") as f64);
        }
        if swap > SWAPS - 20 {
            late.push(daemon.memory("VmRSS") as f64);
        }
    }
    let median = |mut of: Vec<f64>| {
        of.sort_by(f64::total_cmp);
        of[of.len() / 2]
    };
    let (warm, late) = (median(warm), median(late));
    eprintln!("resident memory: {:.1} MB after {WARM} swaps, {:.1} MB after {SWAPS}", warm / 1e6, late / 1e6);
    // A version takes some 20 MB: one in two hundred that stays loaded would pass, one in ten not. The allocator alone
    // has moved it by 8 % on a loaded machine.
    assert!(late < warm * 1.15, "resident memory went from {:.1} to {:.1} MB", warm / 1e6, late / 1e6);
    let threads = std::fs::read_dir(format!("/proc/{}/task", daemon.child.id())).unwrap().count();
    assert!(threads < 40, "{threads} threads");
}
