//! Results of a bench: numbers and their targets, as a table, as markdown and as JSON.

use std::fmt;

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

/// The target of a number.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// This or less.
    AtMost(f64),
    /// This or more.
    AtLeast(f64),
    /// Less than this.
    Below(f64),
}

impl Target {
    /// Whether a number meets it. NaN meets no target.
    #[must_use]
    pub fn is_met(self, value: f64) -> bool {
        match self {
            Self::AtMost(bound) => value <= bound,
            Self::AtLeast(bound) => value >= bound,
            Self::Below(bound) => value < bound,
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtMost(bound) => write!(f, "at most {bound}"),
            Self::AtLeast(bound) => write!(f, "at least {bound}"),
            Self::Below(bound) => write!(f, "below {bound}"),
        }
    }
}

/// One number.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// What was measured.
    pub what: String,
    /// The number.
    pub value: f64,
    /// Its unit; empty for a count or a ratio.
    pub unit: &'static str,
    /// Its target; `None` for informational numbers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<Target>,
    /// Whether the target is met.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub met: Option<bool>,
}

/// The result of one bench.
#[derive(Clone, Debug, Serialize)]
pub struct Section {
    /// The bench's name.
    pub name: &'static str,
    /// How it was measured, in a sentence or two.
    pub method: String,
    /// Its numbers.
    pub rows: Vec<Row>,
}

impl Section {
    /// A section without numbers so far.
    #[must_use]
    pub fn new(name: &'static str, method: impl Into<String>) -> Self {
        Self { name, method: method.into(), rows: Vec::new() }
    }

    /// Adds a number that has a target.
    pub fn hold(&mut self, what: impl Into<String>, value: f64, unit: &'static str, target: Target) {
        let met = Some(target.is_met(value));
        self.rows.push(Row { what: what.into(), value, unit, target: Some(target), met });
    }

    /// Adds an informational number.
    pub fn note(&mut self, what: impl Into<String>, value: f64, unit: &'static str) {
        self.rows.push(Row { what: what.into(), value, unit, target: None, met: None });
    }

    /// Whether every target is met.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.rows.iter().all(|row| row.met != Some(false))
    }
}

/// As a markdown table, which also reads well on a terminal.
impl fmt::Display for Section {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "### {}\n\n{}\n", self.name, self.method)?;
        let mut table = Table::new();
        table.load_style(presets::ASCII_MARKDOWN);
        table.set_header(["what", "measured", "target", "result"]);
        for row in &self.rows {
            let unit = if row.unit.is_empty() { String::new() } else { format!(" {}", row.unit) };
            let target = row.target.map(|target| format!("{target}{unit}")).unwrap_or_default();
            let result = row.met.map_or("", |met| if met { "PASS" } else { "FAIL" });
            table.add_row([row.what.clone(), format!("{}{unit}", short(row.value)), target, result.into()]);
        }
        if let Some(column) = table.column_mut(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        writeln!(f, "{table}")
    }
}

/// Three significant digits, or all digits of a whole number.
pub(crate) fn short(value: f64) -> String {
    let digits = match value.abs() {
        _ if value.fract() == 0.0 => 0,
        large if large >= 100.0 => 0,
        middle if middle >= 10.0 => 1,
        _ => 2,
    };
    format!("{value:.digits$}")
}

/// The middle value; the mean of the two middle ones of an even number. NaN if there is none.
#[must_use]
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        odd if odd % 2 == 1 => sorted[odd / 2],
        even => f64::midpoint(sorted[even / 2 - 1], sorted[even / 2]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_hold_at_their_bounds() {
        assert!(Target::AtMost(2.0).is_met(2.0) && !Target::AtMost(2.0).is_met(2.01));
        assert!(Target::AtLeast(2.0).is_met(2.0) && !Target::AtLeast(2.0).is_met(1.99));
        assert!(Target::Below(2.0).is_met(1.99) && !Target::Below(2.0).is_met(2.0));
        for target in [Target::AtMost(2.0), Target::AtLeast(2.0), Target::Below(2.0)] {
            assert!(!target.is_met(f64::NAN));
        }
    }

    #[test]
    fn one_missed_target_fails_the_section() {
        let mut section = Section::new("memory", "How.");
        section.note("resident", 1e9, "MB");
        section.hold("peak", 150.0, "MB", Target::Below(200.0));
        assert!(section.passed());
        section.hold("peak", 250.5, "MB", Target::Below(200.0));
        assert!(!section.passed());
        let text = section.to_string();
        assert!(text.contains("PASS") && text.contains("FAIL") && text.contains("below 200 MB"), "{text}");
    }

    #[test]
    fn medians() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn numbers_are_short() {
        let shown = [1.0, 0.123_4, 12.34, 123.4, 38.0].map(short);
        assert_eq!(shown, ["1", "0.12", "12.3", "123", "38"]);
    }
}
