//! The result of a run of load, as a table and as JSON.

use std::collections::BTreeMap;
use std::fmt;

use comfy_table::{CellAlignment, Table};
use serde::Serialize;

use super::run::Spec;
use super::tally::{FailureCount, Latency, Tally};
use crate::process::Memory;

/// What the watched process and the rig used inside the counted window.
#[derive(Clone, Debug, Serialize)]
pub struct Usage {
    /// The server's CPU time, in seconds.
    pub cpu_s: f64,
    /// The rig's own CPU time, in seconds.
    pub rig_cpu_s: f64,
    /// 2xx responses between the two readings of the CPU time.
    pub ok: u64,
    /// The server's memory at the end.
    pub memory: Memory,
}

impl Usage {
    /// The server's CPU time per 2xx response, in milliseconds.
    #[must_use]
    pub fn cpu_ms_per_ok(&self) -> f64 {
        self.cpu_s * 1000.0 / self.ok as f64
    }
}

/// Totals of a run in addition to its tally.
pub(super) struct Run {
    /// The actual counted time: shorter than requested if the run ended early.
    pub(super) seconds: f64,
    /// Requests begun.
    pub(super) requests: u64,
    /// Requests of an open loop that were due.
    pub(super) due: u64,
    pub(super) usage: Option<Usage>,
}

/// The result of a run. Latencies are counted from when a request was due, which in an open loop is its
/// intended time, so that a stalled server does not reduce the measured latency.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The target.
    pub url: String,
    /// Clients at the same time.
    pub concurrency: usize,
    /// Requests per second that were intended, none in a closed loop.
    pub intended_per_s: Option<f64>,
    /// The counted time, in seconds.
    pub seconds: f64,
    /// 2xx responses per second.
    pub ok_per_s: f64,
    /// Requests begun, warm-up included.
    pub requests: u64,
    /// 2xx responses, warm-up included.
    pub successes: u64,
    /// Requests of an open loop that were due and for which no client was free before the end.
    pub unsent: u64,
    /// Latency of all 2xx.
    pub ok: Option<Latency>,
    /// Latency of every status.
    pub statuses: BTreeMap<u16, Latency>,
    /// Requests without a response, by kind.
    pub failures: BTreeMap<&'static str, FailureCount>,
    /// Connections opened again after the server closed one.
    pub reconnects: u64,
    /// Responses that arrived before the request was completely sent.
    pub early_replies: u64,
    /// What the server used, when its process is known.
    pub usage: Option<Usage>,
}

impl Report {
    pub(super) fn new(spec: &Spec, tally: &Tally, run: Run) -> Self {
        let per_second = tally.ok_in_window as f64 / run.seconds;
        Self {
            url: format!("http://{}{}", spec.target.host, spec.target.path),
            concurrency: spec.concurrency,
            intended_per_s: spec.rate,
            seconds: run.seconds,
            ok_per_s: if per_second.is_finite() { per_second } else { 0.0 },
            requests: run.requests,
            successes: tally.ok_ever,
            unsent: run.due.saturating_sub(run.requests),
            ok: tally.ok(),
            statuses: tally.statuses(),
            failures: tally.failures(),
            reconnects: tally.reconnects,
            early_replies: tally.early_replies,
            usage: run.usage,
        }
    }

    /// All failures in one line; `None` if every response was a 2xx.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        let bad = self.statuses.iter().filter(|(status, _)| !(200..300).contains(*status));
        let mut parts: Vec<String> =
            bad.map(|(status, latency)| format!("{} x status {status}", latency.count)).collect();
        parts.extend(self.failures.iter().map(|(kind, f)| format!("{} x {kind} ({})", f.count, f.first)));
        if self.unsent > 0 {
            parts.push(format!("{} never sent", self.unsent));
        }
        (!parts.is_empty()).then(|| parts.join(", "))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.intended_per_s {
            Some(rate) => format!("open loop at {rate} requests/s"),
            None => "closed loop".to_owned(),
        };
        writeln!(f, "{}: {kind}, {} clients, {} s", self.url, self.concurrency, self.seconds)?;
        let mut table = Table::new();
        table.load_style(comfy_table::presets::ASCII_MARKDOWN);
        table.set_header(["status", "count", "mean ms", "p50", "p90", "p99", "p99.9", "max"]);
        for (status, latency) in &self.statuses {
            let l = latency;
            let times = [l.mean, l.p50, l.p90, l.p99, l.p999, l.max].map(|ms| format!("{ms:.2}"));
            table.add_row([status.to_string(), l.count.to_string()].into_iter().chain(times));
        }
        for column in table.column_iter_mut() {
            column.set_cell_alignment(CellAlignment::Right);
        }
        writeln!(f, "{table}")?;
        writeln!(f, "{:.1} successes/s; {} requests begun, warm-up included", self.ok_per_s, self.requests)?;
        for (kind, failure) in &self.failures {
            writeln!(f, "{} without a response, {kind}: {}", failure.count, failure.first)?;
        }
        if self.unsent > 0 {
            writeln!(f, "{} were due but never sent: every client was busy", self.unsent)?;
        }
        if self.reconnects + self.early_replies > 0 {
            writeln!(f, "{} reconnects, {} early replies", self.reconnects, self.early_replies)?;
        }
        if let Some(usage) = &self.usage {
            let (cpu, rig) = (usage.cpu_s / self.seconds, usage.rig_cpu_s / self.seconds);
            writeln!(
                f,
                "server: {:.2} ms CPU per success, {cpu:.2} cores, {} MB resident (peak {}); rig: {rig:.2} cores",
                usage.cpu_ms_per_ok(),
                usage.memory.resident / 1_000_000,
                usage.memory.peak / 1_000_000
            )?;
        }
        Ok(())
    }
}
