//! How many jobs may be done without being committed, and which go out all the same when so many are.

use std::collections::BTreeSet;

use super::{Job, Ledger};

/// Jobs that may be done and wait for their commit, because one before them on their partition is not done: while it is
/// worked on, so many others can be. Then only those go out that the others wait for.
const MAX_HELD: usize = 64;
/// Bytes of their results, and those of one job more.
const MAX_HELD_BYTES: usize = 16 << 20;

impl Ledger {
    /// The jobs at the head of each partition that wait to go out and that settled ones behind them wait for. Jobs go
    /// out by turn, not by offset, so there may be such ones; were they held back too, nothing would ever be committed.
    /// Where nothing settled is behind, as while the broker is away, none is: that would have to be held as well.
    pub(super) fn pressing(&self) -> BTreeSet<(i32, i64)> {
        let mut pressing = BTreeSet::new();
        for (&partition, epoch) in &self.ours {
            let Some(held) = self.held.get(&(partition, *epoch)) else { continue };
            let is_settled = |job: &Job| matches!(job, Job::Settled { .. } | Job::Committing { .. });
            let open = held.jobs.iter().skip_while(|(_, job)| is_settled(job));
            let last = held.jobs.iter().rfind(|(_, job)| is_settled(job)).map(|(&offset, _)| offset);
            // As many as can be worked on at once: what they add to those held is bounded by that.
            let head = open.take(self.inflight).filter(|(offset, _)| Some(**offset) < last);
            let staged = head.filter(|(_, job)| matches!(job, Job::Staged { .. }));
            pressing.extend(staged.map(|(&offset, _)| (partition, offset)));
        }
        pressing
    }

    /// Whether as many jobs as allowed, or as many bytes, are done and not committed.
    pub(super) fn holds_most(&self) -> bool {
        let (mut held, mut bytes) = (0, 0);
        for job in self.jobs() {
            match job {
                Job::Settled { results, .. } => {
                    held += 1;
                    bytes += results.iter().map(|result| result.payload.len()).sum::<usize>();
                }
                Job::Committing { .. } => held += 1,
                Job::Staged { .. } | Job::Out { .. } => {}
            }
        }
        held >= MAX_HELD || bytes >= MAX_HELD_BYTES
    }
}
