//! A server process that the rig starts and stops, on a free loopback port and with its output in a file.

use std::fs::File;
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process_group};

use crate::load::{Client, Target};

/// How long a server may take to become ready, and to end after SIGTERM.
const READY: Duration = Duration::from_secs(60);
const END: Duration = Duration::from_secs(20);
/// How often readiness and the end of the process are polled.
const POLL_INTERVAL: Duration = Duration::from_millis(2);

/// A currently free port.
///
/// # Errors
/// When the system has none.
pub fn free_port() -> anyhow::Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0").context("looking for a free port")?;
    Ok(listener.local_addr()?.port())
}

/// A running server and its child processes. They are killed when it is dropped.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    port: u16,
    log: PathBuf,
}

impl Daemon {
    /// Starts `command`, which is to listen on `port`, with its output appended to `log`.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub fn start(mut command: Command, port: u16, log: &Path) -> anyhow::Result<Self> {
        let open = || File::options().create(true).append(true).open(log);
        let output = open().with_context(|| format!("writing {}", log.display()))?;
        let program = command.get_program().to_string_lossy().into_owned();
        // A separate process group, so that the workers of a server are killed with it.
        command.process_group(0).stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let child = command.spawn().with_context(|| format!("starting {program}"))?;
        Ok(Self { child, port, log: log.to_owned() })
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A path on it.
    #[must_use]
    pub fn target(&self, path: &str) -> Target {
        Target::local(self.port, path)
    }

    /// Waits until a GET of `path` answers 200.
    ///
    /// # Errors
    /// When the process ends, or is not ready within a minute; with the end of its output.
    pub fn wait_ready(&mut self, path: &str) -> anyhow::Result<()> {
        let start = Instant::now();
        let mut client = Client::new(self.target(path), Duration::from_secs(5))?;
        while !client.get(path).is_ok_and(|reply| reply.status == 200) {
            self.check_running()?;
            if start.elapsed() > READY {
                bail!("not ready after {READY:?}; its output ends:\n{}", self.output());
            }
            std::thread::sleep(POLL_INTERVAL);
        }
        Ok(())
    }

    /// Does nothing while the process runs.
    ///
    /// # Errors
    /// When it has ended; with its status and the end of its output.
    pub fn check_running(&mut self) -> anyhow::Result<()> {
        match self.child.try_wait()? {
            Some(status) => bail!("the server ended ({status}); its output ends:\n{}", self.output()),
            None => Ok(()),
        }
    }

    /// Kills it with SIGKILL, like a crash.
    ///
    /// # Errors
    /// When it had already ended.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.check_running()?;
        self.signal(Signal::KILL);
        self.child.wait().context("waiting for a killed server")?;
        Ok(())
    }

    /// Stops it with SIGTERM, and with SIGKILL if it does not end in time.
    ///
    /// # Errors
    /// When it did not end with exit code 0 in time.
    pub fn stop(mut self) -> anyhow::Result<()> {
        self.check_running()?;
        // Only the server itself, which has to stop its workers.
        if let Some(pid) = Pid::from_raw(self.pid().cast_signed()) {
            rustix::process::kill_process(pid, Signal::TERM).context("SIGTERM")?;
        }
        let start = Instant::now();
        while start.elapsed() < END {
            match self.child.try_wait()? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => bail!("after SIGTERM it ended with {status}:\n{}", self.output()),
                None => std::thread::sleep(POLL_INTERVAL),
            }
        }
        bail!("it had not ended {END:?} after SIGTERM");
    }

    /// The end of its output.
    #[must_use]
    pub fn output(&self) -> String {
        let text = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    fn signal(&self, signal: Signal) {
        if let Some(group) = Pid::from_raw(self.pid().cast_signed()) {
            // An error means that the group has no process left, which is the goal.
            let _ = kill_process_group(group, signal);
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // The id cannot have gone to another process as long as the child has not been waited for; once it
        // has, its group may still hold workers, and an empty group's id is not given out either.
        self.signal(Signal::KILL);
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, log: &Path) -> Daemon {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Daemon::start(command, free_port().unwrap(), log).unwrap()
    }

    fn log() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        (dir, log)
    }

    /// Whether a process exists and is not a zombie.
    fn runs(pid: u32) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, state)| !state.starts_with('Z'))
    }

    fn worker(daemon: &Daemon) -> u32 {
        let start = Instant::now();
        loop {
            if let Ok(pid) = daemon.output().trim().parse() {
                return pid;
            }
            assert!(start.elapsed() < Duration::from_secs(60));
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn a_server_that_ends_is_reported_with_its_output() {
        let (_dir, log) = log();
        let mut daemon = shell("echo no such model >&2; exit 3", &log);
        let error = daemon.wait_ready("/health").unwrap_err().to_string();
        assert!(error.contains("no such model") && error.contains('3'), "{error}");
    }

    #[test]
    fn dropping_ends_the_server_and_its_workers() {
        let (_dir, log) = log();
        let daemon = shell("sleep 600 & echo $!; wait", &log);
        let (server, worker) = (daemon.pid(), worker(&daemon));
        assert!(runs(server) && runs(worker));
        drop(daemon);
        let start = Instant::now();
        while runs(server) || runs(worker) {
            assert!(start.elapsed() < Duration::from_secs(60), "still there");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn stopping_requires_exit_code_0() {
        let (_dir, log) = log();
        let good = shell("trap 'exit 0' TERM; echo 1; while :; do sleep 0.01; done", &log);
        worker(&good);
        good.stop().unwrap();
        let bad = shell("exec sleep 600", &log);
        assert!(bad.stop().unwrap_err().to_string().contains("SIGTERM"));
    }

    #[test]
    fn killing_what_has_ended_is_an_error() {
        let (_dir, log) = log();
        let mut daemon = shell("exit 0", &log);
        let start = Instant::now();
        while runs(daemon.pid()) {
            assert!(start.elapsed() < Duration::from_secs(60), "still there");
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(daemon.kill().is_err());
        let mut daemon = shell("exec sleep 600", &log);
        daemon.kill().unwrap();
        assert!(daemon.check_running().is_err());
    }

    #[test]
    fn a_program_that_is_not_there_is_named() {
        let (_dir, log) = log();
        let error = Daemon::start(Command::new("/no/such/weir"), 1, &log).unwrap_err().to_string();
        assert!(error.contains("/no/such/weir"), "{error}");
    }
}
