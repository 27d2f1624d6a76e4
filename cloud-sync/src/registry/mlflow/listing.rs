//! Lists a version's files by the server's own calls: of its artifact proxy, of a run, of a logged model.

use serde_json::Value;

use super::answers::{FileInfo, Files, OneRun, OneVersion};
use super::failure::Answer;
use super::rest::Rest;
use crate::error::{Link, SyncError};
use crate::registry::{Artifact, ModelVersion, check_path};

/// Maximum depth of folders, number of folders, and pages per folder.
const MAX_DEPTH: usize = 32;
const MAX_FOLDERS: usize = 1000;
const MAX_PAGES: usize = 100;

/// Which call lists the files.
pub(super) enum Listing {
    /// That of the artifact proxy; with the path of the version's folder there.
    Proxy { root: String },
    /// That of a run; with the path of the version's folder among its artifacts.
    Run { id: String, root: String },
    /// That of a logged model (MLflow 3).
    Logged { id: String },
}

impl Listing {
    /// For a version whose artifacts only the server itself can read.
    pub(super) async fn of_server(rest: &Rest, version: &ModelVersion, uri: &str) -> Answer<Self> {
        let what = format!("find the files of {} version {}", version.name, version.version);
        let query = [("name", version.name.as_str()), ("version", version.version.as_str())];
        let found: OneVersion = rest.get(&what, "model-versions/get", &query).await?;
        let found = found.model_version;
        if let Some(id) = logged_model(&found.source) {
            return Ok(Self::Logged { id: id.to_owned() });
        }
        if let Some((id, root)) = run_source(&found.source) {
            return Ok(Self::Run { id: id.to_owned(), root: root.to_owned() });
        }
        if !found.run_id.is_empty() {
            let run: OneRun = rest.get(&what, "runs/get", &[("run_id", &found.run_id)]).await?;
            let root = run.run.info.artifact_uri;
            let below = uri.strip_prefix(root.trim_end_matches('/'));
            if let Some(below) = below.filter(|below| below.is_empty() || below.starts_with('/')) {
                return Ok(Self::Run { id: found.run_id, root: below.trim_matches('/').to_owned() });
            }
        }
        if !found.model_id.is_empty() {
            return Ok(Self::Logged { id: found.model_id });
        }
        let text = format!(
            "cannot {what}: they lie in {uri}, which this box cannot read (are there keys for that storage?), \
             and the server lists files of runs and logged models only"
        );
        Err(SyncError::permanent(Link::Mlflow, text).into())
    }

    /// All files; an error if there are more than `limit`.
    pub(super) async fn all(&self, rest: &Rest, limit: usize) -> Answer<Vec<Artifact>> {
        let mut files = Vec::new();
        let mut folders = vec![(String::new(), 0)];
        let mut seen = 0;
        while let Some((folder, depth)) = folders.pop() {
            seen += 1;
            if seen > MAX_FOLDERS || depth > MAX_DEPTH {
                let text = format!("too many folders, or too deep ones: {folder:?}");
                return Err(SyncError::permanent(Link::Mlflow, text).into());
            }
            for found in self.level(rest, &folder).await? {
                if found.is_dir {
                    folders.push((found.path, depth + 1));
                } else {
                    files.push(Artifact { path: found.path, bytes: found.file_size });
                }
                if files.len() > limit {
                    let text = format!("the version has more than {limit} files");
                    return Err(SyncError::permanent(Link::Mlflow, text).into());
                }
            }
        }
        files.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(files)
    }

