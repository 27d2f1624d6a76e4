//! Assembly of a bundle in the staging folder, from a version that holds a Weir bundle or a plain ONNX model.

use std::path::Path;
use std::sync::Arc;

use gpu_kernels::PreprocessSpec;
use inference::bundle::{DataFile, Golden, LABELS, MANIFEST, MANIFEST_LIMIT, Manifest};
use inference::engine::{EngineError, Graph, Runtime};

use super::download::{Download, Fetched};
use super::paths::Listing;
use super::{Progress, PullError, blocking, paths};
use crate::models::mlflow_onnx::{Complete, Labels, PlainModelSpec, onnx_file};

const MLMODEL: &str = "MLmodel";
const SIDECAR: &str = "weir.toml";
/// Documents beside the manifest, which are fetched too; no digest of them is known.
const DOCUMENTS: [&str; 6] = ["license", "licence", "notice", "readme", "copying", "authors"];

/// Fetches what the version holds and assembles a bundle of it.
pub(super) async fn assemble(mut download: Download<'_>) -> Result<(), PullError> {
    let listed = download.registry.artifacts(download.version, download.limits.max_files).await;
    download.listing = paths::check_all(listed.map_err(PullError::Registry)?)?;
    (download.progress)(Progress::Listed { files: download.listing.len() });
    let staging = Arc::clone(&download.staging);
    let stage = blocking(move || Ok(staging.stage()?)).await?;
    match folder_with(&download.listing, MANIFEST)? {
        Some(root) => assemble_bundle(&mut download, &root, &stage).await,
        None => match folder_with(&download.listing, MLMODEL)? {
            Some(root) => assemble_onnx(&mut download, &root, &stage).await,
            None => Err(no_model(&download.listing)),
        },
    }
}

/// The one folder with a file of this name, with a slash behind unless it is the root.
fn folder_with(listing: &Listing, name: &str) -> Result<Option<String>, PullError> {
    let root = |path: &String| path.strip_suffix(name).map(str::to_owned);
    let mut places = listing.keys().filter_map(root).filter(|at| at.is_empty() || at.ends_with('/'));
    match (places.next(), places.next()) {
        (None, _) => Ok(None),
        (Some(one), None) => Ok(Some(one)),
        (Some(one), Some(other)) => {
            let found = format!("several models: {one}{name} and {other}{name}");
            Err(PullError::NoModel { found })
        }
    }
}

fn no_model(listing: &Listing) -> PullError {
    let archive = |path: &&String| {
        let path = path.to_lowercase();
        [".zip", ".tar", ".tar.gz", ".tgz"].iter().any(|end| path.ends_with(end))
    };
    if let Some(path) = listing.keys().find(archive) {
        return PullError::Archive { path: path.clone() };
    }
    let some: Vec<&str> = listing.keys().take(5).map(String::as_str).collect();
    let found = match some.is_empty() {
        true => "no files".into(),
        false => {
            format!("neither bundle.toml nor MLmodel, but {} files ({}, ...)", listing.len(), some.join(", "))
        }
    };
    PullError::NoModel { found }
}

/// Fetches a Weir bundle whose manifest is in the folder `root` (empty, or with a slash behind): its manifest first, then
/// exactly the files that it names.
async fn assemble_bundle(download: &mut Download<'_>, root: &str, stage: &Path) -> Result<(), PullError> {
    let manifest_path = format!("{root}{MANIFEST}");
    let text = download.text(&manifest_path, MANIFEST_LIMIT).await?;
    let manifest: Manifest =
        toml::from_str(&text).map_err(|error| PullError::Manifest(error.to_string().trim().into()))?;
    manifest.validate().map_err(PullError::Manifest)?;
    let mut files: Vec<(String, Option<String>)> = Vec::new();
    for (file, sha256) in manifest.files() {
        paths::check(file)?;
        if !files.iter().any(|(known, _)| known == file) {
            files.push((file.to_owned(), Some(sha256.to_owned())));
        }
    }
    files.push((LABELS.to_owned(), None));
    let absent: Vec<&str> = files
        .iter()
        .filter(|(file, _)| !download.listing.contains_key(&format!("{root}{file}")))
        .map(|(file, _)| file.as_str())
        .collect();
    if !absent.is_empty() {
        return Err(PullError::Absent { file: absent.join(", "), by: MANIFEST });
    }
    let beside = download.listing.keys().filter_map(|path| path.strip_prefix(root));
    let more: Vec<String> = beside.filter(|file| is_document(file)).map(str::to_owned).collect();
    for file in more {
        if !files.iter().any(|(known, _)| *known == file) {
            files.push((file, None));
        }
    }
    let needed: Vec<String> = files.iter().map(|(file, _)| format!("{root}{file}")).collect();
    download.check_room(&needed).await?;
    download.write(stage, MANIFEST, text).await?;
    for ((file, sha256), path) in files.iter().zip(&needed) {
        let fetched = download.fetch(path, sha256.as_deref()).await?;
        download.stage(stage, &fetched, file).await?;
    }
    Ok(())
}

