//! Which jobs are waiting, in progress, settled or being committed, per partition. Independent of Kafka.
//!
//! A partition's committed offset means that everything before it is done. So a job that is settled before an earlier
//! one of its partition is held, with its results, until the earlier one is settled too.

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

/// Maximum records of one transaction. Those of one job are never split: a job with more gets its own transaction.
pub(super) const GROUP_RECORDS: usize = 5_000;
/// Maximum bytes of one transaction, with the same exception.
pub(super) const GROUP_BYTES: usize = 4 << 20;
/// Everything that this member of the group holds.
#[derive(Debug)]
pub(super) struct Ledger {
    inflight: usize,
    /// Counts assignments, to distinguish those of a partition that was revoked and assigned again.
    epochs: u64,
    /// The epoch of each assigned partition.
    ours: BTreeMap<i32, u64>,
    /// Including revoked ones, until their last commit has ended.
    held: BTreeMap<(i32, u64), Partition>,
    /// Jobs that can be delivered.
    stage: Stage,
    delivering: bool,
    /// The first partition of the last group: the next starts after it.
    turn: i32,
}

#[derive(Debug, Default)]
struct Partition {
    jobs: BTreeMap<i64, Job>,
    /// The group's offset on it, as the broker says: everything before it is done. Until it is known nothing is
    /// delivered, wherever the client library has started to read.
    begin: Option<i64>,
    /// Everything before it has been received: after a pause it is fetched again.
    next: Option<i64>,
    /// Everything before it is committed.
    done: i64,
    /// The latest known end offset of the partition.
    end: Option<i64>,
}

#[derive(Debug)]
enum Job {
    Staged { payload: Bytes, time: Option<SystemTime>, flow: Option<Flow> },
    Out { flow: Option<Flow> },
    Settled { results: Vec<ResultRecord>, waiters: Vec<Waiter> },
    Committing { waiters: Vec<Waiter> },
}

/// A job to be processed.
#[derive(Debug)]
pub(super) struct Handed {
    pub(super) receipt: Receipt,
    pub(super) payload: Bytes,
    pub(super) time: Option<SystemTime>,
}

/// Content of the next transaction.
#[derive(Debug, Default)]
pub(super) struct Group {
    pub(super) jobs: Vec<(Receipt, Vec<ResultRecord>)>,
    pub(super) records: usize,
    pub(super) bytes: usize,
}

impl Group {
    /// Whether a job with this many records and bytes fits. The first always does.
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

/// Outcome of a transaction.
#[derive(Debug)]
pub(super) enum Outcome {
    /// Results and offsets are visible.
    Committed,
    /// Neither is visible.
    Aborted,
    /// Unknown, and nobody will find out.
    Unknown,
    /// Neither is visible, and this job of the group cannot be published as it is.
    Refused(usize, SyncError),
}

impl Ledger {
    pub(super) fn new(inflight: usize) -> Self {
        let (ours, held, stage) = Default::default();
        Self { inflight: inflight.max(1), epochs: 0, ours, held, stage, delivering: true, turn: -1 }
    }

    /// These partitions are assigned from now on.
    pub(super) fn assign(&mut self, partitions: &[i32]) {
        for &partition in partitions {
            self.epochs += 1;
            self.ours.insert(partition, self.epochs);
            self.held.insert((partition, self.epochs), Partition::default());
        }
    }

    /// These are revoked: their jobs in progress are lost.
    pub(super) fn revoke(&mut self, partitions: &[i32]) {
        for &partition in partitions {
            let Some(epoch) = self.ours.remove(&partition) else { continue };
            self.stage.retain(|receipt| receipt.partition != partition);
            let Some(held) = self.held.get_mut(&(partition, epoch)) else { continue };
            for (offset, job) in std::mem::take(&mut held.jobs) {
                match job {
                    Job::Settled { waiters, .. } => answer(waiters, || Ok(Settled::Lost)),
                    // Answered with the outcome of the transaction.
                    Job::Committing { .. } => drop(held.jobs.insert(offset, job)),
                    Job::Staged { .. } | Job::Out { .. } => {}
                }
            }
            if held.jobs.is_empty() {
                self.held.remove(&(partition, epoch));
            }
        }
    }

    /// The assigned partitions.
    pub(super) fn partitions(&self) -> Vec<i32> {
        self.ours.keys().copied().collect()
    }

    /// A message has arrived. One that was received before is skipped.
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

