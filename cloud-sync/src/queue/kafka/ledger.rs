//! Which jobs are here, out, settled or being committed, a partition at a time. No Kafka in it.
//!
//! A partition's committed offset says "everything before is done". So a job that is settled before an
//! earlier one of its partition is held, with its results, until the earlier one is settled too.

mod waiting;

use std::collections::BTreeMap;
use std::ops::Bound;
use std::time::SystemTime;

use bytes::Bytes;

use super::shared::{Waiter, answer, answer_error, left_behind};
use crate::error::SyncError;
use crate::queue::fair::{Flow, may_go_out};
use crate::queue::{Receipt, ResultRecord, Settled};
use waiting::Stage;

/// Most records of one transaction. A job's own are never split: one with more goes alone.
pub(super) const GROUP_RECORDS: usize = 5_000;
/// Most bytes of one transaction, with the same exception.
pub(super) const GROUP_BYTES: usize = 4 << 20;
/// Everything that this member of the group has.
#[derive(Debug)]
pub(super) struct Ledger {
    inflight: usize,
    /// Counts assignments, so that those of a partition that left and came back differ.
    epochs: u64,
    /// The epoch of each partition that is ours.
    ours: BTreeMap<i32, u64>,
    /// Also those that are not ours any more, until their last commit has ended.
    held: BTreeMap<(i32, u64), Partition>,
    /// What can be handed out.
    stage: Stage,
    handing_out: bool,
    /// The partition that the last group began with: the next begins behind it.
    turn: i32,
}

#[derive(Debug, Default)]
struct Partition {
    jobs: BTreeMap<i64, Job>,
    /// Where the group stands on it, as the broker says: everything before it is done. Until this is known nothing goes
    /// out, whatever the client library has started to read at.
    begin: Option<i64>,
    /// Everything before it has been taken in: it comes again after a pause.
    next: Option<i64>,
    /// Everything before it is committed.
    done: i64,
    /// The newest end of the partition that is known.
    end: Option<i64>,
}

#[derive(Debug)]
enum Job {
    Staged { payload: Bytes, time: Option<SystemTime>, flow: Option<Flow> },
    Out { flow: Option<Flow> },
    Settled { results: Vec<ResultRecord>, waiters: Vec<Waiter> },
    Committing { waiters: Vec<Waiter> },
}

/// A job for somebody to work on.
#[derive(Debug)]
pub(super) struct Handed {
    pub(super) receipt: Receipt,
    pub(super) payload: Bytes,
    pub(super) time: Option<SystemTime>,
}

/// What the next transaction holds.
#[derive(Debug, Default)]
pub(super) struct Group {
    pub(super) jobs: Vec<(Receipt, Vec<ResultRecord>)>,
    pub(super) records: usize,
    pub(super) bytes: usize,
}

impl Group {
    /// Whether a job of so many records and bytes fits. The first always does.
    fn takes(&self, records: usize, bytes: usize) -> bool {
        self.jobs.is_empty() || self.records + records <= GROUP_RECORDS && self.bytes + bytes <= GROUP_BYTES
    }

    /// The offset of each partition after this group.
    pub(super) fn offsets(&self) -> Vec<(i32, i64)> {
        let mut offsets = BTreeMap::new();
        for (receipt, _) in &self.jobs {
            offsets.insert(receipt.partition, receipt.offset + 1);
        }
        offsets.into_iter().collect()
    }
}

/// How a transaction came out.
#[derive(Debug)]
pub(super) enum Outcome {
    /// Results and offsets are visible.
    Committed,
    /// Neither is.
    Aborted,
    /// Nobody will find out which.
    Unknown,
    /// Neither is, and this job of the group cannot be published as it is.
    Refused(usize, SyncError),
}

impl Ledger {
    pub(super) fn new(inflight: usize) -> Self {
        let (ours, held, stage) = Default::default();
        Self { inflight: inflight.max(1), epochs: 0, ours, held, stage, handing_out: true, turn: -1 }
    }

    /// These partitions are ours from now on.
    pub(super) fn assign(&mut self, partitions: &[i32]) {
        for &partition in partitions {
            self.epochs += 1;
            self.ours.insert(partition, self.epochs);
            self.held.insert((partition, self.epochs), Partition::default());
        }
    }

    /// These are not ours any more: what is out of them is lost.
    pub(super) fn revoke(&mut self, partitions: &[i32]) {
        for &partition in partitions {
            let Some(epoch) = self.ours.remove(&partition) else { continue };
            self.stage.retain(|receipt| receipt.partition != partition);
            let Some(held) = self.held.get_mut(&(partition, epoch)) else { continue };
            for (offset, job) in std::mem::take(&mut held.jobs) {
                match job {
                    Job::Settled { waiters, .. } => answer(waiters, || Ok(Settled::Lost)),
                    // Answered by how the transaction comes out.
                    Job::Committing { .. } => drop(held.jobs.insert(offset, job)),
                    Job::Staged { .. } | Job::Out { .. } => {}
                }
            }
            if held.jobs.is_empty() {
                self.held.remove(&(partition, epoch));
            }
        }
    }

