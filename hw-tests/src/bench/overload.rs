//! Eight times the load that saturates: what is accepted stays quick, what is refused is refused at once.

use anyhow::Context;

use super::result::{Section, Target, median};
use super::setup::{Setup, bench_frames, progress};
use crate::frames::Size;
use crate::load::Spec;

const ROUNDS: usize = 3;
const TIMES: f64 = 8.0;
/// Clients of the open loop: enough that one is always free, unless refusals are slow.
const CLIENTS: usize = 256;

pub(super) fn run(setup: &Setup) -> anyhow::Result<Section> {
    let server = setup.start_weir(&setup.bundle)?;
    let frames = bench_frames(Size::Vga)?;
    let capacity = server.capacity()?;
    let mut section = Section::new(
        "overload",
        format!(
            "VGA frames, every body unique. Saturation: {capacity} clients, as many as lanes and queue hold. Overload: an \
             open loop at {TIMES} times the throughput of that, latency from the intended start. Medians of {ROUNDS} rounds."
        ),
    );
    let (mut ratios, mut refused, mut offered) = (vec![], vec![], vec![]);
    let (mut before, mut during, mut rates, mut accepted) = (vec![], vec![], vec![], vec![]);
    for round in 1..=ROUNDS {
        let calm = Spec { concurrency: capacity, ..server.load(&frames, true, setup.seconds())? }.run()?;
        let p99 = calm.ok.as_ref().context("no request succeeded at saturation")?.p99;
        let rate = calm.ok_per_s * TIMES;
        let load = server.load(&frames, true, setup.seconds())?;
        let storm = Spec { concurrency: CLIENTS, rate: Some(rate), ..load }.run()?;
        let storm_p99 = storm.ok.as_ref().context("no request succeeded under overload")?.p99;
        let refusals = storm.statuses.get(&429).context("nothing was refused under overload")?;
        progress(&format!(
            "{round}/{ROUNDS}: p99 {p99:.1} ms, under overload {storm_p99:.1} ms; 429 in {:.2} ms; {}",
            refusals.p50,
            storm.trouble().unwrap_or_default()
        ));
        ratios.push(storm_p99 / p99);
        refused.push(refusals.p50);
        let due = (storm.requests + storm.unsent) as f64;
        offered.push(TIMES * storm.requests as f64 / due);
        before.push(p99);
        during.push(storm_p99);
        rates.push(calm.ok_per_s);
        accepted.push(storm.ok_per_s);
    }
    section.hold("p99 of the accepted / p99 at saturation", median(&ratios), "", Target::AtMost(2.0));
    section.hold("median time to a 429", median(&refused), "ms", Target::Below(5.0));
    // What the rig could not send was no load: below this the two numbers above would not mean much.
    section.hold("load really sent, times saturation", median(&offered), "", Target::AtLeast(TIMES * 0.9));
    section.note("p99 at saturation", median(&before), "ms");
    section.note("p99 of the accepted", median(&during), "ms");
    section.note("successes a second at saturation", median(&rates), "");
    section.note("successes a second under overload", median(&accepted), "");
    Ok(section)
}
