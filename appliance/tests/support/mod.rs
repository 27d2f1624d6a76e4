//! A running daemon for tests: the real binary on a free port with its own data directory, and a plain HTTP client
//! that can also send invalid requests.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic, unreachable_pub)]

pub mod client;
pub mod cloud;
pub mod load;
pub mod models;
pub mod pictures;

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

pub use client::{Reply, get, post};

/// How long a start, a log line or an end may take on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(120);

/// A ready daemon. It is killed when dropped.
pub struct Daemon {
    pub child: Child,
    pub address: SocketAddr,
    /// The admin listener, if there is one.
    pub admin: Option<SocketAddr>,
    pub data: TempDir,
    log: crossbeam_channel::Receiver<String>,
}

/// The `weir` command without settings from the environment of the tests.
pub fn weir() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weir"));
    let of_a_deployment = ["WEIR__", "KAFKA_", "REDIS_", "AWS_", "S3_", "MLFLOW_"];
    for (name, _) in std::env::vars().filter(|(name, _)| of_a_deployment.iter().any(|p| name.starts_with(p)))
    {
        command.env_remove(name);
    }
    command
        .env("WEIR__MODEL__BUNDLE", bundle())
        .env("WEIR__HTTP__ADMIN_LISTEN", "127.0.0.1:0")
        .stdin(Stdio::null());
    command
}

/// `weir serve` with a data directory on a separate file system of 1 MiB, and that directory. The mount exists
/// as long as the mount namespace of the process.
pub fn on_a_small_disk() -> (Command, TempDir) {
    let data = tempfile::tempdir().unwrap();
    let program = weir();
    let mut command = Command::new("unshare");
    // An ordinary user may mount in a user namespace of their own; root needs none.
    if !rustix::process::geteuid().is_root() {
        command.args(["--user", "--map-root-user"]);
    }
    command
        .args(["--mount", "--propagation", "private", "sh", "-c"])
        .arg("mount -t tmpfs -o size=1m weir \"$1\" && exec \"$2\" serve --listen 127.0.0.1:0 --data-dir \"$1\"")
        .arg("sh")
        .arg(data.path())
        .arg(program.get_program());
    for (name, value) in program.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    (command, data)
}

/// The default bundle.
pub fn bundle() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../models/fish/1")
        .canonicalize()
        .expect("models/fish/1 is missing")
}

/// The first golden picture of the default bundle and its label.
pub fn sample() -> (Vec<u8>, String) {
    let manifest: toml::Table =
        std::fs::read_to_string(bundle().join("bundle.toml")).unwrap().parse().unwrap();
    let golden = &manifest["golden"][0];
    let picture = std::fs::read(bundle().join(golden["file"].as_str().unwrap())).unwrap();
    (picture, golden["label"].as_str().unwrap().to_owned())
}

impl Daemon {
    /// Starts with defaults and these variables, and waits until it is ready.
    pub fn start(env: &[(&str, &str)]) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), env)
    }

    /// The same in a given data directory.
    pub fn start_in(data: TempDir, env: &[(&str, &str)]) -> Self {
        let mut command = weir();
        command.args(["serve", "--listen", "127.0.0.1:0", "--data-dir"]).arg(data.path());
        command.env("WEIR__LOG__FORMAT", "json").envs(env.iter().copied());
        Self::spawn(command, data)
    }

    /// Runs a prepared command and waits until the daemon in it is ready.
    pub fn spawn(mut command: Command, data: TempDir) -> Self {
        let mut child = command.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (send, log) = crossbeam_channel::unbounded();
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                let _ = send.send(line);
            }
        });
        let mut daemon =
            Self { child, address: SocketAddr::from(([127, 0, 0, 1], 0)), admin: None, data, log };
        let ready = daemon.wait_for_log("ready: ");
        let ready: Value = serde_json::from_str(&ready).unwrap();
        daemon.address = ready["listen"].as_str().unwrap().parse().unwrap();
        daemon.admin = ready["admin_listen"].as_str().map(|address| address.parse().unwrap());
        daemon
    }

    /// The next log line that contains this text.
    pub fn wait_for_log(&mut self, text: &str) -> String {
        let until = Instant::now() + TIMEOUT;
        let mut seen = String::new();
        loop {
            let Ok(line) = self.log.recv_timeout(until.saturating_duration_since(Instant::now())) else {
                panic!("no log line with {text:?}; the daemon said:\n{seen}");
            };
            if line.contains(text) {
                return line;
            }
            seen.push_str(&line);
            seen.push('\n');
        }
    }

    /// The log lines that have not been read yet.
    pub fn log(&self) -> Vec<String> {
        self.log.try_iter().collect()
    }

    pub fn post(&self, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
        post(self.address, path, headers, body)
    }

    pub fn get(&self, path: &str) -> Reply {
        get(self.address, path)
    }

    pub fn delete(&self, path: &str) -> Reply {
        client::delete(self.address, path)
    }

    /// The same on the admin listener, if there is one: with all details.
    pub fn get_as_operator(&self, path: &str) -> Reply {
        get(self.admin.unwrap_or(self.address), path)
    }

    /// SIGKILL, and its data directory for the next one.
    pub fn kill(mut self) -> TempDir {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        std::mem::replace(&mut self.data, tempfile::tempdir().unwrap())
    }

    /// SIGTERM.
    pub fn terminate(&self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    }

    /// Waits for the end.
    pub fn wait(&mut self, time: Duration) -> Option<ExitStatus> {
        wait(&mut self.child, time)
    }

    /// A field of `/proc/PID/status` in bytes: VmRSS is the resident memory now, VmHWM its peak.
    pub fn memory(&self, field: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':')).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
    }

    /// The events in the outbox.
    pub fn events(&self) -> Vec<Value> {
        let output = weir()
            .args(["outbox", "tail", "--json", "-n", "1000000", "--data-dir"])
            .arg(self.data.path())
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Copies a folder with everything in it.
pub fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Waits for a process to end, for at most `time`.
pub fn wait(child: &mut Child, time: Duration) -> Option<ExitStatus> {
    let until = Instant::now() + time;
    while Instant::now() < until {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    None
}

/// Runs a command that must fail, and returns its standard error.
pub fn failure(command: &mut Command) -> String {
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let Some(status) = wait(&mut child, TIMEOUT) else {
        let _ = child.kill();
        panic!("it did not end");
    };
    let mut text = String::new();
    child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
    assert!(!status.success(), "it succeeded and said: {text}");
    text
}

/// `weir serve` on a free port, with this data directory.
pub fn serve(data: &Path) -> Command {
    let mut command = weir();
    command.args(["serve", "--listen", "127.0.0.1:0", "--data-dir"]).arg(data);
    command
}

/// Asserts that a text contains all of these parts and no panic.
pub fn assert_says(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is missing in: {text}");
    }
    assert!(!text.contains("panicked"), "{text}");
}
