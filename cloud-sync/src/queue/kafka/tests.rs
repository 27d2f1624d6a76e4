//! The ledger of jobs: what may be committed, delivered and lost, without a broker.

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::sync::oneshot::error::TryRecvError;

use super::committer::time_for;
use super::consumer::{join, time_of};
use super::ledger::{GROUP_BYTES, GROUP_RECORDS, Handed, Ledger, Outcome};
use super::shared::Shared;
use crate::error::{Link, SyncError, SyncResult};
use crate::health::LinkHealth;
use crate::kafka::KafkaConfig;
use crate::queue::{Receipt, ResultRecord, Settled};

type Answer = oneshot::Receiver<SyncResult<Settled>>;

fn ledger(inflight: usize, partitions: &[i32], messages: i64) -> Ledger {
    let mut ledger = Ledger::new(inflight);
    ledger.assign(partitions);
    for &partition in partitions {
        assert!(!ledger.note_begin(partition, 0));
    }
    for offset in 0..messages {
        for &partition in partitions {
            ledger.take_in(partition, offset, b"k", Bytes::from(format!("{partition}-{offset}")), None);
        }
    }
    ledger
}

fn all(ledger: &mut Ledger) -> Vec<Handed> {
    std::iter::from_fn(|| ledger.next_job()).collect()
}

fn settle(ledger: &mut Ledger, receipt: Receipt) -> Answer {
    settle_with(ledger, receipt, 1, Bytes::from_static(b"{}"))
}

fn settle_with(ledger: &mut Ledger, receipt: Receipt, records: usize, payload: Bytes) -> Answer {
    let (waiter, answer) = oneshot::channel();
    let id = format!("{}-{}", receipt.partition, receipt.offset);
    let results = vec![ResultRecord { id, key: "k".into(), payload }; records];
    ledger.settle(receipt, results, waiter);
    answer
}

fn said(answer: &mut Answer) -> Option<Settled> {
    match answer.try_recv() {
        Ok(answer) => Some(answer.unwrap()),
        Err(TryRecvError::Empty) => None,
        Err(TryRecvError::Closed) => panic!("nobody will answer"),
    }
}

#[test]
fn what_precedes_on_the_same_partition_is_waited_for_and_nothing_else() {
    let mut ledger = ledger(10, &[0, 1], 3);
    let out = all(&mut ledger);
    assert_eq!((out.len(), ledger.out()), (6, 6));
    let at = |partition, offset| {
        out.iter().map(|job| job.receipt).find(|r| (r.partition, r.offset) == (partition, offset)).unwrap()
    };
    let mut late = [settle(&mut ledger, at(0, 2)), settle(&mut ledger, at(0, 1))];
    assert!(ledger.next_group().is_none());
    let mut other = settle(&mut ledger, at(1, 0));
    let group = ledger.next_group().unwrap();
    assert_eq!(group.offsets(), [(1, 1)]);
    ledger.finish(group, Outcome::Committed);
    assert_eq!(said(&mut other), Some(Settled::Done));
    let mut first = settle(&mut ledger, at(0, 0));
    let group = ledger.next_group().unwrap();
    assert_eq!(group.offsets(), [(0, 3)]);
    let ids: Vec<_> = group.jobs.iter().flat_map(|(_, results)| results).map(|r| r.id.as_str()).collect();
    assert_eq!(ids, ["0-0", "0-1", "0-2"]);
    assert!(late.iter_mut().all(|answer| said(answer).is_none()));
    ledger.finish(group, Outcome::Committed);
    assert!(late.iter_mut().chain([&mut first]).all(|answer| said(answer) == Some(Settled::Done)));
    assert_eq!(ledger.out(), 2);
    assert_eq!(said(&mut settle(&mut ledger, at(0, 1))), Some(Settled::Done), "settled long ago");
}

