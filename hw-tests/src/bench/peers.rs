//! Comparison with a typical server of FastAPI, Pillow and ONNX Runtime, in the same run.

use std::num::NonZero;
use std::thread::available_parallelism;

use anyhow::Context;

use super::result::{Section, Target, median};
use super::setup::{PEER_WORKERS as WORKERS, Prediction, Server, Setup, bench_frames, progress};
use crate::frames::{Frame, Size};

const ROUNDS: usize = 3;

fn target(size: Size) -> f64 {
    match size {
        Size::Vga => 2.0,
        Size::P1080 => 3.0,
        Size::Uhd => 6.5,
    }
}

pub(super) fn run(setup: &Setup) -> anyhow::Result<Section> {
    let servers = [
        ("peer", setup.start_peer()?),
        ("weir int8", setup.start_weir(&setup.bundle)?),
        ("weir fp32", setup.start_weir(setup.fp32_bundle()?)?),
    ];
    let mut section = Section::new(
        "peers",
        format!(
            "Requests per second over HTTP, 8 clients, every body unique. The peer: FastAPI, Pillow and ONNX Runtime \
             (fp32, {WORKERS} uvicorn workers, full decode), hw-tests/peers. Medians of {ROUNDS} rounds, in turn."
        ),
    );
    for size in Size::ALL {
        let frames = bench_frames(size)?;
        let (mut rates, mut peer_cores) = ([const { Vec::new() }; 3], Vec::new());
        for round in 1..=ROUNDS {
            for ((name, server), rates) in servers.iter().zip(&mut rates) {
                let report = server.load(&frames, true, setup.seconds())?.run()?;
                if let Some(trouble) = report.trouble() {
                    anyhow::bail!("{name}, {}: {trouble}", size.name());
                }
                progress(&format!(
                    "{} {round}/{ROUNDS} {name}: {:.1} a second",
                    size.name(),
                    report.ok_per_s
                ));
                rates.push(report.ok_per_s);
                if *name == "peer" {
                    let usage = report.usage.as_ref().context("the peer's CPU time was not read")?;
                    peer_cores.push(usage.cpu_s / report.seconds);
                }
            }
        }
        let [peer, int8, fp32] = rates.map(|rates| median(&rates));
        let name = size.name();
        section.hold(format!("{name}: weir int8 / peer"), int8 / peer, "", Target::AtLeast(target(size)));
        // A peer that could not use its cores, because of its accept distribution or another program, is not comparable.
        let most = available_parallelism().map_or(1, NonZero::get).min(WORKERS) as f64;
        let busy = format!("{name}: cores that the peer kept busy");
        section.hold(busy, median(&peer_cores), "", Target::AtLeast(0.85 * most));
        section.note(format!("{name}: weir fp32 / peer"), fp32 / peer, "");
        section.note(format!("{name}: peer"), peer, "/s");
        section.note(format!("{name}: weir int8"), int8, "/s");
        section.note(format!("{name}: weir fp32"), fp32, "/s");
        let [(_, peer), _, (_, fp32)] = &servers;
        let agree =
            species(peer, &frames)?.iter().zip(species(fp32, &frames)?).filter(|(a, b)| *a == b).count();
        let what = format!("{name}: the peer and weir fp32 name the same, of {} frames", frames.len());
        section.note(what, agree as f64, "");
    }
    Ok(section)
}

/// The species of every frame: shows that the compared servers do the same work.
fn species(server: &Server, frames: &[Frame]) -> anyhow::Result<Vec<String>> {
    let mut client = server.client()?;
    let answer = |frame: &Frame| {
        let reply = client.post(frame)?;
        anyhow::Ok(Prediction::of(&reply).with_context(|| frame.name.clone())?.species)
    };
    frames.iter().map(answer).collect()
}
