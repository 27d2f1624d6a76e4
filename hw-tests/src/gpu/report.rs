//! Results of the suite: sections send their rows through a [`Sheet`] immediately, so that none is lost if a section fails or
//! hangs; the [`Report`] is one table, and JSON with all numbers.

use std::fmt;
use std::path::Path;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use anyhow::Context;
use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;
use serde_json::{Value, json};

use crate::bench::{Target, short};

/// The outcome of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Its target is met.
    Pass,
    /// Its target is missed.
    Fail,
    /// It is informational.
    Info,
    /// It could not be measured; the note has the reason.
    Failed,
    /// The budget was exhausted.
    LeftOut,
    /// Its target is not evaluated on a simulated GPU.
    Simulated,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pass => "PASS",
            Self::Fail => "FAIL",
            Self::Info => "",
            Self::Failed => "FAILED",
            Self::LeftOut => "LEFT OUT",
            Self::Simulated => "simulated",
        })
    }
}

/// One number, or the reason why there is none.
#[derive(Clone, Debug, Serialize)]
pub struct SuiteRow {
    /// Its section.
    pub section: &'static str,
    /// What was measured.
    pub what: String,
    /// The number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<f64>,
    /// Its unit; empty for a count.
    pub unit: &'static str,
    /// Its target.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<Target>,
    /// The outcome.
    pub outcome: Outcome,
    /// Additional information.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub note: String,
}

/// The report of a run.
#[derive(Clone, Debug)]
pub struct Report {
    /// GPU, driver, libraries, machine, date and command line.
    pub about: Value,
    /// Whether the GPU is a simulated one.
    pub simulated: bool,
    /// Sections that have ended, and their seconds.
    pub seconds: Vec<(&'static str, f64)>,
    /// Every row.
    pub rows: Vec<SuiteRow>,
    /// Whether a section hangs and still uses the GPU.
    pub hangs: bool,
}

impl Report {
    /// Whether all was measured and every target is met.
    #[must_use]
    pub fn passed(&self) -> bool {
        !self.rows.iter().any(|row| matches!(row.outcome, Outcome::Fail | Outcome::Failed | Outcome::LeftOut))
    }

    /// As JSON.
    #[must_use]
    pub fn json(&self) -> Value {
        let seconds =
            self.seconds.iter().map(|(name, seconds)| json!({ "section": name, "seconds": seconds }));
        json!({
            "about": self.about,
            "simulated": self.simulated,
            "passed": self.passed(),
            "sections": seconds.collect::<Vec<_>>(),
            "rows": self.rows,
        })
    }

    /// Writes the JSON.
    ///
    /// # Errors
    /// When the file can't be written.
    pub fn write(&self, path: &Path) -> anyhow::Result<()> {
        let text = serde_json::to_string_pretty(&self.json())? + "\n";
        std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))
    }

    fn warning(&self) -> &'static str {
        if self.simulated {
            "*** SIMULATED GPU: times, rates and shares below say nothing about any GPU ***\n"
        } else {
            ""
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |key: &str| self.about["gpu"][key].as_str().unwrap_or_default().to_owned();
        writeln!(f, "\n{}{}, {}", self.warning(), text("name"), text("driver"))?;
        let mut table = Table::new();
        table.load_style(presets::ASCII_MARKDOWN);
        table.set_header(["section", "what", "measured", "target", "result", "note"]);
        for row in &self.rows {
            let unit = if row.unit.is_empty() { String::new() } else { format!(" {}", row.unit) };
            table.add_row([
                row.section.to_owned(),
                row.what.clone(),
                row.value.map(|value| format!("{}{unit}", short(value))).unwrap_or_default(),
                row.target.map(|target| format!("{target}{unit}")).unwrap_or_default(),
                row.outcome.to_string(),
                // A table has one line per row.
                row.note.split_whitespace().collect::<Vec<_>>().join(" "),
            ]);
        }
        if let Some(column) = table.column_mut(2) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        writeln!(f, "{table}")?;
        let count = |outcome| self.rows.iter().filter(|row| row.outcome == outcome).count();
        let (missed, failed, left) = (count(Outcome::Fail), count(Outcome::Failed), count(Outcome::LeftOut));
        let seconds: f64 = self.seconds.iter().map(|(_, seconds)| seconds).sum();
        writeln!(
            f,
            "{} targets met, {missed} missed, {failed} FAILED, {left} left out; {seconds:.0} s\n{}",
            count(Outcome::Pass),
            self.warning()
        )
    }
}

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