    /// The next job, unless the maximum number is in progress.
    pub(super) fn next_job(&mut self) -> Option<Handed> {
        if !self.delivering {
            return None;
        }
        let blocking_jobs = self.hold_limit_reached().then(|| self.blocking_jobs());
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
                && blocking_jobs
                    .as_ref()
                    .is_none_or(|some| some.contains(&(receipt.partition, receipt.offset)))
        })?;
        let job = self.job(receipt)?;
        let Job::Staged { flow, .. } = *job else { return None };
        let Job::Staged { payload, time, .. } = std::mem::replace(job, Job::Out { flow }) else {
            return None;
        };
        Some(Handed { receipt, payload, time })
    }

    /// Returns a job unfinished. It is delivered next: those after it on its partition cannot be committed before it.
    pub(super) fn release(&mut self, receipt: Receipt, payload: Bytes, time: Option<SystemTime>) {
        let bytes = payload.len();
        let Some(job) = self.job(receipt) else { return };
        let Job::Out { flow } = *job else { return };
        *job = Job::Staged { payload, time, flow };
        self.stage.push_front(receipt, flow, bytes);
    }

    /// Settles a job. `waiter` is explained when its results are visible, or that it is lost.
    pub(super) fn settle(&mut self, receipt: Receipt, results: Vec<ResultRecord>, waiter: Waiter) {
        let ours = self.ours.get(&receipt.partition) == Some(&receipt.epoch);
        let Some(held) = self.held.get_mut(&(receipt.partition, receipt.epoch)) else {
            return answer(vec![waiter], || Ok(Settled::Lost));
        };
        match held.jobs.get_mut(&receipt.offset) {
            Some(job @ Job::Out { .. }) if ours => *job = Job::Settled { results, waiters: vec![waiter] },
            // A repeated settlement, as after an abandoned wait: the first results count.
            Some(Job::Settled { waiters, .. } | Job::Committing { waiters }) => waiters.push(waiter),
            None if receipt.offset < held.done => answer(vec![waiter], || Ok(Settled::Done)),
            _ => answer(vec![waiter], || Ok(Settled::Lost)),
        }
    }

    /// What can be committed now: of each partition the settled jobs that no unsettled one precedes. The partitions
    /// take turns at being first, so that one whose job cannot be committed does not block the others.
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

    /// Whether every partition of `group` is still assigned.
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

    /// Closes the ledger: every settlement that is not committed is lost.
    pub(super) fn close(&mut self) {
        self.delivering = false;
        let all = self.partitions();
        self.revoke(&all);
    }

    /// Nothing more is delivered.
    pub(super) fn stop_delivery(&mut self) {
        self.delivering = false;
    }

    /// Jobs in progress, or waiting for their commit.
    pub(super) fn out(&self) -> usize {
        self.jobs().filter(|job| !matches!(job, Job::Staged { .. })).count()
    }

    /// Whether no more may be delivered: the maximum number is in progress, or done and waiting for an earlier one.
    /// Jobs that others wait for are delivered anyway.
    pub(super) fn is_full(&self) -> bool {
        self.working().count() >= self.inflight || self.hold_limit_reached()
    }

    fn jobs(&self) -> impl Iterator<Item = &Job> {
        let ours = self.ours.iter().filter_map(|(&partition, &epoch)| self.held.get(&(partition, epoch)));
        ours.flat_map(|held| held.jobs.values())
    }

    /// The batches of the jobs in progress.
    fn working(&self) -> impl Iterator<Item = Option<Flow>> {
        self.jobs().filter_map(|job| match job {
            Job::Out { flow } => Some(*flow),
            _ => None,
        })
    }

    /// Whether to fetch, while fetching is `paused` or not. Half of the staging capacity lies between pausing and
    /// resuming: pausing discards what the client has prefetched, and after resuming librdkafka may take a second
    /// until messages arrive.
    pub(super) fn wants_more(&self, paused: bool) -> bool {
        let part = if paused { 2 } else { 1 };
        self.delivering && self.stage.has_room(part)
    }

    /// Records the end offset of an assigned partition. False when messages beyond it have been received: the broker
    /// has lost them, and others will get their offsets.
    pub(super) fn note_end(&mut self, partition: i32, end: i64) -> bool {
        let Some(epoch) = self.ours.get(&partition) else { return true };
        let Some(held) = self.held.get_mut(&(partition, *epoch)) else { return true };
        held.end = Some(end);
        held.next.is_none_or(|next| next <= end)
    }

    /// Records the group's offset on an assigned partition; messages before it are dropped. True when there were
    /// some: then the client reads at the wrong offset.
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

    /// The group's offset on an assigned partition, if known.
    pub(super) fn begin(&self, partition: i32) -> Option<i64> {
        let epoch = self.ours.get(&partition)?;
        self.held.get(&(partition, *epoch))?.begin
    }

    /// Waiting jobs of the assigned partitions; `None` while the end offset of one is unknown.
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
