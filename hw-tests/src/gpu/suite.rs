//! The sections in their order, each contained: on a thread that may hang or panic without taking the report with it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::Context;

use super::report::{Outcome, Report, SuiteRow};
use super::setup::Setup;
use super::sheet::{Sheet, Told};
use super::{agreement, bandwidth, decode, end_to_end, engine, kernel, nvml, sanitizer};

/// What a section may go on for after the budget has ended, so that a measurement under way comes to its end.
const GRACE: Duration = Duration::from_secs(20);

/// A section of the suite.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum Which {
    /// The preprocess kernel against the definition.
    Kernel,
    /// The kernel's use of the memory's bandwidth, and the host's overhead.
    Bandwidth,
    /// JPEGs decoded by nvJPEG, by the CPU, and by both.
    Decode,
    /// The network alone, by batch.
    Engine,
    /// JPEG to species, in-process and over HTTP.
    EndToEnd,
    /// The GPU's predictions against the CPU's.
    Agreement,
    /// What the GPU reports of itself.
    Nvml,
    /// The kernel under compute-sanitizer.
    Sanitizer,
}

impl Which {
    const EACH: [Self; 8] = [
        Self::Kernel,
        Self::Bandwidth,
        Self::Decode,
        Self::Engine,
        Self::EndToEnd,
        Self::Agreement,
        Self::Nvml,
        Self::Sanitizer,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Bandwidth => "bandwidth",
            Self::Decode => "decode",
            Self::Engine => "engine",
            Self::EndToEnd => "end_to_end",
            Self::Agreement => "agreement",
            Self::Nvml => "nvml",
            Self::Sanitizer => "sanitizer",
        }
    }

    /// Seconds without which it is not begun.
    fn least_seconds(self) -> f64 {
        match self {
            Self::Nvml => 0.0,
            _ => 2.0,
        }
    }

    fn run(self, setup: &Setup, sheet: &Sheet) -> anyhow::Result<()> {
        match self {
            Self::Kernel => kernel::run(setup, sheet),
            Self::Bandwidth => bandwidth::run(setup, sheet),
            Self::Decode => decode::run(setup, sheet),
            Self::Engine => engine::run(setup, sheet),
            Self::EndToEnd => end_to_end::run(setup, sheet),
            Self::Agreement => agreement::run(setup, sheet),
            Self::Nvml => nvml::run(setup, sheet),
            Self::Sanitizer => sanitizer::run(setup, sheet),
        }
    }
}

/// Runs what is asked for; the JSON is written after each section, in case the process does not see the end.
pub(super) fn run(setup: Setup, until: Instant, out: &Path) -> anyhow::Result<Report> {
    let chosen = |which: &Which| setup.args.only.is_empty() || setup.args.only.contains(which);
    let sections: Vec<Which> = Which::EACH.into_iter().filter(chosen).collect();
    let mut report = Report {
        about: setup.about(),
        simulated: setup.simulated,
        seconds: Vec::new(),
        rows: Vec::new(),
        hangs: false,
    };
    report.write(out)?;
    let (send, told) = channel();
    let names: Vec<&'static str> = sections.iter().map(|which| which.name()).collect();
    let thread = std::thread::Builder::new().name("gpu-suite".into());
    let work = thread.spawn(move || run_all(&setup, &sections, until, &send)).context("starting a thread")?;
    if listen(&told, until + GRACE, &mut report, &names, out)? {
        // It has told all that it had to tell, and caught what it panicked with.
        let _ = work.join();
    } else {
        report.hangs = true;
    }
    Ok(report)
}

