//! The command line: refused arguments, output files, and exit codes.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod server;

use std::process::{Command, Output};

use server::Server;

fn rig(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_weir-rig")).args(arguments).output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn frames_are_written() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("new/folder");
    let output = rig(&["frames", "--out", out.to_str().unwrap(), "--size", "vga", "--count", "2"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let bytes = std::fs::read(out.join("vga-001.jpg")).unwrap();
    assert_eq!(turbojpeg::read_header(&bytes).unwrap().height, 480);
    assert!(!out.join("vga-002.jpg").exists());
}

#[test]
fn load_on_another_machine_is_refused() {
    let output = rig(&["load", "--url", "http://192.0.2.1/predict"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("--allow-remote"), "{}", stderr(&output));
}

#[test]
fn no_success_is_exit_code_1() {
    let url = format!("http://127.0.0.1:{}/predict", server::free_port());
    let output = rig(&["load", "--url", &url, "--duration", "0.2", "--warmup", "0"]);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(String::from_utf8_lossy(&output.stdout).contains("connect"));
}

#[test]
fn a_run_prints_a_table_and_writes_json() {
    let server = Server::start(|exchange| {
        assert!(exchange.read_head()?.starts_with("POST /predict?camera=dock-3 HTTP/1.1\r\n"));
        exchange.read_body()?;
        exchange.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
    });
    let dir = tempfile::tempdir().unwrap();
    let json = dir.path().join("load.json");
    let url = format!("http://127.0.0.1:{}/predict", server.port);
    let output = rig(&[
        "load",
        "--url",
        &url,
        "--requests",
        "40",
        "--duration",
        "60",
        "--warmup",
        "0",
        "--camera",
        "dock-3",
        "--json",
        json.to_str().unwrap(),
    ]);
    assert!(output.status.success(), "{}", stderr(&output));
    let table = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(table.contains("p99.9") && table.contains("successes/s"), "{table}");
    let report: serde_json::Value = serde_json::from_slice(&std::fs::read(json).unwrap()).unwrap();
    assert_eq!(report["statuses"]["200"]["count"], 40);
    assert_eq!(report["failures"], serde_json::json!({}));
    assert!(report["ok"]["p50"].as_f64().unwrap() > 0.0);
}

#[test]
fn values_out_of_bounds_are_named() {
    for (flag, value) in [("--duration", "0"), ("--rate", "1e9"), ("--concurrency", "0"), ("--warmup", "x")] {
        let output = rig(&["load", flag, value]);
        assert_eq!(output.status.code(), Some(2), "{flag} {value}");
        assert!(stderr(&output).contains(flag) && stderr(&output).contains(value), "{}", stderr(&output));
    }
}
