//! Counts outcomes while load runs and summarises them as percentiles.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::{Duration, Instant};

use anyhow::Context;
use hdrhistogram::Histogram;
use serde::Serialize;

use super::connection::Failure;

/// Latencies of one kind of response, in milliseconds.
#[derive(Clone, Debug, Serialize)]
pub struct Latency {
    /// Number of responses.
    pub count: u64,
    /// Mean.
    pub mean: f64,
    /// Median.
    pub p50: f64,
    /// 90 % are at most this.
    pub p90: f64,
    /// 99 % are at most this.
    pub p99: f64,
    /// 99.9 % are at most this.
    pub p999: f64,
    /// The longest.
    pub max: f64,
}

/// Requests without a response, of one kind.
#[derive(Clone, Debug, Serialize)]
pub struct FailureCount {
    /// Number of requests.
    pub count: u64,
    /// The error text of the first one.
    pub first: String,
}

/// A recorder of latencies from 1 microsecond to 10 minutes, exact to three digits.
#[derive(Clone, Debug)]
pub(super) struct Recorder(Histogram<u64>);

impl Recorder {
    pub(super) fn new() -> anyhow::Result<Self> {
        Ok(Self(Histogram::new_with_bounds(1, 600_000_000, 3).context("making a histogram")?))
    }

    pub(super) fn record(&mut self, latency: Duration) {
        self.0.saturating_record(u64::try_from(latency.as_micros()).unwrap_or(u64::MAX));
    }

    pub(super) fn sum_up(&self) -> Latency {
        let at = |quantile| self.0.value_at_quantile(quantile) as f64 / 1000.0;
        Latency {
            count: self.0.len(),
            mean: self.0.mean() / 1000.0,
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: self.0.max() as f64 / 1000.0,
        }
    }
}

/// All counters. Requests that were due outside of the measured window are not counted.
#[derive(Debug)]
pub(super) struct Tally {
    window: Range<Instant>,
    template: Recorder,
    ok: Recorder,
    statuses: BTreeMap<u16, Recorder>,
    failures: BTreeMap<&'static str, FailureCount>,
    /// 2xx responses that arrived inside the window, whenever they were due.
    pub(super) ok_in_window: u64,
    /// 2xx responses since the start, including the warm-up.
    pub(super) ok_ever: u64,
    /// Connections opened beyond the first of each client.
    pub(super) reconnects: u64,
    /// Responses that arrived before the request was completely sent.
    pub(super) early_replies: u64,
}

impl Tally {
    pub(super) fn new(window: Range<Instant>) -> anyhow::Result<Self> {
        let template = Recorder::new()?;
        Ok(Self {
            window,
            ok: template.clone(),
            template,
            statuses: BTreeMap::new(),
            failures: BTreeMap::new(),
            ok_in_window: 0,
            ok_ever: 0,
            reconnects: 0,
            early_replies: 0,
        })
    }

    /// Counts a response to a request that was due at `due` and completed at `end`.
    pub(super) fn response(&mut self, due: Instant, end: Instant, status: u16, early: bool) {
        let ok = (200..300).contains(&status);
        self.ok_ever += u64::from(ok);
        self.ok_in_window += u64::from(ok && self.window.contains(&end));
        if !self.window.contains(&due) {
            return;
        }
        let latency = end - due;
        self.statuses.entry(status).or_insert_with(|| self.template.clone()).record(latency);
        if ok {
            self.ok.record(latency);
        }
        self.early_replies += u64::from(early);
    }

    /// Counts a request without a response.
    pub(super) fn failure(&mut self, due: Instant, failure: &Failure) {
        if self.window.contains(&due) {
            let new = || FailureCount { count: 0, first: failure.to_string() };
            self.failures.entry(failure.kind()).or_insert_with(new).count += 1;
        }
    }

    /// Latency of the 2xx responses, `None` if there were none.
    pub(super) fn ok(&self) -> Option<Latency> {
        Some(self.ok.sum_up()).filter(|latency| latency.count > 0)
    }

    pub(super) fn statuses(&self) -> BTreeMap<u16, Latency> {
        self.statuses.iter().map(|(status, recorder)| (*status, recorder.sum_up())).collect()
    }

    pub(super) fn failures(&self) -> BTreeMap<&'static str, FailureCount> {
        self.failures.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_of_a_known_distribution() {
        let mut recorder = Recorder::new().unwrap();
        for ms in 1..=1000 {
            recorder.record(Duration::from_millis(ms));
        }
        let latency = recorder.sum_up();
        assert_eq!(latency.count, 1000);
        for (is, should) in [
            (latency.mean, 500.5),
            (latency.p50, 500.0),
            (latency.p90, 900.0),
            (latency.p99, 990.0),
            (latency.p999, 999.0),
            (latency.max, 1000.0),
        ] {
            assert!((is / should - 1.0).abs() < 0.002, "{is} is not {should}");
        }
    }

    #[test]
    fn one_slow_request_in_a_hundred_shows_in_the_tail_only() {
        let mut recorder = Recorder::new().unwrap();
        for _ in 0..198 {
            recorder.record(Duration::from_millis(2));
        }
        recorder.record(Duration::from_secs(1));
        recorder.record(Duration::from_secs(1));
        let latency = recorder.sum_up();
        assert!(latency.p90 < 2.1 && latency.p99 < 2.1 && latency.p999 > 990.0, "{latency:?}");
    }

    #[test]
    fn statuses_are_apart_and_the_window_is_kept() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut tally = Tally::new(at(100)..at(200)).unwrap();
        tally.response(at(50), at(150), 200, false);
        tally.response(at(100), at(110), 200, false);
        tally.response(at(199), at(260), 201, false);
        tally.response(at(150), at(151), 429, true);
        tally.response(at(200), at(201), 200, true);
        tally.failure(at(99), &Failure::Timeout);
        tally.failure(at(120), &Failure::Timeout);
        let statuses = tally.statuses();
        assert_eq!(
            statuses.iter().map(|(s, l)| (*s, l.count)).collect::<Vec<_>>(),
            [(200, 1), (201, 1), (429, 1)]
        );
        assert_eq!(tally.ok().unwrap().count, 2);
        assert!((tally.ok().unwrap().max - 61.0).abs() < 0.1);
        assert_eq!((tally.ok_in_window, tally.ok_ever, tally.early_replies), (2, 4, 1));
        assert_eq!(tally.failures()["timeout"].count, 1);
    }

    #[test]
    fn nothing_has_no_percentiles() {
        let now = Instant::now();
        assert!(Tally::new(now..now).unwrap().ok().is_none());
    }
}
