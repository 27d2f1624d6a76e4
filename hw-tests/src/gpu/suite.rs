//! Runs the sections in order, isolated on a thread that may hang or panic without losing the report.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::Context;

use super::report::{Outcome, Report, Sheet, SuiteEvent, SuiteRow};
use super::setup::Setup;
use super::{agreement, bandwidth, decode, end_to_end, engine, kernel, nvml};

/// How long a section may continue after the budget, so that a running measurement can complete.
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
    /// The GPU's readings through NVML.
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

    /// Remaining seconds that are required to start it.
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
            Self::Sanitizer => kernel::sanitize(setup, sheet),
        }
    }
}

/// Runs the selected sections; the JSON is written after each section, in case the process does not complete.
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
    let (send, events) = channel();
    let names: Vec<&'static str> = sections.iter().map(|which| which.name()).collect();
    let thread = std::thread::Builder::new().name("gpu-suite".into());
    let work = thread.spawn(move || run_all(&setup, &sections, until, &send)).context("starting a thread")?;
    if collect(&events, until + GRACE, &mut report, &names, out)? {
        // All of its messages were received, and its panics are caught.
        let _ = work.join();
    } else {
        report.hangs = true;
    }
    Ok(report)
}

/// Collects the messages; false if the thread did not end in time.
fn collect(
    events: &Receiver<SuiteEvent>,
    end: Instant,
    report: &mut Report,
    names: &[&'static str],
    out: &Path,
) -> anyhow::Result<bool> {
    let mut current = None;
    loop {
        match events.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok(SuiteEvent::Started(name)) => current = Some(name),
            Ok(SuiteEvent::Row(row)) => report.rows.push(row),
            Ok(SuiteEvent::Ended(name, seconds)) => {
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
            Some(name) if name == section => (Outcome::Failed, "did not complete within the budget"),
            _ => (Outcome::LeftOut, "the previous section did not complete"),
        };
        let (what, note) = ("the section".to_owned(), note.to_owned());
        report.rows.push(SuiteRow { section, what, value: None, unit: "", target: None, outcome, note });
    }
    Ok(false)
}

fn run_all(setup: &Setup, sections: &[Which], until: Instant, send: &Sender<SuiteEvent>) {
    for &which in sections {
        let (section, began) = (which.name(), Instant::now());
        eprintln!("{section}");
        let _ = send.send(SuiteEvent::Started(section));
        let sheet = Sheet { section, simulated: setup.simulated, until, send: send.clone() };
        let device = setup.device();
        if sheet.has_time("the section", which.least_seconds()) {
            match catch_unwind(AssertUnwindSafe(|| which.run(setup, &sheet))) {
                Ok(Ok(())) => {}
                Ok(Err(error)) => sheet.failed("the section", format!("{error:#}")),
                Err(_) => sheet.failed("the section", "it panicked; see above"),
            }
        }
        // If a section lost the GPU, the next one that opens it gets a new context.
        if let Ok(device) = device
            && device.synchronize().is_err_and(|error| error.is_lost())
        {
            device.lost();
        }
        let _ = send.send(SuiteEvent::Ended(section, began.elapsed().as_secs_f64()));
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
        let (send, events) = channel();
        for event in
            [SuiteEvent::Started("kernel"), SuiteEvent::Ended("kernel", 1.0), SuiteEvent::Started("decode")]
        {
            send.send(event).unwrap();
        }
        let sheet = Sheet { section: "decode", simulated: false, until: Instant::now(), send: send.clone() };
        sheet.note("a rate", 3.0, "images/s", "");
        let (mut report, names) = (report(), ["kernel", "decode", "nvml"]);
        let end = Instant::now() + Duration::from_millis(50);
        assert!(!collect(&events, end, &mut report, &names, &dir.path().join("gpu.json")).unwrap());
        let rows: Vec<_> = report.rows.iter().map(|row| (row.section, row.outcome)).collect();
        assert_eq!(
            rows,
            [("decode", Outcome::Info), ("decode", Outcome::Failed), ("nvml", Outcome::LeftOut)]
        );
        assert!(!report.passed());
        drop((send, sheet));
    }

    #[test]
    fn speed_has_no_target_on_a_simulated_gpu_but_correctness_has() {
        let (send, events) = channel();
        let sheet = |simulated| Sheet { section: "x", simulated, until: Instant::now(), send: send.clone() };
        for simulated in [false, true] {
            sheet(simulated).hold_speed("rate", 1.0, "", crate::bench::Target::AtLeast(2.0), "");
            sheet(simulated).hold("right", 1.0, "", crate::bench::Target::AtLeast(2.0), "");
            assert!(!sheet(simulated).has_time("more", 1.0));
        }
        let outcomes: Vec<Outcome> = events
            .try_iter()
            .filter_map(|event| match event {
                SuiteEvent::Row(row) => Some(row.outcome),
                _ => None,
            })
            .collect();
        use Outcome::{Fail, LeftOut, Simulated};
        assert_eq!(outcomes, [Fail, Fail, LeftOut, Simulated, Fail, LeftOut]);
    }
}
