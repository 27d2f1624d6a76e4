//! Batch throughput: messages from Kafka, images from the S3 server, against the in-process limit on the same images.

use std::time::{Duration, Instant};

use anyhow::ensure;

use super::api::{self, Metrics};
use super::{Servers, distinct_frames, upload};
use crate::bench::limit::plan;
use crate::bench::result::{Section, Target, median};
use crate::bench::setup::{Server, Setup, progress};
use crate::frames::Size;
use crate::limit::Engine;
use crate::process::{Processes, Used};

/// Pairs of one measurement each; odd, so that the median is one of them.
const PAIRS: usize = 3;
/// Objects of each size.
const OBJECTS: [(Size, usize); 2] = [(Size::Vga, 300), (Size::P1080, 150)];
/// Interval between queries of the worker's progress; each costs it about a tenth of a millisecond.
const POLL_INTERVAL: Duration = Duration::from_millis(50);
const TIMEOUT: Duration = Duration::from_secs(300);

/// The processes under measurement.
struct Running {
    api: Server,
    worker: Server,
    processes: Processes,
}

/// One processed batch.
struct Run {
    /// Images per second from the first classified image to the last.
    images_per_s: f64,
    /// Images per second from the POST to the status `completed`.
    whole_per_s: f64,
    /// CPU time between the first and the last classified image.
    used: Used,
    /// Images in that time.
    images: f64,
}

pub(in crate::bench) fn run(setup: &Setup) -> anyhow::Result<Section> {
    let (engine, plan) = (Engine::load(Some(&setup.bundle))?, plan(setup));
    let servers = Servers::start(&["kafka", "redis", "s3"]);
    let running = Running::start(setup, &servers)?;
    let mut section = Section::new(
        "worker",
        format!(
            "Batches posted to `weir serve` and processed by one `weir worker` through Kafka (SASL_SSL), Redis and an S3 \
             server, all on the same cores. Images per second from the first image classified to the last, over those of the \
             in-process limit on the same images, in turn; medians of {PAIRS} pairs."
        ),
    );
    for (size, count) in OBJECTS {
        let name = size.name();
        let frames = distinct_frames(size, count)?;
        let urls = upload(&servers, &frames)?;
        // Connections, the consumer group, and the S3 server's files in memory.
        running.work_off(&format!("{name}-warm"), &urls, count)?;
        let (mut ratios, mut limits, mut rates, mut wholes) = (vec![], vec![], vec![], vec![]);
        let (mut all, mut others) = (vec![], vec![]);
        let mut costs: Vec<(String, Vec<f64>)> = Vec::new();
        for pair in 1..=PAIRS {
            let before = running.processes.read()?;
            let limit = engine.measure(&frames, &plan)?;
            others.push(running.processes.read()?.since(&before).others());
            let images = (limit.images_per_s * plan.duration.as_secs_f64()).max(500.0) as usize;
            let run = running.work_off(&format!("{name}-{pair}"), &urls, images)?;
            progress(&format!("{name} {pair}/{PAIRS}: {:.0} of {:.0}", run.images_per_s, limit.images_per_s));
            ratios.push(run.images_per_s / limit.images_per_s);
            limits.push(limit.cpu_ms);
            rates.push(run.images_per_s);
            wholes.push(run.whole_per_s);
            others.push(run.used.others());
            all.push(run.used.cores() * run.used.elapsed.as_secs_f64() * 1000.0 / run.images);
            for (process, used) in run.used.each {
                let cost = used.as_secs_f64() * 1000.0 / run.images;
                match costs.iter_mut().find(|(known, _)| *known == process) {
                    Some((_, costs)) => costs.push(cost),
                    None => costs.push((process, vec![cost])),
                }
            }
        }
        let of_limit = format!("{name}: images per second / those of the limit");
        section.hold(of_limit, median(&ratios), "", Target::AtLeast(0.85));
        section.note(format!("{name}: images per second"), median(&rates), "");
        section.note(format!("{name}: from the POST to `completed`"), median(&wholes), "images per second");
        section.note(format!("{name}: CPU per image, limit"), median(&limits), "ms");
        section.note(format!("{name}: CPU per image, everything"), median(&all), "ms");
        for (process, costs) in costs {
            section.note(format!("{name}: CPU per image, {process}"), median(&costs), "ms");
        }
        // Other processes slow down both, and not equally.
        section.note(format!("{name}: taken by others, at most"), largest(&others), "cores");
    }
    Ok(section)
}

fn largest(values: &[f64]) -> f64 {
    values.iter().copied().fold(0.0, f64::max)
}

impl Running {
    fn start(setup: &Setup, servers: &Servers) -> anyhow::Result<Self> {
        let (api, worker) = (servers.weir(setup, "serve")?, servers.weir(setup, "worker")?);
        let mut processes = vec![
            ("weir worker".to_owned(), worker.daemon.pid()),
            ("weir serve".to_owned(), api.daemon.pid()),
            ("this rig".to_owned(), std::process::id()),
        ];
        processes.extend(servers.processes()?);
        Ok(Self { api, worker, processes: Processes::new(processes) })
    }

    /// Posts a batch and waits for its end.
    fn work_off(&self, id: &str, urls: &[String], images: usize) -> anyhow::Result<Run> {
        let mut client = self.worker.client()?;
        let mut classified = || Metrics::of(&mut client)?.value("weir_batch_images_completed_total");
        let before = classified()?;
        let (posted, mut begun) = (Instant::now(), None);
        api::post_batch(&self.api, id, urls, images)?;
        let (used, counted) = loop {
            let done = classified()? - before;
            // An image that is computed again after a redelivery counts again, so that the count exceeds the number of images.
            ensure!(done <= images as f64, "batch {id} has {images} images, and {done} were classified");
            match &begun {
                None if done > 0.0 => begun = Some((self.processes.read()?, done)),
                Some((earlier, then)) if done == images as f64 => {
                    break (self.processes.read()?.since(earlier), done - then);
                }
                _ => {}
            }
            ensure!(posted.elapsed() < TIMEOUT, "batch {id}: {done} of {images} images after {TIMEOUT:?}");
            std::thread::sleep(POLL_INTERVAL);
        };
        api::wait_finished(&self.api, id, TIMEOUT)?;
        Ok(Run {
            images_per_s: counted / used.elapsed.as_secs_f64(),
            whole_per_s: images as f64 / posted.elapsed().as_secs_f64(),
            used,
            images: counted,
        })
    }
}
