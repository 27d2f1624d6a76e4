//! The committing thread: results and offsets in one transaction, several jobs at a time.

use std::sync::Arc;
use std::time::Duration;

use rdkafka::consumer::Consumer;

use super::ledger::{GROUP_BYTES, GROUP_RECORDS, Group, Ledger, Outcome};
use super::shared::Shared;
use crate::backoff::Backoff;
use crate::error::SyncResult;
use crate::kafka::{Position, PublishError, Record, TransactionalProducer, committed, down};

/// Timeout of one attempt. Short, because a transaction that a dead process left open blocks readers for a third
/// longer than this. A job larger than a group gets this much for each group that it would fill.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(8);
/// Maximum timeout of one attempt, whatever its size: a broker must allow transactions of a minute.
const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(45);
/// How long to wait for the new generation after a rebalance.
const REBALANCE_WAIT: Duration = Duration::from_millis(50);

/// Runs until the group is left, or the queue is closed and everything that was ready is committed.
pub(super) fn run(shared: &Arc<Shared>, transactional_id: &str) {
    let mut producer =
        TransactionalProducer::open(&shared.config, transactional_id, ATTEMPT_TIMEOUT, shared.health.clone());
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
    while let Some(group) = shared.wait_for(Ledger::next_group) {
        let (outcome, wait) = publish(shared, &mut producer, &group, &mut backoff);
        shared.with(|ledger| ledger.finish(group, outcome));
        if wait.is_some_and(|wait| !shared.pause(wait)) {
            return;
        }
    }
}

/// One attempt, and how long to wait before the next.
fn publish(
    shared: &Shared,
    producer: &mut TransactionalProducer,
    group: &Group,
    backoff: &mut Backoff,
) -> (Outcome, Option<Duration>) {
    let offsets = group.offsets();
    let Some(consumer) = shared.consumer() else { return (Outcome::Aborted, Some(REBALANCE_WAIT)) };
    // In this order: the broker does not check the offsets of a member that has just been removed, because its
    // metadata has no generation any more. If it was removed, then either the assignment is marked lost by now, or
    // the partitions are gone from the ledger.
    let metadata = consumer.group_metadata();
    let lost = consumer.assignment_lost();
    drop(consumer);
    let owned = shared.read(|ledger| ledger.owns(group));
    let Some(metadata) = metadata.filter(|_| owned && !lost) else {
        return (Outcome::Aborted, Some(REBALANCE_WAIT));
    };
    let position = match Position::new(&metadata, &shared.config.requests_topic, &offsets) {
        Ok(position) => position,
        Err(error) => {
            down(&shared.health, &error);
            return (Outcome::Aborted, Some(backoff.fail()));
        }
    };
    let (jobs, records) = records(group);
    producer.allow(time_for(group.records, group.bytes));
    match producer.publish(&shared.config.results_topic, &records, Some(&position)) {
        Ok(()) => {
            backoff.succeed();
            (Outcome::Committed, None)
        }
        Err(PublishError::Refused { index, error }) => {
            let id = records.get(index).map_or("", |record| record.id);
            (Outcome::Refused(jobs.get(index).copied().unwrap_or_default(), error.of_record(id)), None)
        }
        Err(PublishError::Lost(error)) => {
            tracing::debug!(error = error.in_full(), "the consumer group has rebalanced; retrying");
            (Outcome::Aborted, Some(REBALANCE_WAIT))
        }
        Err(PublishError::Failed(error)) => {
            // Including permanent errors: a password or a topic can be corrected, and the results are still here.
            if !error.is_transient() {
                down(&shared.health, &error);
            }
            (Outcome::Aborted, Some(backoff.fail()))
        }
        // Not returned by `publish`, which recreates the client itself.
        Err(PublishError::Anew) => (Outcome::Aborted, None),
        Err(PublishError::Unknown(error) | PublishError::Fenced(error)) => {
            tracing::debug!(error = error.in_full(), "the outcome of a commit is unknown");
            (resolve_outcome(shared, producer, &offsets, backoff), None)
        }
    }
}

/// Timeout of a transaction with this many records and bytes.
pub(super) fn time_for(records: usize, bytes: usize) -> Duration {
    let groups = records.div_ceil(GROUP_RECORDS).max(bytes.div_ceil(GROUP_BYTES)).max(1);
    ATTEMPT_TIMEOUT.saturating_mul(u32::try_from(groups).unwrap_or(u32::MAX)).min(TRANSACTION_TIMEOUT)
}

/// The records of a group, each with the index of its job.
fn records(group: &Group) -> (Vec<usize>, Vec<Record<'_>>) {
    let all =
        group.jobs.iter().enumerate().flat_map(|(job, (_, results))| results.iter().map(move |r| (job, r)));
    all.map(|(job, result)| {
        (job, Record { key: result.key.as_bytes(), id: &result.id, payload: &result.payload })
    })
    .unzip()
}

/// Whether a transaction was committed whose commit was not answered: its offsets show it.
fn resolve_outcome(
    shared: &Shared,
    producer: &mut TransactionalProducer,
    offsets: &[(i32, i64)],
    backoff: &mut Backoff,
) -> Outcome {
    let partitions: Vec<_> = offsets.iter().map(|(partition, _)| *partition).collect();
    loop {
        let config = &shared.config;
        let read =
            |()| committed(config, &config.group_id, &config.requests_topic, &partitions, ATTEMPT_TIMEOUT);
        let found: SyncResult<Vec<_>> = producer.recover().and_then(read);
        match found {
            Ok(found) => {
                backoff.succeed();
                let all =
                    offsets.iter().zip(found).all(|((_, end), found)| found.is_some_and(|at| at >= *end));
                return if all { Outcome::Committed } else { Outcome::Aborted };
            }
            Err(error) => {
                down(&shared.health, &error);
                if !shared.pause(backoff.fail()) {
                    return Outcome::Unknown;
                }
            }
        }
    }
}
