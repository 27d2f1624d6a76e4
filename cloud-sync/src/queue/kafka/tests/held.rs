//! Jobs that are done and wait for others before them, and the turns of batches.

use super::*;

/// Works on what goes out, `inflight` at a time, and commits what can be, until nothing goes out any more. Returns how
/// many were committed.
fn work_off(ledger: &mut Ledger) -> usize {
    let (mut committed, mut answers) = (0, Vec::new());
    loop {
        let out = all(ledger);
        if out.is_empty() {
            return committed;
        }
        answers.extend(out.iter().map(|job| settle(ledger, job.receipt)));
        while let Some(group) = ledger.next_group() {
            committed += group.jobs.len();
            ledger.finish(group, Outcome::Committed);
        }
    }
}

#[test]
fn batches_that_take_turns_on_one_partition_are_all_done_however_far_apart_they_lie() {
    for inflight in [1, 2, 4] {
        let mut ledger = ledger(inflight, &[0], 0);
        let keys = (0..500).map(|n| format!("a/{n}")).chain((0..200).map(|n| format!("b/{n}")));
        for (offset, key) in (0..).zip(keys) {
            ledger.take_in(0, offset, key.as_bytes(), Bytes::from_static(b"x"), None);
        }
        assert_eq!(work_off(&mut ledger), 700, "{inflight} at a time");
    }
}

#[test]
fn a_slow_message_that_is_given_back_goes_out_again_before_what_waits_for_it_has_room() {
    for payload in [Bytes::from_static(b"{}"), vec![0; 5 << 20].into()] {
        let mut ledger = ledger(2, &[0], 200);
        let slow = ledger.hand_out().unwrap();
        let mut answers = Vec::new();
        while let Some(job) = ledger.hand_out() {
            answers.push(settle_with(&mut ledger, job.receipt, 1, payload.clone()));
        }
        assert!(ledger.is_full());
        ledger.release(slow.receipt, slow.payload, None);
        let again = ledger.hand_out().unwrap();
        assert_eq!(again.receipt.offset, 0);
        assert!(ledger.hand_out().is_none(), "the bound holds for all others");
        ledger.release(again.receipt, again.payload, None);
        assert_eq!(work_off(&mut ledger), 200);
    }
}

#[test]
fn while_nothing_can_be_committed_what_is_held_stays_bounded() {
    let mut ledger = ledger(2, &[0], 200);
    let mut answers = Vec::new();
    while let Some(job) = ledger.hand_out() {
        answers.push(settle(&mut ledger, job.receipt));
    }
    assert_eq!(answers.len(), 64);
}

#[test]
fn a_batch_that_comes_again_after_a_rebalance_has_its_turn_as_before() {
    let mut ledger = ledger(1, &[0], 0);
    let take_in = |ledger: &mut Ledger| {
        for n in 0..100 {
            let key = format!("a/{n}");
            ledger.take_in(0, n, key.as_bytes(), Bytes::from(key.clone()), None);
        }
    };
    take_in(&mut ledger);
    ledger.revoke(&[0]);
    ledger.assign(&[0]);
    ledger.note_begin(0, 0);
    take_in(&mut ledger);
    for n in 0..100 {
        let key = format!("b/{n}");
        ledger.take_in(0, 100 + n, key.as_bytes(), Bytes::from(key.clone()), None);
    }
    let mut names = Vec::new();
    for _ in 0..4 {
        let job = ledger.hand_out().unwrap();
        names.push(String::from_utf8(job.payload.to_vec()).unwrap());
        drop(settle(&mut ledger, job.receipt));
    }
    assert_eq!(names, ["a/0", "b/0", "a/1", "b/1"]);
}