#[test]
fn a_transaction_that_was_aborted_is_formed_again_with_what_came_since() {
    let mut ledger = ledger(10, &[0], 2);
    let out = all(&mut ledger);
    let mut first = settle(&mut ledger, out[0].receipt);
    let group = ledger.next_group().unwrap();
    let mut again = settle(&mut ledger, out[0].receipt);
    let mut second = settle(&mut ledger, out[1].receipt);
    assert!(ledger.next_group().is_none(), "one transaction at a time");
    ledger.finish(group, Outcome::Aborted);
    assert_eq!(said(&mut first), None);
    let group = ledger.next_group().unwrap();
    assert_eq!((group.offsets(), group.jobs[0].1.len()), (vec![(0, 2)], 1));
    ledger.finish(group, Outcome::Committed);
    for answer in [&mut first, &mut again, &mut second] {
        assert_eq!(said(answer), Some(Settled::Done));
    }
}

#[test]
fn one_refused_job_is_out_again_and_holds_back_only_those_behind_it() {
    let mut ledger = ledger(10, &[0, 1], 3);
    let out = all(&mut ledger);
    let mut answers: Vec<_> = out.iter().map(|job| settle(&mut ledger, job.receipt)).collect();
    let group = ledger.next_group().unwrap();
    let index = group.jobs.iter().position(|(r, _)| (r.partition, r.offset) == (0, 1)).unwrap();
    let error = SyncError::permanent(Link::Kafka, "record 0-1 is too large");
    ledger.finish(group, Outcome::Refused(index, error));
    let place = out.iter().position(|job| (job.receipt.partition, job.receipt.offset) == (0, 1)).unwrap();
    let error = answers.remove(place).try_recv().unwrap().unwrap_err();
    assert!(error.in_full().contains("record 0-1") && !error.is_transient());
    let group = ledger.next_group().unwrap();
    assert_eq!(group.offsets(), [(0, 1), (1, 3)]);
    ledger.finish(group, Outcome::Committed);
    assert_eq!(answers.iter_mut().filter_map(said).count(), 4);
    answers.push(settle(&mut ledger, out[place].receipt));
    let group = ledger.next_group().unwrap();
    assert_eq!(group.offsets(), [(0, 3)]);
    ledger.finish(group, Outcome::Committed);
    assert_eq!(ledger.out(), 0);
}

#[test]
fn a_partition_that_goes_takes_its_jobs_along_and_comes_back_as_another() {
    let mut ledger = ledger(10, &[0, 1], 2);
    let out = all(&mut ledger);
    let of = |partition| out.iter().map(|job| job.receipt).filter(move |r| r.partition == partition);
    let zero: Vec<_> = of(0).collect();
    let mut committing = settle(&mut ledger, zero[0]);
    let group = ledger.next_group().unwrap();
    let mut held = settle(&mut ledger, zero[1]);
    ledger.revoke(&[0]);
    assert_eq!(said(&mut held), Some(Settled::Lost));
    assert!(!ledger.owns(&group));
    assert_eq!(said(&mut committing), None, "how the transaction comes out is not known yet");
    assert_eq!(ledger.out(), 2);
    ledger.assign(&[0]);
    ledger.note_begin(0, 0);
    ledger.take_in(0, 0, b"k", Bytes::from_static(b"again"), None);
    let again = ledger.next_job().unwrap();
    assert_eq!((again.receipt.offset, &again.payload[..]), (0, &b"again"[..]));
    assert_eq!(said(&mut settle(&mut ledger, zero[0])), None);
    ledger.finish(group, Outcome::Aborted);
    assert_eq!(said(&mut committing), Some(Settled::Lost));
    assert_eq!(said(&mut settle(&mut ledger, zero[1])), Some(Settled::Lost), "of an older assignment");
    assert!(ledger.next_group().is_none());
    ledger.close();
    assert_eq!((ledger.out(), ledger.next_job().is_none()), (0, true));
}

