//! Tests that need the inside of the outbox: the format, and disks that fail.

mod ahead;
mod clock_steps;
mod failing_disk;
pub(super) mod faults;
mod format;
mod loss;
mod lost_writes;
mod model;
mod numbers;
mod quota;
mod reserve;
mod unreadable;
