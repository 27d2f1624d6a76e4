//! The command, as a process.

use std::process::{Command, Output};
use std::time::{Duration, Instant};

use super::*;

fn rig(arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weir-rig"));
    command.arg("gpu").args(arguments).envs(variables.iter().copied()).env_remove("WEIR_PHOTOS");
    command.output().unwrap()
}

#[test]
fn without_a_gpu_it_ends_at_once_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("gpu.json");
    let began = Instant::now();
    // On a machine with a driver that finds none.
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
fn the_table_and_the_exit_code_say_what_was_found() {
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
    // There is no NVML: that section fails, and with it the whole.
    let output = run(&["--only", "bandwidth,nvml"]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("FAILED") && text.contains("libnvidia-ml.so.1 is not on this machine"), "{text}");
    assert!(text.contains("host's time a batch"), "{text}");
    let output = run(&["--gpu", "99"]);
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && text.contains("there is no GPU 99"), "{text}");
}
