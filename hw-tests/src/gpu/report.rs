//! Results of the suite: one table, and JSON with all numbers.

use std::fmt;
use std::path::Path;

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
