//! Structured logs on standard error: text on a terminal, one JSON object per line elsewhere.
//!
//! The number of lines is limited: what clients can cause must not fill a disk, nor hide other lines. Each place in the code
//! that logs has an allowance; lines beyond it are counted, and the count is logged every few seconds. Debug and trace lines
//! are not limited: they are only there when requested.

use std::collections::HashMap;
use std::io::{IsTerminal, stderr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tracing::callsite::Identifier;
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::FmtSpan;
use tracing_subscriber::layer::{Context, Filter};
use tracing_subscriber::prelude::*;

/// Burst of lines from one place.
const BURST: f64 = 50.0;
/// Lines per second from one place, in the long run.
const PER_SECOND: f64 = 1.0;
/// Interval at which suppressed lines are reported.
const REPORT_INTERVAL: Duration = Duration::from_secs(10);

/// `[log]`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    /// A level or a filter such as `info,weir::http=debug`.
    pub level: String,
    /// `auto`, `text` or `json`.
    pub format: LogFormat,
}

/// Format of log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Text on a terminal, JSON elsewhere.
    #[default]
    Auto,
    /// Text.
    Text,
    /// One JSON object per line.
    Json,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { level: "info".into(), format: LogFormat::default() }
    }
}

/// Why logging cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    /// The filter is invalid.
    #[error("log.level = {level:?} is no level or filter: {source}")]
    Filter {
        /// The value.
        level: String,
        /// What is wrong with it.
        source: tracing_subscriber::filter::ParseError,
    },
    /// Logging is already set up.
    #[error("logging is set up already")]
    Twice,
}

/// Sets up logging for the process.
///
/// # Errors
/// [`LoggingError`] for a filter that can't be parsed, or a second call.
pub fn init(config: &LogConfig) -> Result<(), LoggingError> {
    let filter = EnvFilter::builder()
        .parse(&config.level)
        .map_err(|source| LoggingError::Filter { level: config.level.clone(), source })?;
    let terminal = stderr().is_terminal();
    let limit = LogLimit::default();
    let lines = tracing_subscriber::fmt::layer().with_writer(stderr).with_span_events(FmtSpan::NONE);
    let json = match config.format {
        LogFormat::Json => true,
        LogFormat::Text => false,
        LogFormat::Auto => !terminal,
    };
    let lines = if json {
        lines.json().flatten_event(true).with_current_span(true).with_span_list(false).boxed()
    } else {
        lines.with_ansi(terminal).with_target(false).boxed()
    };
    let lines = lines.with_filter(limit.clone());
    tracing_subscriber::registry().with(filter).with(lines).try_init().map_err(|_| LoggingError::Twice)?;
    limit.report();
    Ok(())
}

/// The filter of one process; clones share their counts.
#[derive(Clone, Default)]
struct LogLimit(Arc<Mutex<HashMap<Identifier, Allowance>>>);

struct Allowance {
    lines: f64,
    at: Instant,
    suppressed: u64,
    place: Place,
}

/// A place in the code that logs.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    module: String,
    line: u32,
}

impl LogLimit {
    /// Whether this line is logged at time `now`.
    fn allows(&self, metadata: &Metadata<'_>, now: Instant) -> bool {
        // The reports of this module are not limited: there is at most one per place and interval.
        if *metadata.level() > Level::INFO || metadata.target() == module_path!() {
            return true;
        }
        let mut kinds = self.0.lock();
        let kind = kinds.entry(metadata.callsite()).or_insert_with(|| Allowance {
            lines: BURST,
            at: now,
            suppressed: 0,
            place: Place { module: metadata.target().to_owned(), line: metadata.line().unwrap_or(0) },
        });
        let passed = now.saturating_duration_since(kind.at).as_secs_f64();
        kind.lines = (kind.lines + passed * PER_SECOND).min(BURST);
        kind.at = now;
        if kind.lines >= 1.0 {
            kind.lines -= 1.0;
            return true;
        }
        kind.suppressed += 1;
        false
    }

    /// The lines that were suppressed since the last call, by place.
    fn take_suppressed(&self) -> Vec<(Place, u64)> {
        let mut kinds = self.0.lock();
        let suppressed = kinds.values_mut().filter(|kind| kind.suppressed > 0);
        suppressed.map(|kind| (kind.place.clone(), std::mem::take(&mut kind.suppressed))).collect()
    }

    /// Reports suppressed lines at intervals, for the life of the process.
    fn report(&self) {
        let limit = self.clone();
        let run = move || {
            loop {
                std::thread::sleep(REPORT_INTERVAL);
                for (place, lines) in limit.take_suppressed() {
                    let Place { module, line } = place;
                    tracing::warn!(lines, module, line, "log lines suppressed: too many from one place");
                }
            }
        };
        // Without the thread lines are suppressed all the same.
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
    use tracing::Callsite;

    use super::*;

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
            // A slow machine allows a few more.
            assert!((50..200).contains(&flood), "{flood}");
            tracing::warn!("the disk is full");
            assert_eq!(*seen.0.lock(), flood + 1);
            for number in 0..1000 {
                tracing::debug!(number, "answered");
            }
            assert_eq!(*seen.0.lock(), flood + 1001);
            let suppressed = limit.take_suppressed();
            assert_eq!((suppressed.len(), suppressed[0].1), (1, 1000 - flood as u64));
            assert!(limit.take_suppressed().is_empty());
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
