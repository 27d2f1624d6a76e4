//! Tests that need the inside of the outbox: the format, and disks that fail.

mod ahead;
mod failing_disk;
pub(super) mod faults;
mod format;
mod model;
