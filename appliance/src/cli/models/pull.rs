//! `weir models pull`: a version into the store, verified and tried out, so that a later rollout finds it there.

use std::io::Write;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Context;
use cloud_sync::registry::ModelReference;
use gpu_kernels::DecodeLimits;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use inference::bundle_check::check_bundle;
use serde_json::json;

use super::registry;
use crate::bootstrap::{load_library, models_dir, pull_limits};
use crate::config::Config;
use crate::models::{ModelStore, Progress, pull};

pub(super) fn run(config: &Config, reference: &str, as_json: bool) -> anyhow::Result<ExitCode> {
    let reference: ModelReference = reference.parse()?;
    let (runtime, registry) = registry::open(config)?;
    let store = ModelStore::open(&models_dir(&config.data_dir))?;
    let engine = load_library(config)?;
    let began = Instant::now();
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    bar.set_style(ProgressStyle::with_template("{spinner} {msg}")?);
    let tell = |progress: Progress| bar.set_message(say(&progress));
    let pulled = runtime.block_on(async {
        let resolved = registry.resolve(&reference).await.map_err(|e| anyhow::anyhow!(e.in_full()))?;
        let version = resolved
            .with_context(|| format!("{reference}: the registry has no such model, alias or version"))?;
        bar.set_message(format!("{}/{}: looking at its files", version.name, version.version));
        let pulled = pull(registry.as_ref(), &version, &store, &pull_limits(config, &engine), &tell).await;
        pulled.map(|pulled| (version, pulled)).map_err(anyhow::Error::from)
    });
    bar.finish_and_clear();
    let (version, pulled) = pulled?;
    let bundle = store.bundle(&pulled.digest)?;
    let limits = config.image.limits(DecodeLimits::default().max_bytes);
    check_bundle(&engine, &bundle, config.engine.precision, limits)
        .with_context(|| format!("{}/{} is on disk, but must not serve", version.name, version.version))?;
    let mut out = std::io::stdout().lock();
    if as_json {
        let document = json!({
            "name": version.name,
            "version": version.version,
            "digest": pulled.digest,
            "downloaded": !pulled.known,
            "dir": bundle.dir(),
        });
        serde_json::to_writer_pretty(&mut out, &document)?;
        writeln!(out)?;
    } else {
        let how = if pulled.known { "was here already" } else { "is here" };
        writeln!(
            out,
            "{}/{} {how}: {} {}, verified, loaded and its golden cases right, {:.1} s\n{}",
            version.name,
            version.version,
            pulled.model,
            pulled.version,
            began.elapsed().as_secs_f64(),
            bundle.dir().display()
        )?;
    }
    Ok(ExitCode::SUCCESS)
}

fn say(progress: &Progress) -> String {
    match progress {
        Progress::Listed { files } => format!("{files} files"),
        Progress::File { path, so_far, .. } => format!("{path}, {} so far", bytesize::ByteSize(*so_far)),
        Progress::Admitting => "verifying and taking it into the store".to_owned(),
    }
}
