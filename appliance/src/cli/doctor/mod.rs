//! `weir doctor`: checks everything that `weir serve` needs, and suggests a remedy for what does not work.

mod gpu;
mod links;

use std::fmt::Display;
use std::io::Write;
use std::net::TcpListener;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use clap::Args;
use cloud_sync::quarantine;
use inference::lanes::LaneSettings;
use serde::Serialize;

use super::Common;
use crate::bootstrap::{
    DeviceSetup, Files, admin_token, create_private, is_open_to_others, outbox_dir, prepare_device,
    raise_limit,
};
use crate::config::{Config, Loaded};
use crate::fetch::Fetcher;
use crate::serving::{check_golden, cpu_lanes};
use crate::telemetry::Metrics;

/// Checks of links, whose failure does not prevent serving.
const LINKS: [&str; 4] = ["kafka", "redis", "s3", "registry"];
/// Free space below this is reported.
const LOW_SPACE: u64 = 256 << 20;
/// An fsync slower than this, in milliseconds, would be most of a request's time.
const SLOW_SYNC_MS: f64 = 20.0;

#[derive(Debug, Args)]
pub(super) struct DoctorArgs {
    #[command(flatten)]
    common: Common,
    /// One JSON document.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Ok,
    Warning,
    Failed,
}

#[derive(Debug, Serialize)]
struct Check {
    name: &'static str,
    verdict: Verdict,
    found: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<String>,
}

fn ok(name: &'static str, found: impl Display) -> Check {
    Check { name, verdict: Verdict::Ok, found: found.to_string(), remedy: None }
}

fn warning(name: &'static str, found: impl Display, remedy: &str) -> Check {
    Check { name, verdict: Verdict::Warning, found: found.to_string(), remedy: Some(remedy.into()) }
}

/// An error text may contain its own remedy after this word; otherwise the check's general one is shown.
fn failed(name: &'static str, error: impl Display, general: &str) -> Check {
    let text = error.to_string();
    let (found, remedy) = match text.split_once("Remedy: ") {
        Some((found, remedy)) => (found.trim_end_matches([' ', '.']).to_owned(), remedy.to_owned()),
        None => (text, general.to_owned()),
    };
    Check { name, verdict: Verdict::Failed, found, remedy: Some(remedy) }
}