fn is_document(file: &str) -> bool {
    let stem = file.split('.').next().unwrap_or_default().to_lowercase();
    !file.contains('/') && DOCUMENTS.contains(&stem.as_str())
}

/// Everything that is needed of a version with a plain model; the version holds all of it.
struct Plan {
    spec: PlainModelSpec,
    /// The folder of the sidecar; the paths in it are relative to this.
    folder: String,
    labels: Labels,
    preprocess: PreprocessSpec,
    /// The ONNX file relative to the MLmodel's folder.
    model: String,
    /// External data, relative to the same folder.
    data: Vec<String>,
}

/// Fetches a plain ONNX model whose MLmodel is in the folder `root` (empty, or with a slash behind) and makes a bundle of it.
async fn assemble_onnx(download: &mut Download<'_>, root: &str, stage: &Path) -> Result<(), PullError> {
    let plan = plan(download, root).await?;
    let labels = match &plan.labels {
        Labels::Listed(labels) => labels.clone(),
        Labels::File(file) => {
            let text = download.text(file, MANIFEST_LIMIT).await?;
            text.lines().map(str::trim_end).filter(|line| !line.is_empty()).map(str::to_owned).collect()
        }
    };
    let cases = plan.spec.golden.iter().map(|case| format!("{}{}", plan.folder, case.file));
    let weights = std::iter::once(&plan.model).chain(&plan.data).map(|file| format!("{root}{file}"));
    download.check_room(&weights.chain(cases).collect::<Vec<_>>()).await?;

    let model = fetch(download, stage, root, &plan.model, plan.spec.sha256.as_deref()).await?;
    let mut data = Vec::new();
    for file in &plan.data {
        data.push(fetch(download, stage, root, file, None).await?);
    }
    let mut golden: Vec<Golden> = Vec::new();
    for case in &plan.spec.golden {
        let path = format!("{}{}", plan.folder, case.file);
        let fetched = download.fetch(&path, case.sha256.as_deref()).await?;
        // In a folder of their own they can't collide with other files.
        let file = format!("golden/{}", case.file.trim_start_matches("golden/"));
        if !golden.iter().any(|known| known.file == file) {
            download.stage(stage, &fetched, &file).await?;
        }
        let (sha256, label) = (fetched.sha256, case.label.clone());
        golden.push(Golden { file, sha256, label, min_score: case.min_score });
    }
    let graph = read_graph(download, stage.join(&plan.model)).await?;
    let complete = Complete {
        name: plain(plan.spec.name.as_deref().unwrap_or(&download.version.name)),
        version: plain(&download.version.version),
        labels,
        preprocess: plan.preprocess,
        model,
        data,
        golden,
    };
    let manifest = complete.manifest(&plan.spec, &graph).map_err(PullError::Unfit)?;
    let text = toml::to_string(&manifest).map_err(|error| PullError::Unfit(error.to_string()))?;
    let listed: String = manifest.labels.iter().map(|label| format!("{label}\n")).collect();
    for (file, text) in [(MANIFEST, text), (LABELS, listed)] {
        download.write(stage, file, text).await?;
    }
    Ok(())
}

/// Determines what is needed and whether the version holds it, before anything large is fetched.
async fn plan(download: &mut Download<'_>, root: &str) -> Result<Plan, PullError> {
    let mlmodel = download.text(&format!("{root}{MLMODEL}"), MANIFEST_LIMIT).await?;
    let sidecar = [root, ""].into_iter().find(|at| download.listing.contains_key(&format!("{at}{SIDECAR}")));
    let text = match sidecar {
        Some(folder) => Some(download.text(&format!("{folder}{SIDECAR}"), MANIFEST_LIMIT).await?),
        None => None,
    };
    let folder = sidecar.unwrap_or_default().to_owned();
    let (spec, mut faults) = PlainModelSpec::gather(&download.version.tags, text.as_deref());
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
    for case in spec.golden.iter().filter(|case| !held(&format!("{folder}{}", case.file))) {
        faults.push(format!("golden case {:?}: weir.toml names it, log it beside weir.toml", case.file));
    }
    let labels = match spec.labels() {
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
        other => other,
    };
    match (labels, spec.preprocess()) {
        (Some(labels), Some(preprocess)) if faults.is_empty() => {
            let data = data_of(download.listing.keys(), root, &model);
            Ok(Plan { spec, folder, labels, preprocess, model, data })
        }
        _ => Err(PullError::Incomplete(faults)),
    }
}

/// Files beside the ONNX file whose names are those of external data; the graph says which of them it needs.
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
        // The local path is of no use to a reader of the registry's tag.
        EngineError::Model { source, .. } => PullError::Unfit(format!("it does not load: {source}")),
        EngineError::Mismatch { reason, .. } => PullError::Unfit(reason),
        other => PullError::Engine(other),
    })
}

/// A registered name with only the characters that a manifest allows.
fn plain(name: &str) -> String {
    let kept = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' };
    name.chars().map(kept).take(64).collect()
}
