//! State that the appliance keeps between requests: now the content cache, in this process.
//!
//! One implementation, so a struct and no trait. A store in Redis becomes a sibling of `embedded`, and
//! batch status and locks join when something uses them.

mod embedded;

pub use embedded::{EmbeddedState, StateConfig, StateStats};
