//! Power that fails at any moment takes nothing that was acknowledged: events, the cursor, which opening gave out what.

use std::collections::BTreeMap;

use tempfile::tempdir;

use crate::durable::simulated::{SimulatedDisk, after_each_loss};
use crate::outbox::{Epochs, Outbox, OutboxConfig, Reader, WhenFull};

/// What the outbox has promised.
enum Promise {
    Event { sequence: u64, payload: Vec<u8>, epochs: Epochs },
    Committed(u64),
}

fn config(root: &std::path::Path) -> OutboxConfig {
    OutboxConfig {
        segment_bytes: 4 << 10,
        max_bytes: 64 << 10,
        when_full: WhenFull::Refuse,
        has_consumer: true,
        ..OutboxConfig::new(root.join("data/outbox"))
    }
}

#[test]
fn what_was_acknowledged_outlives_a_loss_of_power_at_any_moment() {
    let root = tempdir().unwrap();
    let disk = SimulatedDisk::watch(root.path());
    let mut promises = Vec::new();
    for opening in 0..4_u8 {
        let outbox = Outbox::open(config(root.path())).unwrap().0;
        for n in 0..9_u8 {
            // Now and then one that needs a segment of its own.
            let payload = vec![opening * 16 + n; if n % 4 == 3 { 1900 } else { 200 }];
            let sequence = outbox.append(payload.clone()).wait().unwrap();
            promises.push(Promise::Event { sequence, payload, epochs: outbox.epochs().upto(sequence) });
            disk.acknowledge();
            if n % 3 == 2 {
                outbox.commit(sequence - 1).unwrap();
                promises.push(Promise::Committed(sequence - 1));
                disk.acknowledge();
            }
        }
    }
    let mut checked = 0;
    after_each_loss(&disk.kill_points(), |dir, acknowledged, outcome| {
        let outbox = Outbox::open(config(dir)).unwrap().0;
        let read = || Reader::open(outbox.dir()).unwrap().map(Result::unwrap);
        let events: BTreeMap<_, _> = read().map(|event| (event.sequence, event.payload)).collect();
        assert_eq!(events.len(), read().count());
        let last = outbox.last_sequence();
        for promise in &promises[..acknowledged] {
            match promise {
                Promise::Committed(upto) => assert!(outbox.committed() >= *upto, "{outcome:?}"),
                Promise::Event { sequence, payload, epochs } => {
                    assert_eq!(events.get(sequence), Some(payload), "{outcome:?} after {acknowledged}");
                    let common = outbox.epochs().common(last, epochs, *sequence);
                    assert_eq!(common, *sequence, "{outcome:?}: taken for another history");
                }
            }
        }
        assert!(outbox.committed() <= last);
        assert!(outbox.append(b"next".to_vec()).wait().unwrap() > events.keys().last().copied().unwrap_or(0));
        checked += 1;
    });
    assert!(checked > 300, "{checked}");
}