#[test]
fn what_is_released_goes_out_first_and_messages_that_come_twice_count_once() {
    let mut ledger = ledger(2, &[0], 4);
    let mut out = all(&mut ledger);
    assert_eq!((out.len(), ledger.is_full()), (2, true));
    ledger.take_in(0, 1, b"k", Bytes::from_static(b"repeat"), None);
    ledger.take_in(0, 3, b"k", Bytes::from_static(b"repeat"), None);
    let first = out.remove(0);
    ledger.release(first.receipt, first.payload, None);
    assert_eq!(ledger.next_job().unwrap().receipt.offset, 0);
    assert!(ledger.next_job().is_none());
    let done = [settle(&mut ledger, first.receipt), settle(&mut ledger, out[0].receipt)];
    let group = ledger.next_group().unwrap();
    ledger.finish(group, Outcome::Committed);
    drop(done);
    let rest: Vec<_> = all(&mut ledger).iter().map(|job| job.receipt.offset).collect();
    assert_eq!(rest, [2, 3]);
}

#[test]
fn fetching_stops_when_enough_wait_and_starts_when_half_is_gone() {
    let mut ledger = ledger(3000, &[0], 0);
    let mut offset = 0;
    while ledger.wants_more(false) {
        ledger.take_in(0, offset, b"k", Bytes::from_static(b"x"), None);
        offset += 1;
        assert!(offset < 5000);
    }
    let mut out = 0;
    while !ledger.wants_more(true) {
        ledger.next_job().unwrap();
        out += 1;
    }
    assert!(out > offset / 3 && out < offset, "{out} of {offset}");
    ledger.take_in(0, offset, b"k", vec![0; 17 << 20].into(), None);
    assert!(!ledger.wants_more(false), "large ones wait one by one");
    all(&mut ledger);
    assert!(ledger.wants_more(true));
    assert_eq!(ledger.waiting(), None);
    ledger.note_end(0, offset + 13);
    assert_eq!(ledger.waiting(), Some(12));
}

/// A ledger with this many waiting messages of one batch on a partition, and then one message each of others.
fn queued(inflight: usize, large: i64, others: &[&str]) -> Ledger {
    let mut ledger = ledger(inflight, &[0], 0);
    let keys = (0..large).map(|n| format!("large/{n}")).chain(others.iter().map(|id| format!("{id}/0")));
    for (offset, key) in (0..).zip(keys) {
        ledger.take_in(0, offset, key.as_bytes(), Bytes::from(key.clone()), None);
    }
    ledger
}

#[test]
fn batches_take_turns_and_none_takes_all_places() {
    let mut ledger = queued(4, 100, &["b", "c", "d"]);
    let name = |job: &Handed| String::from_utf8(job.payload.to_vec()).unwrap();
    let out = all(&mut ledger);
    assert_eq!(out.iter().map(name).collect::<Vec<_>>(), ["large/0", "b/0", "c/0", "d/0"]);
    // A returned job is the next again, and does not take the slot of the others.
    let first = out.into_iter().next().unwrap();
    ledger.release(first.receipt, first.payload, None);
    assert_eq!(all(&mut ledger).iter().map(name).collect::<Vec<_>>(), ["large/0"]);

    let mut ledger = queued(4, 100, &[]);
    assert_eq!(all(&mut ledger).len(), 3, "one place stays free for others");
    ledger.take_in(0, 100, b"late/0", Bytes::from_static(b"late/0"), None);
    assert_eq!(all(&mut ledger).iter().map(name).collect::<Vec<_>>(), ["late/0"]);
    // Messages of no batch are not held back.
    let mut ledger = self::ledger(4, &[0], 10);
    assert_eq!(all(&mut ledger).len(), 4);
}

