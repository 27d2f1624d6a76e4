//! Where a section writes its rows: they are sent immediately, so that none is lost if the section fails or hangs.

use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use super::report::{Outcome, SuiteRow};
use crate::bench::Target;

/// Events of the suite's thread.
pub(super) enum SuiteEvent {
    /// A section begins.
    Started(&'static str),
    /// A row of its results.
    Row(SuiteRow),
    /// It has ended; with its duration in seconds.
    Ended(&'static str, f64),
}

/// One section's rows, and the time that is left.
pub(super) struct Sheet {
    pub(super) section: &'static str,
    pub(super) simulated: bool,
    pub(super) until: Instant,
    pub(super) send: Sender<SuiteEvent>,
}

impl Sheet {
    fn row(
        &self,
        what: impl Into<String>,
        number: Option<(f64, &'static str)>,
        target: Option<Target>,
        outcome: Outcome,
        note: String,
    ) {
        let (section, what) = (self.section, what.into());
        let value = number.map(|(value, _)| value);
        let unit = number.map(|(_, unit)| unit).unwrap_or_default();
        if let Some(value) = value {
            eprintln!("  {what}: {value:.3} {unit} {outcome}");
        } else {
            eprintln!("  {what}: {outcome} {note}");
        }
        // After the budget the receiver is gone.
        let _ =
            self.send.send(SuiteEvent::Row(SuiteRow { section, what, value, unit, target, outcome, note }));
    }

    /// A number with a target on any GPU, simulated or real.
    pub(super) fn hold(
        &self,
        what: impl Into<String>,
        value: f64,
        unit: &'static str,
        target: Target,
        note: &str,
    ) {
        let outcome = if target.is_met(value) { Outcome::Pass } else { Outcome::Fail };
        self.row(what, Some((value, unit)), Some(target), outcome, note.to_owned());
    }

    /// A time, rate or share, whose target is not evaluated on a simulated GPU.
    pub(super) fn hold_speed(
        &self,
        what: impl Into<String>,
        value: f64,
        unit: &'static str,
        target: Target,
        note: &str,
    ) {
        if self.simulated {
            self.row(what, Some((value, unit)), Some(target), Outcome::Simulated, note.to_owned());
        } else {
            self.hold(what, value, unit, target, note);
        }
    }

    /// An informational number.
    pub(super) fn note(&self, what: impl Into<String>, value: f64, unit: &'static str, note: &str) {
        self.row(what, Some((value, unit)), None, Outcome::Info, note.to_owned());
    }

    /// Something without a number.
    pub(super) fn info(&self, what: impl Into<String>, text: impl Into<String>) {
        self.row(what, None, None, Outcome::Info, text.into());
    }

    /// A measurement that failed.
    pub(super) fn failed(&self, what: impl Into<String>, why: impl Into<String>) {
        self.row(what, None, None, Outcome::Failed, why.into());
    }

    /// Whether the budget allows for a measurement of about this many seconds; otherwise it is reported as left out.
    pub(super) fn has_time(&self, what: &str, seconds: f64) -> bool {
        let left = self.left();
        let enough = left.as_secs_f64() >= seconds;
        if !enough {
            let note =
                format!("takes about {seconds:.0} s, and {:.0} s of the budget are left", left.as_secs_f64());
            self.row(what, None, None, Outcome::LeftOut, note);
        }
        enough
    }

    /// What is left of the budget.
    pub(super) fn left(&self) -> Duration {
        self.until.saturating_duration_since(Instant::now())
    }

    /// Runs one part of a section; its failure does not end the section.
    pub(super) fn attempt(&self, what: &str, part: impl FnOnce() -> anyhow::Result<()>) {
        if let Err(error) = part() {
            self.failed(what, format!("{error:#}"));
        }
    }
}