/// Collects what is told; false when the thread did not come to its end in time.
fn listen(
    told: &Receiver<Told>,
    end: Instant,
    report: &mut Report,
    names: &[&'static str],
    out: &Path,
) -> anyhow::Result<bool> {
    let mut current = None;
    loop {
        match told.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok(Told::Began(name)) => current = Some(name),
            Ok(Told::Row(row)) => report.rows.push(row),
            Ok(Told::Ended(name, seconds)) => {
                report.seconds.push((name, seconds));
                report.write(out)?;
            }
            Err(RecvTimeoutError::Disconnected) => return Ok(true),
            Err(RecvTimeoutError::Timeout) => break,
        }
    }
    let ended = |name: &str| report.seconds.iter().any(|(ended, _)| *ended == name);
    let missing: Vec<&'static str> = names.iter().copied().filter(|name| !ended(name)).collect();
    for section in missing {
        let (outcome, note) = match current {
            Some(name) if name == section => (Outcome::Failed, "did not come to its end within the budget"),
            _ => (Outcome::LeftOut, "the section before it did not come to its end"),
        };
        let (what, note) = ("the section".to_owned(), note.to_owned());
        report.rows.push(SuiteRow { section, what, value: None, unit: "", target: None, outcome, note });
    }
    Ok(false)
}

fn run_all(setup: &Setup, sections: &[Which], until: Instant, send: &Sender<Told>) {
    for &which in sections {
        let (section, began) = (which.name(), Instant::now());
        eprintln!("{section}");
        let _ = send.send(Told::Began(section));
        let sheet = Sheet { section, simulated: setup.simulated, until, send: send.clone() };
        let device = setup.device();
        if sheet.has_time("the section", which.least_seconds()) {
            match catch_unwind(AssertUnwindSafe(|| which.run(setup, &sheet))) {
                Ok(Ok(())) => {}
                Ok(Err(error)) => sheet.failed("the section", format!("{error:#}")),
                Err(_) => sheet.failed("the section", "it panicked; see above"),
            }
        }
        // A section that lost the GPU must not lose it for the others: who opens it next gets a new context.
        if let Ok(device) = device
            && device.synchronize().is_err_and(|error| error.is_lost())
        {
            device.lost();
        }
        let _ = send.send(Told::Ended(section, began.elapsed().as_secs_f64()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        Report {
            about: serde_json::Value::Null,
            simulated: false,
            seconds: Vec::new(),
            rows: Vec::new(),
            hangs: false,
        }
    }

    #[test]
    fn a_section_that_hangs_is_reported_with_those_behind_it() {
        let dir = tempfile::tempdir().unwrap();
        let (send, told) = channel();
        for told in [Told::Began("kernel"), Told::Ended("kernel", 1.0), Told::Began("decode")] {
            send.send(told).unwrap();
        }
        let sheet = Sheet { section: "decode", simulated: false, until: Instant::now(), send: send.clone() };
        sheet.note("a rate", 3.0, "images/s", "");
        let (mut report, names) = (report(), ["kernel", "decode", "nvml"]);
        let end = Instant::now() + Duration::from_millis(50);
        assert!(!listen(&told, end, &mut report, &names, &dir.path().join("gpu.json")).unwrap());
        let rows: Vec<_> = report.rows.iter().map(|row| (row.section, row.outcome)).collect();
        assert_eq!(
            rows,
            [("decode", Outcome::Info), ("decode", Outcome::Failed), ("nvml", Outcome::LeftOut)]
        );
        assert!(!report.passed());
        drop((send, sheet));
    }

    #[test]
    fn speed_has_no_target_on_a_simulated_gpu_and_what_is_right_has() {
        let (send, told) = channel();
        let sheet = |simulated| Sheet { section: "x", simulated, until: Instant::now(), send: send.clone() };
        for simulated in [false, true] {
            sheet(simulated).hold_speed("rate", 1.0, "", crate::bench::Target::AtLeast(2.0), "");
            sheet(simulated).hold("right", 1.0, "", crate::bench::Target::AtLeast(2.0), "");
            assert!(!sheet(simulated).has_time("more", 1.0));
        }
        let outcomes: Vec<Outcome> = told
            .try_iter()
            .filter_map(|told| match told {
                Told::Row(row) => Some(row.outcome),
                _ => None,
            })
            .collect();
        use Outcome::{Fail, LeftOut, Simulated};
        assert_eq!(outcomes, [Fail, Fail, LeftOut, Simulated, Fail, LeftOut]);
    }
}