    /// The partitions that are ours.
    pub(super) fn partitions(&self) -> Vec<i32> {
        self.ours.keys().copied().collect()
    }

    /// A message has come. One that was here before is passed over.
    pub(super) fn take_in(
        &mut self,
        partition: i32,
        offset: i64,
        key: &[u8],
        payload: Bytes,
        time: Option<SystemTime>,
    ) {
        let Some(&epoch) = self.ours.get(&partition) else { return };
        let Some(held) = self.held.get_mut(&(partition, epoch)) else { return };
        if held.next.is_some_and(|next| offset < next) {
            return;
        }
        held.next = Some(offset + 1);
        let (flow, bytes) = (Flow::of_key(key), payload.len());
        held.jobs.insert(offset, Job::Staged { payload, time, flow });
        self.stage.push(Receipt { partition, offset, epoch }, flow, bytes);
    }

    /// The next job, unless as many as allowed are out.
    pub(super) fn hand_out(&mut self) -> Option<Handed> {
        if !self.handing_out {
            return None;
        }
        let pressing = self.holds_most().then(|| self.pressing());
        let working: Vec<Option<Flow>> = self.working().collect();
        let (ours, held, inflight) = (&self.ours, &self.held, self.inflight);
        let is_known = |partition: i32| {
            let held = ours.get(&partition).and_then(|epoch| held.get(&(partition, *epoch)));
            held.is_some_and(|held| held.begin.is_some())
        };
        let receipt = self.stage.pop(|receipt, flow| {
            let mine = flow.map_or(0, |_| working.iter().filter(|other| **other == flow).count());
            may_go_out(mine, working.len(), inflight)
                && is_known(receipt.partition)
                && pressing.as_ref().is_none_or(|some| some.contains(&(receipt.partition, receipt.offset)))
        })?;
        let job = self.job(receipt)?;
        let Job::Staged { flow, .. } = *job else { return None };
        let Job::Staged { payload, time, .. } = std::mem::replace(job, Job::Out { flow }) else {
            return None;
        };
        Some(Handed { receipt, payload, time })
    }

    /// A job comes back undone. It is the next to go out: those behind it on its partition cannot be
    /// committed before it.
    pub(super) fn release(&mut self, receipt: Receipt, payload: Bytes, time: Option<SystemTime>) {
        let bytes = payload.len();
        let Some(job) = self.job(receipt) else { return };
        let Job::Out { flow } = *job else { return };
        *job = Job::Staged { payload, time, flow };
        self.stage.push_front(receipt, flow, bytes);
    }

    /// A job is done. `waiter` hears when its results are visible, or that it is lost.
    pub(super) fn settle(&mut self, receipt: Receipt, results: Vec<ResultRecord>, waiter: Waiter) {
        let ours = self.ours.get(&receipt.partition) == Some(&receipt.epoch);
        let Some(held) = self.held.get_mut(&(receipt.partition, receipt.epoch)) else {
            return answer(vec![waiter], || Ok(Settled::Lost));
        };
        match held.jobs.get_mut(&receipt.offset) {
            Some(job @ Job::Out { .. }) if ours => *job = Job::Settled { results, waiters: vec![waiter] },
            // Settled once more, as after a wait that was given up: the first results count.
            Some(Job::Settled { waiters, .. } | Job::Committing { waiters }) => waiters.push(waiter),
            None if receipt.offset < held.done => answer(vec![waiter], || Ok(Settled::Done)),
            _ => answer(vec![waiter], || Ok(Settled::Lost)),
        }
    }

    /// What can be committed now: of each partition the settled jobs that no unsettled one precedes. The partitions
    /// take turns at being the first, so that one whose job cannot be committed does not keep the others from it.
    pub(super) fn next_group(&mut self) -> Option<Group> {
        let mut group = Group::default();
        let behind = self.ours.range((Bound::Excluded(self.turn), Bound::Unbounded));
        for (&partition, &epoch) in behind.chain(self.ours.range(..=self.turn)) {
            let Some(held) = self.held.get_mut(&(partition, epoch)) else { continue };
            for (&offset, job) in &mut held.jobs {
                let Job::Settled { results, waiters } = job else { break };
                let bytes = results.iter().map(|result| result.payload.len()).sum();
                if !group.takes(results.len(), bytes) {
                    break;
                }
                let (results, waiters) = (std::mem::take(results), std::mem::take(waiters));
                *job = Job::Committing { waiters };
                group.records += results.len();
                group.bytes += bytes;
                group.jobs.push((Receipt { partition, offset, epoch }, results));
            }
        }
        self.turn = group.jobs.first()?.0.partition;
        Some(group)
    }

    /// Whether every partition of `group` is still ours.
    pub(super) fn owns(&self, group: &Group) -> bool {
        group.jobs.iter().all(|(receipt, _)| self.ours.get(&receipt.partition) == Some(&receipt.epoch))
    }

