//! A process that appends is killed repeatedly: no acknowledged event is missing.
//!
//! The test starts itself as the child: with the directory in the environment it appends from several threads until
//! it is killed, and prints each event once it is acknowledged.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::collections::BTreeMap;
use std::env;
use std::io::{BufRead, BufReader, Write, stdout};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use cloud_sync::outbox::{Outbox, OutboxConfig, Reader};

const DIR: &str = "OUTBOX_CRASH_DIR";
const ROUND: &str = "OUTBOX_CRASH_ROUND";
/// Kills per round of `WEIR_FAULT_ROUNDS`, which is 2 by default. So 20 are 100 kills.
const KILLS_A_ROUND: u64 = 5;

fn main() {
    match env::var_os(DIR) {
        Some(dir) => append_until_killed(Path::new(&dir), &env::var(ROUND).unwrap()),
        None => kill_again_and_again(),
    }
}

fn config(dir: &Path) -> OutboxConfig {
    OutboxConfig { segment_bytes: 16 << 10, ..OutboxConfig::new(dir) }
}

fn append_until_killed(dir: &Path, round: &str) {
    let (outbox, _) = Outbox::open(config(dir)).unwrap();
    thread::scope(|scope| {
        for worker in 0..8 {
            let outbox = &outbox;
            scope.spawn(move || {
                for n in 0_u64.. {
                    let payload = format!("{round}-{worker}-{n}-{}", "x".repeat((n % 700) as usize));
                    let sequence = outbox.append(payload.clone().into()).wait().unwrap();
                    // This fails when the parent is gone; then nothing needs to be acknowledged.
                    if writeln!(stdout().lock(), "{sequence} {payload}").is_err() {
                        return;
                    }
                }
            });
        }
    });
}

fn kill_again_and_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut acknowledged = BTreeMap::new();
    let mut torn = 0;
    let rounds: u64 = env::var("WEIR_FAULT_ROUNDS").map_or(2, |rounds| rounds.parse().unwrap());
    let kills = rounds * KILLS_A_ROUND;
    for round in 0..kills {
        let before = acknowledged.len();
        let mut child = Command::new(env::current_exe().unwrap())
            .env(DIR, dir.path())
            .env(ROUND, round.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        let (begun, first) = mpsc::channel();
        let reading = thread::spawn(move || {
            let (mut found, mut line) = (Vec::new(), String::new());
            while lines.read_line(&mut line).unwrap() > 0 {
                // A line without its end was cut by the kill.
                if let Some((sequence, payload)) = line.strip_suffix('\n').and_then(|l| l.split_once(' ')) {
                    found.push((sequence.parse::<u64>().unwrap(), payload.to_owned()));
                    let _ = begun.send(());
                }
                line.clear();
            }
            found
        });
        // On a loaded machine it takes long until the child appends.
        first.recv_timeout(Duration::from_secs(120)).unwrap();
        thread::sleep(Duration::from_millis(37 * (round % 10)));
        child.kill().unwrap();
        child.wait().unwrap();
        for (sequence, payload) in reading.join().unwrap() {
            assert_eq!(acknowledged.insert(sequence, payload), None, "{sequence} was promised twice");
        }
        assert!(acknowledged.len() > before, "round {round} acknowledged nothing");

        let (outbox, found) = Outbox::open(config(dir.path())).unwrap();
        assert_eq!(found.damaged, []);
        torn += usize::from(found.truncated_bytes > 0);
        drop(outbox);
        let mut last = 0;
        let mut stored = BTreeMap::new();
        for event in Reader::open(dir.path()).unwrap() {
            let event = event.unwrap();
            assert!(event.sequence > last);
            last = event.sequence;
            stored.insert(event.sequence, String::from_utf8(event.payload).unwrap());
        }
        for (sequence, payload) in &acknowledged {
            assert_eq!(stored.get(sequence), Some(payload), "event {sequence} is missing, round {round}");
        }
    }
    let events = acknowledged.len();
    println!(
        "summary: {kills} kills while appending ({torn} torn tails): {events} events, 0 missing, 0 twice"
    );
}
