//! The GPU suite on a simulated driver: every section runs, one that fails is reported and leaves the others be, and the command
//! line says what there is to say.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "tests fail by panics")]

mod command;
#[path = "../../../gpu-kernels/tests/nvjpeg/simulated.rs"]
#[allow(dead_code, reason = "another target uses more of it")]
mod nvjpeg;
mod sections;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use clap::Parser;
use hw_tests::gpu::{Args, Report};
use tempfile::TempDir;
use test_services::gpu::{SimulatedDriver, compile, simulated_driver};

/// Stands in for compute-sanitizer: looks at what it is told to run, and finds nothing.
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
