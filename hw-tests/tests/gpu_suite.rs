//! The GPU suite on a simulated driver: every section runs, a failing one is reported without affecting the others, and the command
//! line reports the results.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "tests fail by panics")]

#[path = "../../gpu-kernels/tests/nvjpeg/simulated.rs"]
#[allow(dead_code, reason = "another target uses more of it")]
mod nvjpeg;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use clap::Parser;
use hw_tests::gpu::{Args, Outcome, Report, SuiteRow};
use serde_json::Value;
use tempfile::TempDir;
use test_services::gpu::{SimulatedDriver, compile, simulated_driver};

/// Replaces compute-sanitizer: checks its arguments and finds no errors.
const SANITIZER: &str = "#!/bin/sh
case \"$*\" in
*--tool*gpu*--few*--only*kernel*) echo '========= ERROR SUMMARY: 0 errors' ;;
*) exit 3 ;;
esac
";

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    args: Args,
}

/// A machine with simulated GPUs, nvJPEG, NVML and compute-sanitizer.
struct Machine {
    driver: &'static SimulatedDriver,
    nvjpeg: nvjpeg::Simulated,
    folder: TempDir,
}

impl Machine {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        compile("nvml.c", &folder.path().join("libnvidia-ml.so.1"));
        let sanitizer = folder.path().join("compute-sanitizer");
        std::fs::write(&sanitizer, SANITIZER).unwrap();
        std::fs::set_permissions(&sanitizer, std::fs::Permissions::from_mode(0o755)).unwrap();
        Self { driver: simulated_driver(), nvjpeg: nvjpeg::Simulated::new(), folder }
    }

    fn out(&self) -> PathBuf {
        self.folder.path().join("gpu.json")
    }

    /// Runs the suite on one of the GPUs.
    fn run(&self, gpu: u32, more: &[&str]) -> Report {
        let golden = bundle().join("golden");
        let (gpu, out) = (gpu.to_string(), self.out());
        let mut line = vec!["gpu", "--gpu", &gpu, "--seconds-per-measurement", "0.1"];
        line.extend(["--out", out.to_str().unwrap(), "--photos", golden.to_str().unwrap()]);
        let bundle = bundle();
        line.extend(["--bundle", bundle.to_str().unwrap(), "--folder"]);
        let mut folders = self.driver.folders();
        folders.extend(self.nvjpeg.folders());
        folders.push(self.folder.path().to_owned());
        line.extend(folders.iter().map(|folder| folder.to_str().unwrap()));
        line.extend(more);
        Cli::parse_from(line).args.measure().unwrap()
    }
}

fn bundle() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/fish/1")
}

const SECTIONS: [&str; 8] =
    ["kernel", "bandwidth", "decode", "engine", "end_to_end", "agreement", "nvml", "sanitizer"];

fn rows<'a>(report: &'a Report, section: &'a str) -> impl Iterator<Item = &'a SuiteRow> {
    report.rows.iter().filter(move |row| row.section == section)
}

/// The value of the only row with this name.
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
        "host time per batch",
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
    // During the poisoning of the kernel section's third tensor.
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
fn what_the_budget_leaves_out_is_reported() {
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
    // Failures during execution are visible only as unwritten values, or at the next synchronisation.
    machine.driver.fail(3, "kernel", 1, 1, false);
    let report = machine.run(3, &["--only", "kernel"]);
    let failed: Vec<&SuiteRow> = report.rows.iter().filter(|row| row.outcome == Outcome::Failed).collect();
    assert!(failed.len() == 1 && failed[0].note.contains("values were not written"), "{report}");
}

fn rig(arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weir-rig"));
    command.arg("gpu").args(arguments).envs(variables.iter().copied()).env_remove("WEIR_PHOTOS");
    command.output().unwrap()
}

#[test]
fn without_a_gpu_it_fails_immediately_with_a_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("gpu.json");
    let began = Instant::now();
    // Also on a machine with a driver, which then finds no GPU.
    let output = rig(&["--out", out.to_str().unwrap()], &[("CUDA_VISIBLE_DEVICES", "")]);
    let took = began.elapsed();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("NVIDIA") || text.contains("libcuda.so.1"), "{text}");
    assert!(text.contains("Remedy: "), "{text}");
    assert!(took < Duration::from_secs(10), "{took:?}");
    assert!(!out.exists());
}

#[test]
fn the_table_and_the_exit_code_report_the_results() {
    let dir = tempfile::tempdir().unwrap();
    compile("cuda.c", &dir.path().join("libcuda.so.1"));
    let (folder, out) = (dir.path().to_str().unwrap(), dir.path().join("gpu.json"));
    let common = ["--folder", folder, "--seconds-per-measurement", "0.1", "--out", out.to_str().unwrap()];
    let run = |more: &[&str]| rig(&[&common[..], more].concat(), &[]);
    let output = run(&["--gpu", "1", "--only", "bandwidth"]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("*** SIMULATED GPU") && text.contains("| simulated |"), "{text}");
    assert!(out.is_file());
    // Without NVML that section fails, and thus the suite.
    let output = run(&["--only", "bandwidth,nvml"]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("FAILED") && text.contains("libnvidia-ml.so.1 is not on this machine"), "{text}");
    assert!(text.contains("host time per batch"), "{text}");
    let output = run(&["--gpu", "99"]);
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && text.contains("there is no GPU 99"), "{text}");
}
