//! Tests that need the inside of the outbox: the format, and disks that fail.

mod clock_steps;
mod failing_disk;
pub(super) mod faults;
mod format;
mod loss;
mod model;
mod quota;
mod space;
