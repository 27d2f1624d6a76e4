//! `weir predict FILE...`: the same lanes as the daemon, without a server, an outbox or a cache.

use std::collections::VecDeque;
use std::io::{IsTerminal, stderr, stdout};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;
use comfy_table::{CellAlignment, Table, presets};
use gpu_kernels::DecodeLimits;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use inference::decode_memory::{DecodeMemory, decode_cost};
use inference::lanes::{Classified, LaneReply, LaneSettings, Lanes, StageTimings, Stalls};
use serde_json::json;
use tokio::sync::oneshot::Receiver;

use super::Common;
use crate::bootstrap::prepare_device;
use crate::serving::cpu_lanes;
use crate::telemetry::Metrics;
use crate::values::TopK;

/// No client waits, so a file may take as long as it takes.
const DEADLINE: Duration = Duration::from_secs(3600);

#[derive(Debug, Args)]
pub(super) struct PredictArgs {
    #[command(flatten)]
    common: Common,
    /// Image files, or folders of them.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// How many labels to show [default: 1 in the table, 5 in JSON].
    #[arg(short = 'k', long)]
    top_k: Option<u64>,
    /// One JSON object per line.
    #[arg(long)]
    json: bool,
}

/// Files in memory that are queued for a lane.
const MAX_CONCURRENT_FILES: usize = 256;

struct Row {
    file: PathBuf,
    outcome: Result<Classified, String>,
}

pub(super) fn run(args: &PredictArgs) -> anyhow::Result<ExitCode> {
    let config = args.common.load(Vec::new())?.config;
    let files = expand(&args.files)?;
    let setup = prepare_device(&config)?;
    let count = cpu_lanes(&config).min(files.len()).max(1);
    let settings = LaneSettings {
        memory: DecodeMemory::new(config.image.decode_memory_bytes()),
        stalls: Stalls::new(config.engine.stall_timeout, count),
        ..LaneSettings::new(count, count * 2)
    };
    let lanes = setup.start(&settings, Arc::new(Metrics::new()))?;
    let labels = &setup.bundle.manifest().labels;
    let top_k = args.top_k.unwrap_or(if args.json { 5 } else { 1 });
    let top_k = TopK::new(top_k, labels.len()).context("--top-k")?.get();

    let progress = progress(files.len() as u64);
    let mut failed = 0;
    let mut table = table();
    classify(&lanes, &setup.loader.limits, files, |row| {
        progress.inc(1);
        failed += usize::from(row.outcome.is_err());
        if args.json {
            print_line(&json_line(&row, labels, top_k));
        } else {
            table.add_row(cells(&row, labels, top_k));
        }
    });
    progress.finish_and_clear();
    if !args.json {
        print_line(&table.to_string());
    }
    if failed > 0 {
        eprintln!("weir: {failed} of the files could not be classified");
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

/// Submits the files to the lanes a few at a time, and passes the rows to `each` in the order of the files.
fn classify(lanes: &Lanes, limits: &DecodeLimits, files: Vec<PathBuf>, mut each: impl FnMut(Row)) {
    let mut pending: VecDeque<(PathBuf, Result<Receiver<LaneReply>, String>)> = VecDeque::new();
    let window = lanes.capacity().min(MAX_CONCURRENT_FILES);
    for file in files {
        if pending.len() == window {
            pending.pop_front().into_iter().for_each(|(file, answer)| each(finish(file, answer)));
        }
        let answer = std::fs::read(&file).map_err(|e| e.to_string()).and_then(|bytes| {
            let header = gpu_kernels::inspect(&bytes, limits).map_err(|e| e.to_string())?;
            let deadline = Instant::now() + DEADLINE;
            lanes.admit_blocking(bytes.into(), decode_cost(&header), deadline).map_err(|e| e.to_string())
        });
        pending.push_back((file, answer));
    }
    pending.into_iter().for_each(|(file, answer)| each(finish(file, answer)));
}

fn finish(file: PathBuf, answer: Result<Receiver<LaneReply>, String>) -> Row {
    let outcome = answer.and_then(|receiver| match receiver.blocking_recv() {
        Ok(Ok((classified, _))) => Ok(classified),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("the lane ended".into()),
    });
    Row { file, outcome }
}

/// Replaces folders by the image files in them, sorted by name, without hidden ones.
fn expand(given: &[PathBuf]) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for path in given {
        if !path.is_dir() {
            files.push(path.clone());
            continue;
        }
        let entries = std::fs::read_dir(path).with_context(|| format!("{} can't be read", path.display()))?;
        let mut inside: Vec<PathBuf> = entries.filter_map(|e| e.ok().map(|e| e.path())).collect();
        inside.retain(|p| p.is_file() && !is_hidden(p) && looks_like_an_image(p));
        inside.sort();
        anyhow::ensure!(!inside.is_empty(), "{} holds no image files", path.display());
        files.extend(inside);
    }
    Ok(files)
}

fn is_hidden(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'))
}

fn looks_like_an_image(path: &Path) -> bool {
    let extension = path.extension().map(|e| e.to_string_lossy().to_lowercase()).unwrap_or_default();
    ["jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff"].contains(&extension.as_str())
}

fn ranked<'a>(classified: &Classified, labels: &'a [String], top_k: usize) -> Vec<(&'a str, f32)> {
    let mut all: Vec<_> = labels.iter().map(String::as_str).zip(classified.scores.iter().copied()).collect();
    all.sort_by(|a, b| b.1.total_cmp(&a.1));
    all.truncate(top_k);
    all
}

fn cells(row: &Row, labels: &[String], top_k: usize) -> Vec<String> {
    let file = row.file.display().to_string();
    match &row.outcome {
        Ok(classified) => {
            let ranked = ranked(classified, labels, top_k);
            let column = |text: &dyn Fn(&(&str, f32)) -> String| {
                ranked.iter().map(text).collect::<Vec<_>>().join("\n")
            };
            let StageTimings { decode, preprocess, infer } = classified.timings;
            vec![
                file,
                column(&|(label, _)| (*label).to_owned()),
                column(&|(_, score)| format!("{:.1} %", 100.0 * score)),
                format!("{} x {}", classified.width, classified.height),
                format!("{:.1} ms", (decode + preprocess + infer).as_secs_f64() * 1e3),
            ]
        }
        Err(reason) => vec![file, format!("error: {reason}")],
    }
}

fn json_line(row: &Row, labels: &[String], top_k: usize) -> String {
    let value = match &row.outcome {
        Ok(classified) => {
            let ranked = ranked(classified, labels, top_k);
            let predictions: Vec<_> =
                ranked.iter().map(|(label, score)| json!({"label": label, "score": score})).collect();
            json!({
                "file": row.file,
                "species": ranked.first().map(|r| r.0),
                "confidence": ranked.first().map(|r| r.1),
                "predictions": predictions,
                "format": classified.format.to_string(),
                "width": classified.width,
                "height": classified.height,
            })
        }
        Err(reason) => json!({"file": row.file, "error": reason}),
    };
    value.to_string()
}

fn table() -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED).set_header(["file", "species", "score", "pixels", "time"]);
    for column in [2, 3, 4] {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

/// A progress bar on terminals, for more than a few files.
fn progress(files: u64) -> ProgressBar {
    let bar = ProgressBar::new(files);
    if files < 20 || !stderr().is_terminal() || !stdout().is_terminal() {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {pos}/{len} {per_sec} {eta}") {
        bar.set_style(style);
    }
    bar
}

/// Writes to standard output; a closed pipe (`| head`) is not an error.
fn print_line(line: &str) {
    use std::io::Write;
    let _ = writeln!(stdout(), "{line}");
}
