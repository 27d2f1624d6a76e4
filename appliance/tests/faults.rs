//! A full disk, a killed process, more requests than lanes: nothing acknowledged is lost.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::collections::HashSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use support::{Daemon, pictures, sample};

fn on_a_small_disk(env: &[(&str, &str)]) -> Daemon {
    let (mut command, data) = support::on_a_small_disk();
    command.env("WEIR__LOG__FORMAT", "json").envs(env.iter().copied());
    Daemon::spawn(command, data)
}

#[test]
fn a_full_disk_refuses_and_recovers_by_policy() {
    let (picture, _) = sample();
    // The limit is far above the disk's size and events must not be dropped: it must refuse.
    let daemon =
        on_a_small_disk(&[("WEIR__OUTBOX__WHEN_FULL", "refuse"), ("WEIR__OUTBOX__SEGMENT", "64 KiB")]);
    let mut served = 0;
    let refusal = loop {
        let reply = daemon.post("/predict?top_k=17", &[], &picture);
        if reply.status != 200 {
            break reply;
        }
        served += 1;
        assert!(served < 5000, "1 MiB never filled up");
    };
    assert_eq!((refusal.status, refusal.code().as_str()), (503, "outbox_full"), "{}", refusal.text());
    assert!(refusal.header("retry-after").is_some());
    assert!(
        !refusal.text().contains(daemon.data.path().to_str().unwrap()),
        "paths are the operator's business"
    );
    let health = daemon.get("/health").json();
    assert_eq!(health["status"], "degraded");
    assert_eq!(health["outbox"]["healthy"], false);
    assert!(served > 100, "only {served} events fit in 1 MiB");
    assert_eq!(health["outbox"]["events"], served);

    // The other policy deletes the oldest events and counts them.
    let daemon = on_a_small_disk(&[("WEIR__OUTBOX__SEGMENT", "64 KiB")]);
    for _ in 0..served + 200 {
        let reply = daemon.post("/predict?top_k=17", &[], &picture);
        assert_eq!(reply.status, 200, "{}", reply.text());
    }
    assert!(daemon.get("/health").json()["outbox"]["dropped"].as_u64().unwrap() > 0);
}

#[test]
fn no_acknowledged_prediction_is_lost_by_kill_9() {
    let mut data = tempfile::tempdir().unwrap();
    let acknowledged = Mutex::new(HashSet::new());
    for round in 0..5u32 {
        let mut daemon = Daemon::start_in(data, &[]);
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for client in 0..4u32 {
                let (address, stop, acknowledged) = (daemon.address, &stop, &acknowledged);
                scope.spawn(move || {
                    for n in 0u32.. {
                        if stop.load(Ordering::SeqCst) {
                            return;
                        }
                        let picture = pictures::bmp(64, 64, round << 24 | client << 16 | n);
                        let id = format!("{round}-{client}-{n}");
                        // The kill breaks connections; unanswered requests were not acknowledged.
                        let reply = std::panic::catch_unwind(|| {
                            support::post(address, "/predict", &[("x-request-id", &id)], &picture)
                        });
                        match reply {
                            Ok(reply) if reply.status == 200 => drop(acknowledged.lock().unwrap().insert(id)),
                            _ => return,
                        }
                    }
                });
            }
            let wanted = acknowledged.lock().unwrap().len() + 15;
            std::thread::sleep(Duration::from_millis(300));
            // A slow disk acknowledges few in that time. Bounded: clients that were refused have left.
            for _ in 0..6000 {
                if acknowledged.lock().unwrap().len() >= wanted {
                    break;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
            daemon.child.kill().unwrap();
            daemon.child.wait().unwrap();
            stop.store(true, Ordering::SeqCst);
        });
        let recorded: HashSet<String> =
            daemon.events().iter().map(|e| e["request_id"].as_str().unwrap().to_owned()).collect();
        let acknowledged = acknowledged.lock().unwrap();
        let missing: Vec<_> = acknowledged.difference(&recorded).collect();
        assert!(missing.is_empty(), "round {round}: acknowledged but not in the outbox: {missing:?}");
        data = std::mem::replace(&mut daemon.data, tempfile::tempdir().unwrap());
    }
    assert!(acknowledged.lock().unwrap().len() > 50, "the load was no load");
}

#[test]
fn overload_is_refused_at_once_and_the_rest_is_served() {
    // All bodies may be in flight together, so that only the full queue refuses one.
    let daemon = Daemon::start(&[
        ("WEIR__ENGINE__LANES", "1"),
        ("WEIR__ENGINE__QUEUE", "2"),
        ("WEIR__HTTP__MAX_INFLIGHT_PER_ADDRESS", "64 MiB"),
    ]);
    let replies: Vec<_> = std::thread::scope(|scope| {
        let address = daemon.address;
        let threads: Vec<_> = (0..24)
            .map(|seed| {
                scope.spawn(move || support::post(address, "/predict", &[], &pictures::bmp(700, 700, seed)))
            })
            .collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    let (good, refused): (Vec<_>, Vec<_>) = replies.iter().partition(|r| r.status == 200);
    assert!(!good.is_empty() && !refused.is_empty(), "{} good, {} refused", good.len(), refused.len());
    for reply in &refused {
        assert_eq!((reply.status, reply.code().as_str()), (429, "overloaded"), "{}", reply.text());
        assert!(reply.text().contains("all lanes are busy"), "{}", reply.text());
        assert!(reply.header("retry-after").unwrap().parse::<u64>().unwrap() >= 1);
    }
    assert_eq!(daemon.events().len(), good.len());
}

#[test]
fn clients_that_disconnect_are_not_computed() {
    // All come from one address and exceed its default share.
    let daemon =
        Daemon::start(&[("WEIR__ENGINE__LANES", "1"), ("WEIR__HTTP__MAX_INFLIGHT_PER_ADDRESS", "64 MiB")]);
    let pictures: Vec<_> = (0..8).map(|seed| pictures::bmp(1500, 1500, seed)).collect();
    std::thread::scope(|scope| {
        for picture in &pictures {
            let address = daemon.address;
            scope.spawn(move || {
                use std::io::Write;
                let mut stream = support::client::connect(address);
                let head = format!(
                    "POST /predict HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n",
                    picture.len()
                );
                stream.write_all(head.as_bytes()).unwrap();
                stream.write_all(picture).unwrap();
                // Disconnects before the response.
            });
        }
    });
    let (picture, _) = sample();
    assert_eq!(daemon.post("/predict", &[], &picture).status, 200);
    // Bodies may still be in the socket buffers.
    support::load::wait_until("a cancelled request was skipped", || {
        let metrics = daemon.get("/metrics").text();
        let line = metrics.lines().find(|l| l.starts_with("weir_jobs_skipped_total{reason=\"cancelled\"}"));
        line.is_some_and(|l| l.rsplit(' ').next().unwrap().parse::<u64>().unwrap() > 0)
    });
}
