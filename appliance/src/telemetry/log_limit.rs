//! A bound on the lines of one kind in the log: what clients can cause must not fill a disk, nor hide the rest.
//!
//! Each place in the code that logs has an allowance. Lines beyond it are counted, and the count is logged now and then. Lines
//! for the developer (debug, trace) are not bounded: they are only there when somebody asks for them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tracing::callsite::Identifier;
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Filter};

/// Lines of one kind at once.
const BURST: f64 = 50.0;
/// Lines of one kind a second, in the long run.
const PER_SECOND: f64 = 1.0;
/// How often the lines that were left out are counted in the log.
const REPORT_INTERVAL: Duration = Duration::from_secs(10);

/// The filter; clones share their counts.
#[derive(Clone, Default)]
pub(super) struct LogLimit(Arc<Mutex<HashMap<Identifier, Allowance>>>);

struct Allowance {
    lines: f64,
    at: Instant,
    left_out: u64,
    place: Place,
}

/// Where a line comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    module: String,
    line: u32,
}

impl LogLimit {
    /// Whether this line is logged, at this time.
    fn allows(&self, metadata: &Metadata<'_>, now: Instant) -> bool {
        // The report of this module is not bounded itself: there is at most one a place and interval.
        if *metadata.level() > Level::INFO || metadata.target() == module_path!() {
            return true;
        }
        let mut kinds = self.0.lock();
        let kind = kinds.entry(metadata.callsite()).or_insert_with(|| Allowance {
            lines: BURST,
            at: now,
            left_out: 0,
            place: Place { module: metadata.target().to_owned(), line: metadata.line().unwrap_or(0) },
        });
        let passed = now.saturating_duration_since(kind.at).as_secs_f64();
        kind.lines = (kind.lines + passed * PER_SECOND).min(BURST);
        kind.at = now;
        if kind.lines >= 1.0 {
            kind.lines -= 1.0;
            return true;
        }
        kind.left_out += 1;
        false
    }

    /// What was left out since the last call, by place.
    fn take_left_out(&self) -> Vec<(Place, u64)> {
        let mut kinds = self.0.lock();
        let left_out = kinds.values_mut().filter(|kind| kind.left_out > 0);
        left_out.map(|kind| (kind.place.clone(), std::mem::take(&mut kind.left_out))).collect()
    }

    /// Logs now and then, for as long as the process lives, what was left out.
    pub(super) fn report(&self) {
        let limit = self.clone();
        let run = move || {
            loop {
                std::thread::sleep(REPORT_INTERVAL);
                for (place, lines) in limit.take_left_out() {
                    let Place { module, line } = place;
                    tracing::warn!(lines, module, line, "log lines of one kind left out: there are too many");
                }
            }
        };
        // Without the thread the lines are left out all the same.
        let _ = std::thread::Builder::new().name("weir-log".into()).spawn(run);
    }
}

impl<S: Subscriber> Filter<S> for LogLimit {
    fn enabled(&self, _: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        true
    }

    fn event_enabled(&self, event: &Event<'_>, _: &Context<'_, S>) -> bool {
        self.allows(event.metadata(), Instant::now())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracing::Callsite;
    use tracing_subscriber::prelude::*;

    /// Counts the lines that reach it.
    #[derive(Clone, Default)]
    struct Seen(Arc<Mutex<usize>>);

    impl<S: Subscriber> tracing_subscriber::Layer<S> for Seen {
        fn on_event(&self, _: &Event<'_>, _: Context<'_, S>) {
            *self.0.lock() += 1;
        }
    }

    #[test]
    fn a_flood_of_one_line_is_bounded_and_counted_and_hides_no_other() {
        let (limit, seen) = (LogLimit::default(), Seen::default());
        let subscriber = tracing_subscriber::registry().with(seen.clone().with_filter(limit.clone()));
        tracing::subscriber::with_default(subscriber, || {
            for number in 0..1000 {
                tracing::info!(number, "refused");
            }
            let flood = *seen.0.lock();
            // A slow machine may have earned a few more.
            assert!((50..200).contains(&flood), "{flood}");
            tracing::warn!("the disk is full");
            assert_eq!(*seen.0.lock(), flood + 1);
            for number in 0..1000 {
                tracing::debug!(number, "answered");
            }
            assert_eq!(*seen.0.lock(), flood + 1001);
            let left_out = limit.take_left_out();
            assert_eq!((left_out.len(), left_out[0].1), (1, 1000 - flood as u64));
            assert!(limit.take_left_out().is_empty());
        });
    }

    #[test]
    fn the_allowance_comes_back_with_time() {
        let limit = LogLimit::default();
        let callsite = tracing::callsite! {
            name: "x", kind: tracing::metadata::Kind::EVENT, target: "x", level: Level::INFO, fields: a
        };
        let (metadata, start) = (callsite.metadata(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        let allowed = |seconds| (0..100).filter(|_| limit.allows(metadata, at(seconds))).count();
        assert_eq!((allowed(0), allowed(0), allowed(3), allowed(1000)), (50, 0, 3, 50));
    }
}
