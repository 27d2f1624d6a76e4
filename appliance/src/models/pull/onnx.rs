//! A version that holds a plain ONNX model: completed by tags and sidecar, then written down as a bundle.

use std::path::Path;

use gpu_kernels::PreprocessSpec;
use inference::bundle::{DataFile, Golden, LABELS, MANIFEST, MANIFEST_LIMIT};
use inference::engine::{EngineError, Graph, Runtime};

use super::download::{Download, Fetched};
use super::{PullError, blocking, paths};
use crate::models::mlflow_onnx::{Complete, Given, Labels, onnx_file};

pub(super) const MLMODEL: &str = "MLmodel";
const SIDECAR: &str = "weir.toml";

/// What the version has to hold for a plain model, all of it there.
struct Plan {
    given: Given,
    /// Of the sidecar: what it names is relative to it.
    folder: String,
    labels: Labels,
    preprocess: PreprocessSpec,
    /// The ONNX file relative to the MLmodel's folder.
    model: String,
    /// External data, likewise.
    data: Vec<String>,
}

/// Fetches the model whose MLmodel lies in the folder `root` (empty, or with a slash behind) and makes a bundle of it.
pub(super) async fn assemble(download: &mut Download<'_>, root: &str, stage: &Path) -> Result<(), PullError> {
    let plan = plan(download, root).await?;
    let labels = match &plan.labels {
        Labels::These(labels) => labels.clone(),
        Labels::File(file) => {
            let text = download.text(file, MANIFEST_LIMIT).await?;
            text.lines().map(str::trim_end).filter(|line| !line.is_empty()).map(str::to_owned).collect()
        }
    };
    let cases = plan.given.golden.iter().map(|case| format!("{}{}", plan.folder, case.file));
    let weights = std::iter::once(&plan.model).chain(&plan.data).map(|file| format!("{root}{file}"));
    download.check_room(&weights.chain(cases).collect::<Vec<_>>()).await?;

    let model = fetch(download, stage, root, &plan.model, plan.given.sha256.as_deref()).await?;
    let mut data = Vec::new();
    for file in &plan.data {
        data.push(fetch(download, stage, root, file, None).await?);
    }
    let mut golden: Vec<Golden> = Vec::new();
    for case in &plan.given.golden {
        let path = format!("{}{}", plan.folder, case.file);
        let fetched = download.fetch(&path, case.sha256.as_deref()).await?;
        // Below a folder of their own they can't be in the way of anything else.
        let file = format!("golden/{}", case.file.trim_start_matches("golden/"));
        if !golden.iter().any(|known| known.file == file) {
            download.stage(stage, &fetched, &file).await?;
        }
        let (sha256, label) = (fetched.sha256, case.label.clone());
        golden.push(Golden { file, sha256, label, min_score: case.min_score });
    }
    let graph = read_graph(download, stage.join(&plan.model)).await?;
    let complete = Complete {
        name: plain(plan.given.name.as_deref().unwrap_or(&download.version.name)),
        version: plain(&download.version.version),
        labels,
        preprocess: plan.preprocess,
        model,
        data,
        golden,
    };
    let manifest = complete.manifest(&plan.given, &graph).map_err(PullError::Unfit)?;
    let text = toml::to_string(&manifest).map_err(|error| PullError::Unfit(error.to_string()))?;
    let listed: String = manifest.labels.iter().map(|label| format!("{label}\n")).collect();
    for (file, text) in [(MANIFEST, text), (LABELS, listed)] {
        download.write(stage, file, text).await?;
    }
    Ok(())
}

/// Finds out what is needed and whether the version holds it, before anything large is fetched.
async fn plan(download: &mut Download<'_>, root: &str) -> Result<Plan, PullError> {
    let mlmodel = download.text(&format!("{root}{MLMODEL}"), MANIFEST_LIMIT).await?;
    let sidecar = [root, ""].into_iter().find(|at| download.listing.contains_key(&format!("{at}{SIDECAR}")));
    let text = match sidecar {
        Some(folder) => Some(download.text(&format!("{folder}{SIDECAR}"), MANIFEST_LIMIT).await?),
        None => None,
    };
    let folder = sidecar.unwrap_or_default().to_owned();
    let (given, mut faults) = Given::gather(&download.version.tags, text.as_deref());
    let held = |path: &str| paths::check(path).is_ok() && download.listing.contains_key(path);
    let model = onnx_file(&mlmodel).unwrap_or_else(|fault| {
        faults.push(fault);
        String::new()
    });
    if !model.is_empty() {
        let path = format!("{root}{model}");
        if !model.ends_with(".onnx") {
            faults.push(format!("an .onnx file: MLmodel names {model:?}"));
        } else if !held(&path) {
            faults.push(format!("{path:?}: MLmodel names it, log the model again with its files"));
        }
    }
    for case in given.golden.iter().filter(|case| !held(&format!("{folder}{}", case.file))) {
        faults.push(format!("golden case {:?}: weir.toml names it, log it beside weir.toml", case.file));
    }
    let labels = match given.labels() {
        Some(Labels::File(file)) => {
            let places = [format!("{folder}{file}"), format!("{root}{file}"), file.clone()];
            match places.into_iter().find(|path| held(path)) {
                Some(path) => Some(Labels::File(path)),
                None => {
                    faults.push(format!("the file of labels {file:?}: log it beside the model"));
                    None
                }
            }
        }
        these => these,
    };
    match (labels, given.preprocess()) {
        (Some(labels), Some(preprocess)) if faults.is_empty() => {
            let data = data_of(download.listing.keys(), root, &model);
            Ok(Plan { given, folder, labels, preprocess, model, data })
        }
        _ => Err(PullError::Incomplete(faults)),
    }
}

/// Files beside the ONNX file that are called as external data is: the graph says which of them it needs.
fn data_of<'a>(paths: impl Iterator<Item = &'a String>, root: &str, model: &str) -> Vec<String> {
    let folder = model.rsplit_once('/').map_or("", |(folder, _)| folder);
    let is_data = |file: &str| {
        let (at, name) = file.rsplit_once('/').unwrap_or(("", file));
        at == folder && [".data", "_data", ".weights", ".bin"].iter().any(|end| name.ends_with(end))
    };
    paths.filter_map(|path| path.strip_prefix(root)).filter(|file| is_data(file)).map(str::to_owned).collect()
}

async fn fetch(
    download: &mut Download<'_>,
    stage: &Path,
    root: &str,
    file: &str,
    sha256: Option<&str>,
) -> Result<DataFile, PullError> {
    let fetched: Fetched = download.fetch(&format!("{root}{file}"), sha256).await?;
    download.stage(stage, &fetched, file).await?;
    Ok(DataFile { file: file.into(), sha256: fetched.sha256 })
}

async fn read_graph(download: &Download<'_>, path: std::path::PathBuf) -> Result<Graph, PullError> {
    let library = download.limits.onnxruntime.clone();
    let read = blocking(move || {
        let runtime = Runtime::load(library.as_deref()).map_err(PullError::Engine)?;
        Ok(Graph::read(&runtime, &path))
    });
    read.await?.map_err(|error| match error {
        // Where it lies here helps nobody who reads this in the registry.
        EngineError::Model { source, .. } => PullError::Unfit(format!("it does not load: {source}")),
        EngineError::Mismatch { reason, .. } => PullError::Unfit(reason),
        other => PullError::Engine(other),
    })
}

/// A registered name as a manifest may have it.
fn plain(name: &str) -> String {
    let kept = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' };
    name.chars().map(kept).take(64).collect()
}
