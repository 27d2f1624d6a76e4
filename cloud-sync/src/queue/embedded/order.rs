//! The order of delivery on disk: by turn, then by sequence. `queue::fair` defines turns.

use std::collections::HashMap;

use redb::{ReadTransaction, ReadableTable, Table, TableDefinition, WriteTransaction};

use super::file::JOBS;
use crate::database::Stop;
use crate::queue::fair::Flow;

/// Turn and sequence of a job -> its batch, 0 for none.
const ORDER: TableDefinition<'_, (u64, u64), u64> = TableDefinition::new("order");
/// Sequence -> turn.
const TURNS: TableDefinition<'_, u64, u64> = TableDefinition::new("turns");

/// Creates the tables, and adds jobs without a place, in a file that another version has written. Returns the turn
/// before that of the first job.
pub(super) fn open(txn: &WriteTransaction) -> Result<u64, Stop> {
    let jobs = txn.open_table(JOBS)?;
    let (mut order, mut turns) = (txn.open_table(ORDER)?, txn.open_table(TURNS)?);
    let mut stray = Vec::new();
    for row in order.iter()? {
        let (turn, sequence) = row?.0.value();
        if jobs.get(sequence)?.is_none() {
            stray.push((turn, sequence));
        }
    }
    for place in stray {
        order.remove(place)?;
        turns.remove(place.1)?;
    }
    for row in jobs.iter()? {
        let sequence = row?.0.value();
        if turns.get(sequence)?.is_none() {
            // Before all that have one: they are older.
            turns.insert(sequence, 0)?;
            order.insert((0, sequence), 0)?;
        }
    }
    let first = order.first()?.map_or(0, |(place, _)| place.value().0);
    Ok(first.saturating_sub(1))
}

/// Assigns places to jobs that are submitted together.
pub(super) struct Writer<'a> {
    order: Table<'a, (u64, u64), u64>,
    turns: Table<'a, u64, u64>,
    turn: u64,
    /// Number of jobs of each batch so far.
    counts: HashMap<Flow, u64>,
}

impl<'a> Writer<'a> {
    /// `turn` is the current one.
    pub(super) fn open(txn: &'a WriteTransaction, turn: u64) -> Result<Self, Stop> {
        let (order, turns) = (txn.open_table(ORDER)?, txn.open_table(TURNS)?);
        Ok(Self { order, turns, turn, counts: HashMap::new() })
    }

    pub(super) fn add(&mut self, sequence: u64, flow: Option<Flow>) -> Result<(), Stop> {
        let mut turn = self.turn + 1;
        if let Some(flow) = flow {
            let count = self.counts.entry(flow).or_default();
            turn += *count;
            *count += 1;
        }
        self.order.insert((turn, sequence), flow.map_or(0, Flow::number))?;
        self.turns.insert(sequence, turn)?;
        Ok(())
    }
}

/// Turns the file into one that was written before there were turns.
#[cfg(test)]
pub(super) fn forget(txn: &WriteTransaction) -> Result<(), Stop> {
    txn.delete_table(ORDER)?;
    txn.delete_table(TURNS)?;
    Ok(())
}

/// Turn, sequence and batch of the first job that `take` accepts.
pub(super) fn first(
    txn: &ReadTransaction,
    take: impl Fn(u64, Option<Flow>) -> bool,
) -> Result<Option<(u64, u64, Option<Flow>)>, Stop> {
    for row in txn.open_table(ORDER)?.iter()? {
        let (place, flow) = row?;
        let ((turn, sequence), flow) = (place.value(), Flow::of_number(flow.value()));
        if take(sequence, flow) {
            return Ok(Some((turn, sequence, flow)));
        }
    }
    Ok(None)
}

pub(super) fn remove(txn: &WriteTransaction, sequence: u64) -> Result<(), Stop> {
    let turn = txn.open_table(TURNS)?.remove(sequence)?.map(|turn| turn.value());
    if let Some(turn) = turn {
        txn.open_table(ORDER)?.remove((turn, sequence))?;
    }
    Ok(())
}
