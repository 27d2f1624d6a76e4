//! Which job is delivered next when several batches wait: they alternate, and none takes all slots.
//!
//! Each job has a turn, counted as in start-time fair queueing (Goyal, Vin and Cheng, 1996): the first job of a batch
//! that starts to wait has the turn after the current one, each further one the next. Jobs are delivered by turn,
//! then in their order. So a batch of thousands of jobs and one of a single job alternate, and later arrivals delay a
//! waiting job by at most one job of each other batch.
//!
//! Turns alone do not help while jobs of a slow batch take all slots: so the last free slot is reserved for a batch
//! that has none.

use std::num::NonZeroU64;

/// Identifies the batch of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Flow(NonZeroU64);

impl Flow {
    /// The batch of a job: the part of its key before the number of the job, `<batch>/<number>`. A job with another
    /// key, from another producer, is a batch of its own.
    pub(super) fn of_key(key: &[u8]) -> Option<Self> {
        let slash = key.iter().rposition(|byte| *byte == b'/')?;
        let (batch, number) = (&key[..slash], &key[slash + 1..]);
        if number.is_empty() || !number.iter().all(u8::is_ascii_digit) {
            return None;
        }
        let mut hash = [0; 8];
        blake3::Hasher::new().update(batch).finalize_xof().fill(&mut hash);
        Self::of_number(u64::from_le_bytes(hash))
    }

    /// The inverse of [`Self::number`].
    pub(super) fn of_number(number: u64) -> Option<Self> {
        NonZeroU64::new(number).map(Self)
    }

    pub(super) fn number(self) -> u64 {
        self.0.get()
    }
}

/// Whether another job of a batch may be delivered that has `mine` jobs in progress, with `out` in progress in total,
/// and `places` slots.
pub(super) fn may_go_out(mine: usize, out: usize, places: usize) -> bool {
    out < places && (mine == 0 || out + 1 < places)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_batch_is_what_stands_before_the_number() {
        let flow = |key: &str| Flow::of_key(key.as_bytes());
        assert!(flow("a/0").is_some() && flow("a/0") == flow("a/17") && flow("a/0") != flow("b/0"));
        assert_eq!(flow("x/y/3"), flow("x/y/4"));
        for key in ["", "a", "a/", "a/b", "a/1x", "17"] {
            assert_eq!(flow(key), None, "{key}");
        }
        let some = flow("a/0").unwrap();
        assert_eq!(Flow::of_number(some.number()), Some(some));
    }

    #[test]
    fn no_batch_takes_all_places_and_none_stay_empty_for_good() {
        for places in 1..20 {
            let alone = (0..).take_while(|out| may_go_out(*out, *out, places)).count();
            assert_eq!(alone, (places - 1).max(1), "of {places}");
            // Another batch takes the rest.
            assert!((alone..places).all(|out| may_go_out(0, out, places)));
            assert!(!may_go_out(0, places, places));
        }
    }
}
