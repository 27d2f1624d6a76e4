//! `weir outbox`: the acknowledged events, read from disk, also while the daemon writes them.

use std::io::{BufWriter, Write, stdout};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, Subcommand};
use cloud_sync::event::{Event, EventBody, ItemOutcome};
use cloud_sync::outbox::{Reader, StoredEvent};

use super::Common;
use crate::bootstrap::outbox_dir;

#[derive(Debug, Args)]
pub(super) struct OutboxArgs {
    #[command(subcommand)]
    command: OutboxCommand,
}

#[derive(Debug, Subcommand)]
enum OutboxCommand {
    /// Show the last events, oldest first.
    Tail(TailArgs),
}

#[derive(Debug, Args)]
struct TailArgs {
    #[command(flatten)]
    common: Common,
    /// How many events.
    #[arg(short = 'n', long, default_value_t = 20)]
    lines: usize,
    /// One JSON object per line, as the events leave the box.
    #[arg(long)]
    json: bool,
    /// Follow new events until Ctrl-C.
    #[arg(short, long)]
    follow: bool,
}

pub(super) fn run(args: &OutboxArgs) -> anyhow::Result<ExitCode> {
    let OutboxCommand::Tail(tail) = &args.command;
    let config = tail.common.load(Vec::new())?.config;
    let dir = outbox_dir(&config.data_dir);
    anyhow::ensure!(
        dir.is_dir(),
        "there is no outbox in {}: nothing has been served from this data directory yet (--data-dir names another)",
        config.data_dir.display()
    );
    let mut reader =
        Reader::open(&dir).with_context(|| format!("the outbox in {} can't be read", dir.display()))?;
    let mut out = BufWriter::new(stdout().lock());
    // The last event is read in any case: following starts after it.
    let events = reader.tail(tail.lines.max(1))?;
    let last = events.last().map_or(0, |e| e.sequence);
    for event in events.iter().skip(events.len().saturating_sub(tail.lines)) {
        if !write(&mut out, event, tail.json)? {
            return Ok(ExitCode::SUCCESS);
        }
    }
    if events.is_empty() && !tail.follow {
        eprintln!("no events yet");
    }
    reader.seek(last + 1);
    if tail.follow {
        while flushed(out.flush())? {
            let Some(event) = reader.next_wait(Duration::from_secs(3600))? else { continue };
            if !write(&mut out, &event, tail.json)? {
                break;
            }
        }
        return Ok(ExitCode::SUCCESS);
    }
    flushed(out.flush())?;
    Ok(ExitCode::SUCCESS)
}

/// Writes one event; false when the reader of the pipe is gone, as after `| head`.
fn write(out: &mut impl Write, stored: &StoredEvent, json: bool) -> anyhow::Result<bool> {
    if json {
        let line = out.write_all(&stored.payload).and_then(|()| out.write_all(b"\n"));
        return flushed(line);
    }
    let at =
        |event: &Event| format!("{:>8}  {}", stored.sequence, humantime::format_rfc3339_millis(event.time));
    let line = match stored.event() {
        Ok(event) => match &event.body {
            EventBody::Prediction(p) => format!(
                "{}  {}  {:<18} {:.3}  {}{}{}",
                at(&event),
                p.request_id,
                p.species,
                p.confidence,
                p.camera.as_deref().unwrap_or("-"),
                if p.cached { "  cached" } else { "" },
                format_args!("  {}/{}", p.model.name, p.model.version),
            ),
            EventBody::BatchItem(item) => {
                let (what, score) = match &item.outcome {
                    ItemOutcome::Ok { species, confidence, .. } => {
                        (species.as_str(), format!("{confidence:.3}"))
                    }
                    ItemOutcome::Failed { code, .. } => (code.as_str(), "failed".to_owned()),
                };
                format!(
                    "{}  {}#{}  {what:<18} {score}  {}",
                    at(&event),
                    item.request_id,
                    item.index,
                    item.camera.as_deref().unwrap_or("-"),
                )
            }
            EventBody::Batch(batch) => format!(
                "{}  {}  batch {}: {} of {} classified, {} failed",
                at(&event),
                batch.request_id,
                batch.status,
                batch.completed,
                batch.total,
                batch.failed,
            ),
            EventBody::Model(change) => format!(
                "{}  model {}: {} {}{}",
                at(&event),
                change.model,
                change.version,
                change.state,
                change.reason.as_deref().map(|reason| format!(": {reason}")).unwrap_or_default(),
            ),
            EventBody::Outbox(change) => format!(
                "{}  outbox {}: {} continues as {} behind {}",
                at(&event),
                change.cause,
                change.from,
                change.to,
                change.sent,
            ),
            EventBody::Unknown(_) => format!("{:>8}  {}", stored.sequence, event.body.kind()),
        },
        Err(error) => format!("{:>8}  not an event: {error}", stored.sequence),
    };
    flushed(writeln!(out, "{line}"))
}

fn flushed(outcome: std::io::Result<()>) -> anyhow::Result<bool> {
    match outcome {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error.into()),
    }
}
