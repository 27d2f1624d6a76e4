//! The kernel section under NVIDIA's compute-sanitizer, if it is installed: out-of-bounds accesses and races.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;

use super::setup::Setup;
use super::sheet::Sheet;
use crate::bench::Target;

const NAME: &str = "compute-sanitizer";
/// Its exit code for findings, which the rig does not use.
const FOUND: i32 = 86;
/// Timeout of one of its tools.
const TIMEOUT: Duration = Duration::from_secs(90);
/// Remaining seconds that are required to start a tool.
const MIN_SPEED: f64 = 30.0;

pub(super) fn run(setup: &Setup, sheet: &Sheet) -> anyhow::Result<()> {
    let Some(program) = find(&setup.args.folders) else {
        sheet.info(NAME, "there is none on PATH or in a folder that was given");
        return Ok(());
    };
    for tool in ["memcheck", "racecheck"] {
        let what = format!("kernel under {tool}");
        if sheet.has_time(&what, if setup.simulated { 0.0 } else { MIN_SPEED }) {
            sheet.attempt(&what, || check(setup, sheet, &program, tool, &what));
        }
    }
    Ok(())
}

fn find(folders: &[PathBuf]) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let given = folders.iter().flat_map(|folder| [folder.clone(), folder.join("bin")]);
    given.chain(std::env::split_paths(&path)).map(|folder| folder.join(NAME)).find(|file| file.is_file())
}

fn check(setup: &Setup, sheet: &Sheet, program: &PathBuf, tool: &str, what: &str) -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let log = dir.path().join("log");
    let output = std::fs::File::create(&log)?;
    let mut command = Command::new(program);
    command.args(["--tool", tool, "--error-exitcode", &FOUND.to_string()]);
    command.arg(std::env::current_exe()?).args(["gpu", "--few", "--only", "kernel"]);
    command.args(["--gpu", &setup.gpu.number.to_string()]);
    for folder in &setup.args.folders {
        command.arg("--folder").arg(folder);
    }
    command.arg("--out").arg(dir.path().join("gpu.json")).env_remove("WEIR_PHOTOS");
    command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
    let (began, longest) = (Instant::now(), TIMEOUT.min(sheet.left()));
    let mut child = command.spawn().with_context(|| format!("starting {}", program.display()))?;
    let status = loop {
        match child.try_wait()? {
            Some(status) => break status,
            None if began.elapsed() > longest => {
                child.kill()?;
                child.wait()?;
                anyhow::bail!("it had not ended after {longest:?}");
            }
            None => std::thread::sleep(Duration::from_millis(50)),
        }
    };
    let text = String::from_utf8_lossy(&std::fs::read(&log)?).into_owned();
    let summary = text.lines().rev().find(|line| line.contains("SUMMARY")).unwrap_or_default().to_owned();
    let end: Vec<&str> = text.lines().rev().take(4).collect();
    let note = match (status.success(), summary.is_empty()) {
        (true, _) | (_, false) => summary,
        _ => end.into_iter().rev().collect::<Vec<_>>().join(" / "),
    };
    if !status.success() && status.code() != Some(FOUND) {
        // It could not be run, which is not a fault of the kernel.
        anyhow::bail!("it ended with {status}: {note}");
    }
    let found = status.code().map_or(f64::NAN, f64::from);
    sheet.hold(format!("{what}: exit code"), found, "", Target::AtMost(0.0), &note);
    Ok(())
}