#[test]
fn a_slow_message_holds_back_commits_behind_it_and_not_the_work_up_to_a_bound() {
    let mut ledger = ledger(2, &[0], 200);
    let slow = ledger.next_job().unwrap();
    let mut answers = Vec::new();
    while let Some(job) = ledger.next_job() {
        answers.push(settle(&mut ledger, job.receipt));
        assert!(ledger.next_group().is_none(), "nothing is committed before the first");
    }
    assert_eq!(answers.len(), 64);
    assert!(ledger.is_full());
    answers.push(settle(&mut ledger, slow.receipt));
    let group = ledger.next_group().unwrap();
    assert_eq!(group.offsets(), [(0, 65)]);
    ledger.finish(group, Outcome::Committed);
    assert!(answers.iter_mut().all(|answer| said(answer) == Some(Settled::Done)));
    assert!(ledger.next_job().is_some());
    // Large results count by their bytes.
    let mut ledger = self::ledger(2, &[0], 20);
    let _slow = ledger.next_job().unwrap();
    let mut held = 0;
    while let Some(job) = ledger.next_job() {
        drop(settle_with(&mut ledger, job.receipt, 1, vec![0; 5 << 20].into()));
        held += 1;
    }
    assert_eq!(held, 4);
}

#[test]
fn a_time_of_which_no_date_can_be_made_is_none() {
    let at = |millis: u64| Some(UNIX_EPOCH + Duration::from_millis(millis));
    assert_eq!(time_of(1_700_000_000_123), at(1_700_000_000_123));
    assert_eq!(time_of(253_402_300_799_999), at(253_402_300_799_999));
    // Microseconds instead of milliseconds, and what producers send for no time.
    for millis in [253_402_300_800_000, 1_700_000_000_123_456, i64::MAX, -1, i64::MIN] {
        assert_eq!(time_of(millis), None, "{millis}");
    }
}

#[test]
fn a_job_larger_than_a_group_goes_alone_and_holds_up_only_its_partition() {
    for (records, payload) in
        [(GROUP_RECORDS + 1, Bytes::from_static(b"{}")), (1, Bytes::from(vec![0; GROUP_BYTES + 1]))]
    {
        let mut ledger = ledger(10, &[0, 1, 2], 2);
        let out = all(&mut ledger);
        let answers: Vec<Answer> = out
            .iter()
            .map(|job| match (job.receipt.partition, job.receipt.offset) {
                (0, 0) => settle_with(&mut ledger, job.receipt, records, payload.clone()),
                _ => settle(&mut ledger, job.receipt),
            })
            .collect();
        let large = ledger.next_group().unwrap();
        assert_eq!((large.offsets(), large.records), (vec![(0, 1)], records));
        ledger.finish(large, Outcome::Aborted);
        // Its next attempt waits until the others have had their turn.
        let others = ledger.next_group().unwrap();
        assert_eq!((others.offsets(), others.records), (vec![(1, 2), (2, 2)], 4));
        ledger.finish(others, Outcome::Committed);
        let large = ledger.next_group().unwrap();
        assert_eq!(large.offsets(), [(0, 1)]);
        ledger.finish(large, Outcome::Committed);
        let behind = ledger.next_group().unwrap();
        assert_eq!(behind.offsets(), [(0, 2)]);
        ledger.finish(behind, Outcome::Committed);
        assert!(ledger.next_group().is_none());
        assert!(answers.into_iter().all(|mut answer| said(&mut answer) == Some(Settled::Done)));
    }
}

#[test]
fn no_group_is_larger_than_its_bounds_unless_it_is_one_job() {
    let mut ledger = ledger(100, &[0, 1], 8);
    for job in all(&mut ledger) {
        drop(settle_with(&mut ledger, job.receipt, GROUP_RECORDS / 3, Bytes::from_static(b"{}")));
    }
    let (mut jobs, mut turns) = (0, Vec::new());
    while let Some(group) = ledger.next_group() {
        assert!(group.records <= GROUP_RECORDS, "{}", group.records);
        turns.push(group.jobs[0].0.partition);
        jobs += group.jobs.len();
        ledger.finish(group, Outcome::Committed);
    }
    assert_eq!((jobs, &turns[..4]), (16, &[0, 1, 0, 1][..]));
}

