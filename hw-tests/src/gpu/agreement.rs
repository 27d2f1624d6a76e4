//! Predictions of the GPU compared with those of the CPU.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use bytes::Bytes;
use gpu_kernels::DecodeLimits;
use inference::bundle::DeviceTag;
use inference::engine::Provider;
use inference::lanes::Lanes;
use inference::lanes::cpu::CpuPipeline;

use super::end_to_end::start;
use super::report::Sheet;
use super::setup::Setup;
use crate::bench::Target;
use crate::frames::{self, Frame};

/// Longest for one image.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Seconds that a provider takes to load.
const LOAD: f64 = 20.0;

pub(super) fn run(setup: &Setup, sheet: &Sheet) -> anyhow::Result<()> {
    let photos = match &setup.args.photos {
        Some(folder) => frames::read_dir(folder)?.into_iter().take(setup.plan.photos).collect(),
        None => {
            sheet.info(
                "photos",
                "no folder of photos was given (--photos); golden cases and frames are compared",
            );
            let mut pictures = Vec::new();
            for &size in &setup.plan.sizes {
                pictures.extend(setup.frames(size)?.iter().cloned());
            }
            pictures
        }
    };
    let on_cpu = on_cpu(setup, &photos)?;
    for provider in setup.providers()? {
        let what = format!("{provider} and CPU");
        if sheet.has_time(&what, if setup.simulated { 1.0 } else { LOAD }) {
            sheet.attempt(&what, || compare(setup, sheet, provider, (&photos, &on_cpu)));
        }
    }
    Ok(())
}

fn on_cpu(setup: &Setup, photos: &[Frame]) -> anyhow::Result<Vec<Vec<f32>>> {
    let model = setup.model(DeviceTag::Cpu)?;
    let limits = DecodeLimits::default();
    let mut cpu = CpuPipeline::new(&model.runtime, &model.bundle, &model.file, limits, 1)?;
    let each =
        photos.iter().map(|photo| Ok(cpu.classify(&photo.bytes).with_context(|| photo.name.clone())?.scores));
    each.collect()
}

/// Scores of each picture, in order.
fn on_lanes(lanes: &Lanes, images: Vec<Bytes>) -> anyhow::Result<Vec<Vec<f32>>> {
    let mut scores = Vec::with_capacity(images.len());
    for some in images.chunks(lanes.capacity()) {
        let submit = |image: &Bytes| lanes.submit(image.clone(), Instant::now() + TIMEOUT);
        let answers: Vec<_> = some.iter().map(submit).collect::<Result<_, _>>()?;
        for answer in answers {
            scores.push(answer.blocking_recv().context("the lane has ended")??.0.scores);
        }
    }
    Ok(scores)
}

fn best(scores: &[f32]) -> Option<usize> {
    (0..scores.len()).max_by(|&a, &b| scores[a].total_cmp(&scores[b]))
}

fn compare(
    setup: &Setup,
    sheet: &Sheet,
    provider: Provider,
    (photos, on_cpu): (&[Frame], &[Vec<f32>]),
) -> anyhow::Result<()> {
    let model = setup.model_for(provider)?;
    let lanes = start(setup, &model, provider)?;
    let cases = model.bundle.golden_cases()?;
    let pictures = cases.iter().map(|case| Bytes::from(case.bytes.clone())).collect();
    let labels = &model.bundle.manifest().labels;
    let judged = cases.iter().zip(on_lanes(&lanes, pictures)?);
    let wrong: Vec<String> = judged
        .filter_map(|(case, scores)| {
            case.judge(labels, &scores).err().map(|why| format!("{}: {why}", case.file))
        })
        .collect();
    let what = format!("{provider}: golden cases right, of {}", cases.len());
    let right = (cases.len() - wrong.len()) as f64;
    sheet.hold(what, right, "", Target::AtLeast(cases.len() as f64), &wrong.join("; "));
    ensure!(!photos.is_empty(), "there is no photo");
    let on_gpu = on_lanes(&lanes, photos.iter().map(|photo| Bytes::from(photo.bytes.clone())).collect())?;
    lanes.stop();
    let mut differing = Vec::new();
    let mut differences = Vec::new();
    for ((photo, cpu), gpu) in photos.iter().zip(on_cpu).zip(&on_gpu) {
        let Some(label) = best(cpu) else { continue };
        differences.push(f64::from((cpu[label] - gpu.get(label).copied().unwrap_or(f32::NAN)).abs()));
        if best(gpu) != Some(label) {
            differing.push(photo.name.clone());
        }
    }
    let agree = 100.0 * (photos.len() - differing.len()) as f64 / photos.len() as f64;
    let what =
        format!("{provider} ({}) and CPU: the same species first, of {}", model.file.precision, photos.len());
    sheet.hold(what, agree, "%", Target::AtLeast(95.0), &differing.join(", "));
    let most = differences.iter().copied().fold(0.0, f64::max);
    sheet.note(format!("{provider} and CPU: largest difference of the top score"), most, "", "");
    let mean = differences.iter().sum::<f64>() / differences.len().max(1) as f64;
    sheet.note(format!("{provider} and CPU: mean difference of the top score"), mean, "", "");
    Ok(())
}