pub(super) fn run(args: &DoctorArgs) -> anyhow::Result<ExitCode> {
    let mut checks = Vec::new();
    match args.common.load(Vec::new()) {
        Ok(loaded) => check_all(&loaded, &mut checks),
        Err(error) => {
            checks.push(failed(
                "configuration",
                error,
                "correct or remove the key; weir.toml documents each",
            ));
        }
    }
    let mut out = std::io::stdout().lock();
    if args.json {
        serde_json::to_writer_pretty(&mut out, &checks)?;
        writeln!(out)?;
    } else {
        print(&mut out, &checks)?;
    }
    let broken = checks.iter().any(|c| c.verdict == Verdict::Failed);
    Ok(if broken { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn print(out: &mut impl Write, checks: &[Check]) -> std::io::Result<()> {
    for check in checks {
        let mark = match check.verdict {
            Verdict::Ok => "  ok  ",
            Verdict::Warning => " warn ",
            Verdict::Failed => " FAIL ",
        };
        writeln!(out, "[{mark}] {:<15} {}", check.name, check.found)?;
        if let Some(remedy) = &check.remedy {
            writeln!(out, "         {:<15} -> {remedy}", "")?;
        }
    }
    let count = |verdict| checks.iter().filter(|c| c.verdict == verdict).count();
    let (warnings, failures) = (count(Verdict::Warning), count(Verdict::Failed));
    match failures {
        0 => writeln!(out, "\nweir can serve here ({warnings} warnings)"),
        _ if checks.iter().all(|c| c.verdict != Verdict::Failed || LINKS.contains(&c.name)) => writeln!(
            out,
            "\nweir can serve here, but not all of its links work: {failures} checks failed, {warnings} warnings"
        ),
        _ => writeln!(out, "\nweir can't serve here: {failures} checks failed, {warnings} warnings"),
    }
}

fn check_all(loaded: &Loaded, checks: &mut Vec<Check>) {
    let config = &loaded.config;
    let sources =
        if loaded.sources.is_empty() { "built-in defaults".into() } else { loaded.sources.join(", ") };
    checks.push(ok("configuration", format!("valid; set by {sources}")));
    for line in changed(config) {
        checks.push(ok("set", line));
    }
    if let Err(error) = admin_token(config) {
        checks.push(failed("admin", error, "correct admin.token_file, or remove it"));
    }
    checks.push(check_listen(config));
    checks.push(check_files(config));
    checks.extend(check_data_dir(&config.data_dir));
    checks.extend(check_fetches(config));
    checks.extend(links::check_links(config));
    checks.push(check_cpu());
    checks.extend(gpu::check_gpu(config));
    match prepare_device(config) {
        Ok(setup) => check_device(config, &setup, checks),
        Err(error) => checks.push(failed(
            "model",
            error,
            "copy the bundle again, or rebuild it; docs/bundle.md lists what it must contain",
        )),
    }
}

/// Every setting that is not its default, as `key = value`.
fn changed(config: &Config) -> Vec<String> {
    let table = |config: &Config| toml::Table::try_from(config).unwrap_or_default();
    let (now, defaults) = (table(config), table(&Config::default()));
    let mut lines = Vec::new();
    for (section, value) in &now {
        match (value.as_table(), defaults.get(section).and_then(toml::Value::as_table)) {
            (Some(keys), Some(usual)) => {
                let differ = keys.iter().filter(|(key, value)| usual.get(*key) != Some(value));
                lines.extend(differ.map(|(key, value)| format!("{section}.{key} = {value}")));
            }
            _ if defaults.get(section) != Some(value) => lines.push(format!("{section} = {value}")),
            _ => {}
        }
    }
    lines
}

fn check_listen(config: &Config) -> Check {
    let address = config.http.listen;
    match TcpListener::bind(address) {
        Ok(_) => ok("listen", format!("{address} is free")),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => warning(
            "listen",
            format!("{address} is taken"),
            "fine if that is this appliance running; else choose another with --listen or http.listen",
        ),
        Err(error) => failed(
            "listen",
            format!("{address}: {error}"),
            "choose another address with --listen or http.listen",
        ),
    }
}

/// The certificates of image servers, where a file names some.
fn check_fetches(config: &Config) -> Option<Check> {
    let file = config.fetch.ca_file.as_deref()?;
    Some(match Fetcher::new(config.fetch.clone(), config.http.max_body_bytes()).check_ca_file() {
        Ok(()) => ok(
            "fetch",
            format!("certificates in {} are trusted, and the system's authorities", file.display()),
        ),
        Err(error) => failed(
            "fetch",
            format!("fetch.ca_file: {error}"),
            "name a PEM file of certificates, or leave the key out",
        ),
    })
}

/// How many connections there are file descriptors for.
fn check_files(config: &Config) -> Check {
    let files = Files::share(raise_limit(), config);
    let wanted = config.http.max_connections;
    let text = format!("{} may be open, {} of them connections", files.limit, files.connections.min(wanted));
    match files.connections < wanted {
        true => warning(
            "files",
            format!("{text}; http.max_connections = {wanted}"),
            "raise the hard limit (ulimit -Hn, LimitNOFILE=), or lower http.max_connections",
        ),
        false => ok("files", text),
    }
}

/// Damaged files that were quarantined.
fn check_quarantined(dir: &Path) -> Option<Check> {
    let folders = ["batches", "captured"].map(|folder| quarantine::list(&dir.join(folder)));
    let found: Vec<String> =
        folders.into_iter().flatten().flatten().map(|path| path.display().to_string()).collect();
    let remedy = "look at what damaged them (the disk's log, its SMART values), then remove them; batches that were in \
                  one have to be sent again";
    (!found.is_empty()).then(|| warning("damaged files", found.join(", "), remedy))
}

fn check_data_dir(dir: &Path) -> Vec<Check> {
    let remedy = "choose another with --data-dir or data_dir, or give this user the right to write";
    let was_there = dir.is_dir();
    if let Err(error) = create_private(dir) {
        return vec![failed("data directory", format!("{}: {error}", dir.display()), remedy)];
    }
    let mut checks = Vec::new();
    if is_open_to_others(dir) {
        let text = format!("other users of this machine have access to {}", dir.display());
        checks.push(warning("data directory", text, &format!("chmod 700 {}", dir.display())));
    }
    match sync_time_ms(dir) {
        Ok(ms) if ms > SLOW_SYNC_MS => checks.push(warning(
            "data directory",
            format!("{} is writable, but an fsync takes {ms:.1} ms", dir.display()),
            "every answer waits for one; a faster disk, or outbox.durability = \"os_buffered\" if a power cut may \
             cost the last events",
        )),
        Ok(ms) => checks.push(ok("data directory", format!("{} is writable, fsync {ms:.2} ms", dir.display()))),
        Err(error) => checks.push(failed("data directory", format!("{}: {error}", dir.display()), remedy)),
    }
    if let Ok(space) = rustix::fs::statvfs(dir) {
        let free = space.f_bavail.saturating_mul(space.f_frsize);
        let text = format!("{} free", bytesize::ByteSize::b(free));
        checks.push(match free < LOW_SPACE {
            true => warning("disk space", text, "free some, or lower outbox.max_bytes"),
            false => ok("disk space", text),
        });
    }
    let outbox = outbox_dir(dir);
    if outbox.is_dir() {
        checks.push(match cloud_sync::outbox::Reader::open(&outbox).and_then(|reader| reader.tail(1)) {
            Ok(events) => match events.last() {
                Some(event) => ok("outbox", format!("readable; last event is number {}", event.sequence)),
                None => ok("outbox", "readable, no events yet"),
            },
            Err(error) => failed(
                "outbox",
                error,
                "stop weir, move the folder away and keep it for analysis, start again",
            ),
        });
    }
    checks.extend(check_quarantined(dir));
    if !was_there {
        // The check leaves no files behind.
        let _ = std::fs::remove_dir(dir);
    }
    checks
}

/// Median time of a few small fsyncs, in milliseconds.
fn sync_time_ms(dir: &Path) -> std::io::Result<f64> {
    let path = dir.join(format!(".doctor-{}", std::process::id()));
    let measured = (|| {
        let mut file = std::fs::File::create(&path)?;
        let mut times = Vec::new();
        for _ in 0..5 {
            file.write_all(&[0; 512])?;
            let started = Instant::now();
            file.sync_data()?;
            times.push(started.elapsed().as_secs_f64() * 1e3);
        }
        times.sort_by(f64::total_cmp);
        Ok(times[times.len() / 2])
    })();
    let _ = std::fs::remove_file(&path);
    measured
}

fn check_cpu() -> Check {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    #[cfg(target_arch = "x86_64")]
    {
        let vnni = std::arch::is_x86_feature_detected!("avx512vnni");
        let avx2 = std::arch::is_x86_feature_detected!("avx2");
        match (vnni, avx2) {
            (true, _) => ok("processor", format!("{cores} cores, AVX-512 VNNI: int8 runs at full speed")),
            (false, true) => {
                ok("processor", format!("{cores} cores, AVX2, no VNNI: int8 gains less than it could"))
            }
            (false, false) => warning(
                "processor",
                format!("{cores} cores without AVX2"),
                "expect several times the time an image",
            ),
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    ok("processor", format!("{cores} cores, {}", std::env::consts::ARCH))
}

fn check_device(config: &Config, setup: &DeviceSetup, checks: &mut Vec<Check>) {
    checks.push(ok("onnxruntime", setup.loader.runtime.library().display()));
    let manifest = setup.bundle.manifest();
    checks.push(ok(
        "bundle",
        format!(
            "{} {} in {}, {} labels, digests verified",
            manifest.name,
            manifest.version,
            setup.bundle.dir().display(),
            manifest.labels.len()
        ),
    ));
    checks.push(ok("device", format!("{} ({})", setup.loader.device.kind, setup.loader.device.reason)));
    let started = Instant::now();
    let cases = manifest.golden.len();
    let outcome = setup
        .start(&LaneSettings::new(1, 1), Arc::new(Metrics::new()))
        .and_then(|lanes| check_golden(&setup.bundle, &lanes));
    checks.push(match outcome {
        Ok(()) if cases == 0 => warning("golden cases", "the bundle has none", "add some to bundle.toml"),
        Ok(()) => ok(
            "golden cases",
            format!(
                "{cases} right, {} on {} lanes when serving, {} ms to load",
                setup.model.precision,
                cpu_lanes(config),
                started.elapsed().as_millis()
            ),
        ),
        Err(error) => failed(
            "golden cases",
            error,
            "serve another bundle; this one does not compute what it promises on this box",
        ),
    });
}