    /// The transaction of `group` has ended.
    pub(super) fn finish(&mut self, group: Group, outcome: Outcome) {
        let (committed, unknown) =
            (matches!(outcome, Outcome::Committed), matches!(outcome, Outcome::Unknown));
        let (refused, mut error) = match outcome {
            Outcome::Refused(index, error) => (Some(index), Some(error)),
            _ => (None, None),
        };
        for (index, (receipt, results)) in group.jobs.into_iter().enumerate() {
            let ours = self.ours.get(&receipt.partition) == Some(&receipt.epoch);
            let key = (receipt.partition, receipt.epoch);
            let Some(held) = self.held.get_mut(&key) else { continue };
            let Some(Job::Committing { waiters }) = held.jobs.remove(&receipt.offset) else { continue };
            if committed {
                held.done = held.done.max(receipt.offset + 1);
                answer(waiters, || Ok(Settled::Done));
            } else if unknown {
                held.jobs.insert(receipt.offset, Job::Out { flow: None });
                answer(waiters, || Err(left_behind()));
            } else if !ours {
                answer(waiters, || Ok(Settled::Lost));
            } else if refused == Some(index) {
                held.jobs.insert(receipt.offset, Job::Out { flow: None });
                answer_error(waiters, error.take());
            } else {
                held.jobs.insert(receipt.offset, Job::Settled { results, waiters });
            }
            if !ours && held.jobs.is_empty() {
                self.held.remove(&key);
            }
        }
    }

    /// What is here now is the end: every settlement that is not committed is lost.
    pub(super) fn close(&mut self) {
        self.handing_out = false;
        let all = self.partitions();
        self.revoke(&all);
    }

    /// Nothing more goes out.
    pub(super) fn stop_handing_out(&mut self) {
        self.handing_out = false;
    }

    /// Jobs that somebody works on, or that wait for their commit.
    pub(super) fn out(&self) -> usize {
        self.jobs().filter(|job| !matches!(job, Job::Staged { .. })).count()
    }

    /// Whether no more may go out: as many as allowed are being worked on, or are done and wait for one before them.
    /// Those that are waited for go out all the same.
    pub(super) fn is_full(&self) -> bool {
        self.working().count() >= self.inflight || self.holds_most()
    }

    fn jobs(&self) -> impl Iterator<Item = &Job> {
        let ours = self.ours.iter().filter_map(|(&partition, &epoch)| self.held.get(&(partition, epoch)));
        ours.flat_map(|held| held.jobs.values())
    }

    /// The batches of the jobs that somebody works on.
    fn working(&self) -> impl Iterator<Item = Option<Flow>> {
        self.jobs().filter_map(|job| match job {
            Job::Out { flow } => Some(*flow),
            _ => None,
        })
    }

    /// Whether to fetch, when fetching is `paused` or not. Half of what may wait lies between stop and
    /// start: a stop throws away what the client has fetched ahead, and after a start librdkafka may take
    /// a second until messages come again.
    pub(super) fn wants_more(&self, paused: bool) -> bool {
        let part = if paused { 2 } else { 1 };
        self.handing_out && self.stage.has_room(part)
    }

    /// Where the partitions end that are ours. False when messages have come from behind that end: the broker has lost
    /// them, and others will have their offsets.
    pub(super) fn note_end(&mut self, partition: i32, end: i64) -> bool {
        let Some(epoch) = self.ours.get(&partition) else { return true };
        let Some(held) = self.held.get_mut(&(partition, *epoch)) else { return true };
        held.end = Some(end);
        held.next.is_none_or(|next| next <= end)
    }

    /// Where the group stands on a partition that is ours; what has come from before it is dropped. True when something
    /// has: then the client reads at the wrong place.
    pub(super) fn note_begin(&mut self, partition: i32, begin: i64) -> bool {
        let Some(epoch) = self.ours.get(&partition) else { return false };
        let Some(held) = self.held.get_mut(&(partition, *epoch)) else { return false };
        held.begin = Some(begin);
        held.next = Some(held.next.map_or(begin, |next| next.max(begin)));
        let kept = held.jobs.split_off(&begin);
        let astray = !held.jobs.is_empty();
        held.jobs = kept;
        self.stage.retain(|receipt| receipt.partition != partition || receipt.offset >= begin);
        astray
    }

    /// Where the group stands on a partition that is ours, as far as that is known.
    pub(super) fn begin(&self, partition: i32) -> Option<i64> {
        let epoch = self.ours.get(&partition)?;
        self.held.get(&(partition, *epoch))?.begin
    }

    /// Jobs of our partitions that are not out; `None` while one partition's end is not known.
    pub(super) fn waiting(&self) -> Option<u64> {
        let mut waiting = self.stage.len() as u64;
        for (&partition, &epoch) in &self.ours {
            let held = self.held.get(&(partition, epoch))?;
            waiting += u64::try_from(held.end? - held.next?).unwrap_or_default();
        }
        (!self.ours.is_empty()).then_some(waiting)
    }

    fn job(&mut self, receipt: Receipt) -> Option<&mut Job> {
        if self.ours.get(&receipt.partition) != Some(&receipt.epoch) {
            return None;
        }
        self.held.get_mut(&(receipt.partition, receipt.epoch))?.jobs.get_mut(&receipt.offset)
    }
}