    /// One folder of the version ("" for its own), with paths relative to the version's folder.
    pub(super) async fn level(&self, rest: &Rest, folder: &str) -> Answer<Vec<FileInfo>> {
        let what = format!("list the artifacts in {folder:?}");
        let path = match self {
            Self::Proxy { root } | Self::Run { root, .. } => join(root, folder),
            Self::Logged { .. } => folder.to_owned(),
        };
        let (call, place) = match self {
            Self::Proxy { .. } => ("api/2.0/mlflow-artifacts/artifacts".to_owned(), "path"),
            Self::Run { .. } => ("api/2.0/mlflow/artifacts/list".to_owned(), "path"),
            Self::Logged { id } => (
                format!("api/2.0/mlflow/logged-models/{id}/artifacts/directories"),
                "artifact_directory_path",
            ),
        };
        let (mut found, mut next) = (Vec::new(), String::new());
        for _ in 0..MAX_PAGES {
            let mut query = vec![(place, path.as_str())];
            query.retain(|(_, path)| !path.is_empty());
            if let Self::Run { id, .. } = self {
                query.push(("run_id", id));
            }
            if !next.is_empty() {
                query.push(("page_token", &next));
            }
            let page: Files = rest.get_url(&what, rest.url(&call, &query)).await?;
            for file in page.files {
                found.push(self.placed(file, &path, folder)?);
            }
            next = page.next_page_token.unwrap_or_default();
            if next.is_empty() {
                return Ok(found);
            }
        }
        Err(SyncError::permanent(Link::Mlflow, format!("cannot {what}: the listing has too many pages"))
            .into())
    }

    /// The proxy reports names relative to their folder, the other calls relative to the run or the model.
    fn placed(&self, file: FileInfo, path: &str, folder: &str) -> Answer<FileInfo> {
        let name = match self {
            Self::Proxy { .. } => file.path.as_str(),
            _ if path.is_empty() => file.path.as_str(),
            _ => {
                let below = file.path.strip_prefix(path).and_then(|below| below.strip_prefix('/'));
                below.unwrap_or(&file.path)
            }
        };
        check_path(Link::Mlflow, name)?;
        Ok(FileInfo { path: join(folder, name), ..file })
    }
}

/// Location of a logged model's files.
pub(super) async fn logged_model_uri(rest: &Rest, id: &str) -> Answer<String> {
    let what = format!("find the files of the logged model {id}");
    let found: Value = rest.get(&what, &format!("logged-models/{id}"), &[]).await?;
    Ok(found["model"]["info"]["artifact_uri"].as_str().unwrap_or_default().to_owned())
}

/// Location of a folder among a run's artifacts.
pub(super) async fn run_uri(rest: &Rest, id: &str, folder: &str) -> Answer<String> {
    let what = format!("find the artifacts of the run {id}");
    if !folder.is_empty() {
        check_path(Link::Mlflow, folder)?;
    }
    let run: OneRun = rest.get(&what, "runs/get", &[("run_id", id)]).await?;
    Ok(join(run.run.info.artifact_uri.trim_end_matches('/'), folder))
}

/// Run and folder in `runs:/<run>/<folder>`, as MLflow's client writes the source of a model that a run logged.
pub(super) fn run_source(source: &str) -> Option<(&str, &str)> {
    let rest = source.strip_prefix("runs:/")?.trim_matches('/');
    let (id, folder) = rest.split_once('/').unwrap_or((rest, ""));
    let plain = !id.is_empty() && id.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_');
    plain.then_some((id, folder))
}

/// The id in `models:/m-...`.
pub(super) fn logged_model(source: &str) -> Option<&str> {
    let id = source.strip_prefix("models:/")?.trim_matches('/');
    let plain = id.starts_with("m-") && id.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
    plain.then_some(id)
}

pub(super) fn join(folder: &str, name: &str) -> String {
    match (folder.is_empty(), name.is_empty()) {
        (true, _) => name.to_owned(),
        (_, true) => folder.to_owned(),
        _ => format!("{folder}/{name}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_names_a_run_and_a_folder_of_its_artifacts() {
        for (source, found) in [
            ("runs:/4f0e/model", Some(("4f0e", "model"))),
            ("runs:/4f0e/a/b/", Some(("4f0e", "a/b"))),
            ("runs:/4f0e", Some(("4f0e", ""))),
            ("runs:/", None),
            ("runs:/a b/model", None),
            ("models:/m-4f0e", None),
        ] {
            assert_eq!(run_source(source), found, "{source}");
        }
    }
}