#[test]
fn a_larger_transaction_has_more_time_and_none_more_than_brokers_allow() {
    let seconds = |records, bytes| time_for(records, bytes).as_secs();
    assert_eq!((seconds(0, 0), seconds(GROUP_RECORDS, GROUP_BYTES)), (8, 8));
    assert_eq!((seconds(GROUP_RECORDS + 1, 0), seconds(1, GROUP_BYTES + 1)), (16, 16));
    assert_eq!(seconds(10_000, 9 << 20), 24);
    assert_eq!(seconds(1_000_000, 1 << 40), 45);
}

#[test]
fn an_end_before_what_has_come_is_told() {
    let mut ledger = ledger(2, &[0], 4);
    assert!(ledger.note_end(0, 4));
    assert!(!ledger.note_end(0, 3));
    assert!(ledger.note_end(7, 0), "of a partition that is not ours");
    ledger.assign(&[1]);
    assert!(ledger.note_end(1, 5));
}

#[test]
fn nothing_goes_out_before_it_is_known_where_the_group_stands_and_nothing_from_before_that() {
    let mut ledger = Ledger::new(10);
    ledger.assign(&[0, 1]);
    assert!(!ledger.note_begin(1, 2));
    for offset in 0..4 {
        for partition in [0, 1] {
            ledger.take_in(partition, offset, b"k", Bytes::from_static(b"x"), None);
        }
    }
    let offsets =
        |out: Vec<Handed>| out.iter().map(|h| (h.receipt.partition, h.receipt.offset)).collect::<Vec<_>>();
    assert_eq!(ledger.begin(0), None);
    assert_eq!(offsets(all(&mut ledger)), [(1, 2), (1, 3)]);
    assert!(ledger.note_begin(0, 3), "three came that were done");
    assert_eq!(offsets(all(&mut ledger)), [(0, 3)]);
    ledger.assign(&[2]);
    ledger.take_in(2, 0, b"k", Bytes::from_static(b"x"), None);
    assert!(ledger.note_begin(2, 7));
    ledger.take_in(2, 6, b"k", Bytes::from_static(b"x"), None);
    assert!(ledger.next_job().is_none());
    ledger.take_in(2, 7, b"k", Bytes::from_static(b"x"), None);
    assert_eq!(offsets(all(&mut ledger)), [(2, 7)]);
    assert!(!ledger.note_begin(5, 1), "not ours");
}

#[test]
fn every_session_that_can_be_set_is_one_to_join_with() {
    for seconds in [1, 45, 300, 301, 1800] {
        let config = KafkaConfig::of_nobody(Duration::from_secs(seconds));
        let shared = Arc::new(Shared::new(config, LinkHealth::new(Link::Kafka), 1));
        let joined = join(&shared).map(drop);
        assert!(joined.is_ok(), "{seconds} s: {}", joined.unwrap_err().in_full());
    }
}

/// Processes delivered jobs, `inflight` at a time, and commits what can be committed, until nothing is delivered any
/// more. Returns the number of committed jobs.
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
        let slow = ledger.next_job().unwrap();
        let mut answers = Vec::new();
        while let Some(job) = ledger.next_job() {
            answers.push(settle_with(&mut ledger, job.receipt, 1, payload.clone()));
        }
        assert!(ledger.is_full());
        ledger.release(slow.receipt, slow.payload, None);
        let again = ledger.next_job().unwrap();
        assert_eq!(again.receipt.offset, 0);
        assert!(ledger.next_job().is_none(), "the bound holds for all others");
        ledger.release(again.receipt, again.payload, None);
        assert_eq!(work_off(&mut ledger), 200);
    }
}

#[test]
fn while_nothing_can_be_committed_what_is_held_stays_bounded() {
    let mut ledger = ledger(2, &[0], 200);
    let mut answers = Vec::new();
    while let Some(job) = ledger.next_job() {
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
        let job = ledger.next_job().unwrap();
        names.push(String::from_utf8(job.payload.to_vec()).unwrap());
        drop(settle(&mut ledger, job.receipt));
    }
    assert_eq!(names, ["a/0", "b/0", "a/1", "b/1"]);
}
