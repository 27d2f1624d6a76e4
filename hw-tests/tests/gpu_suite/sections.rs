//! The suite in this process.

use hw_tests::gpu::{Outcome, SuiteRow};
use serde_json::Value;

use super::*;

const SECTIONS: [&str; 8] =
    ["kernel", "bandwidth", "decode", "engine", "end_to_end", "agreement", "nvml", "sanitizer"];

fn rows<'a>(report: &'a Report, section: &'a str) -> impl Iterator<Item = &'a SuiteRow> {
    report.rows.iter().filter(move |row| row.section == section)
}

/// The value of the only row that is called so.
fn value(report: &Report, what: &str) -> f64 {
    let found: Vec<&SuiteRow> = report.rows.iter().filter(|row| row.what.contains(what)).collect();
    assert_eq!(found.len(), 1, "{what}: {found:?}");
    found[0].value.unwrap()
}

#[test]
fn every_section_runs_and_finds_nothing_wrong() {
    let machine = Machine::new();
    let report = machine.run(0, &[]);
    assert!(report.passed(), "{report}");
    for section in SECTIONS {
        assert!(rows(&report, section).count() > 1, "{section}: {report}");
    }
    for row in rows(&report, "kernel") {
        let most = if row.what.starts_with("RGB, F32") { 0.01 } else { 1.01 };
        assert!(row.outcome == Outcome::Pass && row.value.unwrap() <= most, "{row:?}");
    }
    // Four layouts in two types of element, and the photos.
    assert_eq!(rows(&report, "kernel").count(), 9);
    let simulated = [
        "planar 4:2:0, 1080p, batch 2: share",
        "RGB, 1080p, batch 2: share",
        "host's time a batch",
        "1080p: of the sum of both alone",
        "host, 1080p: of the decoders' rate",
        "host, 224x224: of the engine's rate",
    ];
    for what in simulated {
        let row = report.rows.iter().find(|row| row.what.contains(what)).unwrap_or_else(|| panic!("{what}"));
        assert!(row.outcome == Outcome::Simulated && row.value.unwrap() > 0.0, "{row:?}");
    }
    for what in [
        "copy: bytes read and written",
        "vga: nvJPEG Hardware, batch 2, 2 threads",
        "1080p: CPU and nvJPEG at once",
        "host, batch 2",
        "host, vga: JPEG to species",
        "utilisation during end_to_end, most",
    ] {
        assert!(value(&report, what) > 0.0, "{what}");
    }
    assert_eq!(value(&report, "the same species first, of 2"), 100.0);
    assert_eq!(value(&report, "golden cases right, of 2"), 2.0);
    let text = report.to_string();
    assert!(text.starts_with("\n*** SIMULATED GPU") && text.contains("Simulated GPU 0"), "{text}");
    assert!(text.contains("not measured: the daemon is started with the cuda provider"), "{text}");

    let json: Value = serde_json::from_slice(&std::fs::read(machine.out()).unwrap()).unwrap();
    assert_eq!(json["rows"].as_array().unwrap().len(), report.rows.len());
    assert_eq!((&json["simulated"], &json["passed"]), (&Value::Bool(true), &Value::Bool(true)));
    assert_eq!(json["sections"].as_array().unwrap().len(), SECTIONS.len());
    let about = &json["about"];
    assert_eq!(about["gpu"]["name"], "Simulated GPU 0");
    assert_eq!(about["gpu"]["capability"], "9.0");
    assert_eq!(about["gpu"]["driver"], "driver for CUDA 13.0");
    assert_eq!(about["providers"], serde_json::json!(["host"]));
    assert!(about["libraries"]["libnvjpeg.so.13"].as_str().unwrap().ends_with("libnvjpeg.so.13"));
    assert!(about["date"].as_str().unwrap().ends_with('Z') && about["command"].is_array(), "{about}");

    let driver = machine.driver;
    machine.nvjpeg.check();
    assert_eq!((driver.blocks(0), driver.users(0), driver.violations()), (0, 0, 0));
}

#[test]
fn a_section_that_loses_the_gpu_is_reported_and_the_others_run() {
    let machine = Machine::new();
    // While the kernel section poisons its third tensor.
    machine.driver.fail(1, "cuMemsetD8Async", 2, 719, true);
    let report = machine.run(1, &["--only", "kernel,bandwidth,engine,nvml"]);
    assert!(!report.passed());
    let failed: Vec<&SuiteRow> = report.rows.iter().filter(|row| row.outcome == Outcome::Failed).collect();
    assert_eq!(failed.len(), 1, "{report}");
    assert!(failed[0].section == "kernel" && failed[0].note.contains("719"), "{:?}", failed[0]);
    for section in ["bandwidth", "engine", "nvml"] {
        assert!(rows(&report, section).count() > 1, "{section}: {report}");
    }
    assert!(report.to_string().contains("1 FAILED"), "{report}");
    let driver = machine.driver;
    assert_eq!((driver.blocks(1), driver.users(1), driver.violations()), (0, 0, 0));
}

#[test]
fn what_the_budget_leaves_out_is_said() {
    let machine = Machine::new();
    let report = machine.run(2, &["--budget", "0.5"]);
    assert!(!report.passed());
    for section in SECTIONS {
        let left = rows(&report, section).filter(|row| row.outcome == Outcome::LeftOut).count();
        assert!(left == 1 || section == "nvml", "{section}: {report}");
    }
    let json: Value = serde_json::from_slice(&std::fs::read(machine.out()).unwrap()).unwrap();
    assert_eq!(json["passed"], false);
    assert!(json["rows"].as_array().unwrap().iter().any(|row| row["outcome"] == "left_out"));
}

#[test]
fn a_tensor_that_the_kernel_does_not_write_fails_the_kernel_section() {
    let machine = Machine::new();
    // What fails while it runs shows only in what it has not written, or when it is waited for.
    machine.driver.fail(3, "kernel", 1, 1, false);
    let report = machine.run(3, &["--only", "kernel"]);
    let failed: Vec<&SuiteRow> = report.rows.iter().filter(|row| row.outcome == Outcome::Failed).collect();
    assert!(failed.len() == 1 && failed[0].note.contains("values were not written"), "{report}");
}
