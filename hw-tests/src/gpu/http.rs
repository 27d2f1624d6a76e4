//! The built daemon on the GPU, under the load generator.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail};
use inference::bundle::find_bundle;

use super::setup::{Frames, Setup};
use super::sheet::Sheet;
use crate::bench::without_deployment;
use crate::daemon::{Daemon, free_port};
use crate::load::{self, Options, Spec};

/// Longest for one request.
const TIMEOUT: Duration = Duration::from_secs(30);

pub(super) fn run(setup: &Setup, sheet: &Sheet, sets: &[(&str, Frames)]) -> anyhow::Result<()> {
    let (dir, port) = (tempfile::tempdir()?, free_port()?);
    std::fs::write(dir.path().join("weir.toml"), configuration(setup)?)?;
    let mut daemon = Daemon::start(command(setup, port, dir.path())?, port, &dir.path().join("weir.log"))?;
    daemon.wait_ready("/health/ready")?;
    for (name, frames) in sets {
        let what = format!("cuda, {name}: over HTTP");
        if !sheet.has_time(&what, 2.0 * setup.plan.seconds.as_secs_f64() + 2.0) {
            continue;
        }
        let target = daemon.target("/predict");
        let requests = load::requests(&target, frames, &Options { unique: true, ..Options::default() })?;
        let spec = Spec {
            concurrency: setup.plan.clients,
            duration: setup.plan.seconds,
            timeout: TIMEOUT,
            ..Spec::new(target, requests)
        };
        let report = spec.run()?;
        if report.successes == 0 {
            bail!("{name}: no request succeeded: {}", report.trouble().unwrap_or_default());
        }
        let latency = report.ok.as_ref().map(|ok| format!("p50 {:.1} ms, p99 {:.1} ms", ok.p50, ok.p99));
        let note = [latency, report.trouble()].into_iter().flatten().collect::<Vec<_>>().join("; ");
        let note = format!("{} clients; {note}", setup.plan.clients);
        sheet.note(what, report.ok_per_s, "images/s", &note);
        daemon.check_running()?;
    }
    daemon.stop()
}

/// In the daemon's working folder, so that no weir.toml of this one has a say.
fn configuration(setup: &Setup) -> anyhow::Result<String> {
    let absolute = |path: &PathBuf| {
        let path = path.canonicalize().with_context(|| path.display().to_string())?;
        // A JSON string is a TOML string.
        Ok::<_, anyhow::Error>(serde_json::to_string(&path.display().to_string())?)
    };
    let folders: Vec<String> = setup.args.folders.iter().map(absolute).collect::<Result<_, _>>()?;
    let mut text = format!("[engine]\ndevice = \"cuda\"\nlibrary_folders = [{}]\n", folders.join(", "));
    if let Some(library) = setup.onnxruntime() {
        text.push_str(&format!("onnxruntime = {}\n", absolute(&library)?));
    }
    Ok(text)
}

fn command(setup: &Setup, port: u16, data: &Path) -> anyhow::Result<Command> {
    let weir = match &setup.args.weir {
        Some(weir) => weir.clone(),
        None => std::env::current_exe()?.with_file_name("weir"),
    };
    let weir = weir.canonicalize().with_context(|| format!("no weir at {}: give --weir", weir.display()))?;
    let bundle = find_bundle(setup.args.bundle.as_deref())?.canonicalize().context("the model bundle")?;
    let mut command = Command::new(weir);
    without_deployment(&mut command);
    command.args(["serve", "--listen", &format!("127.0.0.1:{port}")]).arg("--data-dir").arg(data);
    command.env("WEIR__MODEL__BUNDLE", bundle).current_dir(data);
    // The daemon counts the GPUs that this variable leaves; the suite's is to be its first.
    let visible = std::env::var("CUDA_VISIBLE_DEVICES").unwrap_or_default();
    let chosen = visible.split(',').nth(setup.gpu.number as usize).filter(|chosen| !chosen.is_empty());
    command.env("CUDA_VISIBLE_DEVICES", chosen.map_or(setup.gpu.number.to_string(), str::to_owned));
    Ok(command)
}
