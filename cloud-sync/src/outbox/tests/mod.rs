//! Tests that need internals of the outbox: the format, and failing disks.

mod clock_steps;
mod failing_disk;
pub(super) mod faults;
mod format;
mod loss;
mod model;
mod quota;
mod space;
