//! Location of a version's artifacts, and how they are read: by the box's own S3 client, or through the server.

use std::path::Path;

use reqwest::Url;

use super::MlflowRegistry;
use super::answers::DownloadUri;
use super::download::{self, Wanted};
use super::failure::Answer;
use super::listing::{Listing, join, logged_model, logged_model_uri, run_source, run_uri};
use crate::blob::{BlobStore, Found, Reading, S3Store};
use crate::error::{Link, SyncError, SyncResult};
use crate::registry::partial::{Origin, Partial, Size};
use crate::registry::{Artifact, ModelVersion, check_path};

/// Location of a version's folder.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// In a storage with the S3 protocol; the prefix has no trailing slash.
    S3 { bucket: String, prefix: String },
    /// Behind the server's artifact proxy.
    Proxy { path: String },
    /// In a location that only the server can read.
    Server,
}

impl Place {
    /// Whatever host the URI names: this box only connects to its own server.
    pub(super) fn of(uri: &str) -> SyncResult<Self> {
        const PROXY: &str = "/mlflow-artifacts/artifacts";
        let uri = uri.split(['?', '#']).next().unwrap_or(uri);
        let path = if let Some(rest) = uri.strip_prefix("s3://").or_else(|| uri.strip_prefix("s3a://")) {
            let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
            let prefix = prefix.trim_end_matches('/').to_owned();
            return Ok(Self::S3 { bucket: bucket.to_owned(), prefix });
        } else if let Some(rest) = uri.strip_prefix("mlflow-artifacts:") {
            match rest.strip_prefix("//") {
                Some(rest) => rest.split_once('/').map_or("", |(_, path)| path),
                None => rest,
            }
        } else if let (true, Some((_, path))) = (uri.starts_with("http"), uri.split_once(PROXY)) {
            path
        } else {
            return Ok(Self::Server);
        };
        let path = path.trim_matches('/').to_owned();
        if !path.is_empty() {
            check_path(Link::Mlflow, &path)?;
        }
        Ok(Self::Proxy { path })
    }
}

impl MlflowRegistry {
    /// Location of a version, as reported by the server.
    async fn find(&self, version: &ModelVersion) -> Answer<(String, Place)> {
        let what = format!("find the files of {} version {}", version.name, version.version);
        let query = [("name", version.name.as_str()), ("version", version.version.as_str())];
        let found: DownloadUri = self.rest.get(&what, "model-versions/get-download-uri", &query).await?;
        let uri = if let Some(id) = logged_model(&found.artifact_uri) {
            logged_model_uri(&self.rest, id).await?
        } else if let Some((id, folder)) = run_source(&found.artifact_uri) {
            run_uri(&self.rest, id, folder).await?
        } else {
            found.artifact_uri
        };
        let place = Place::of(&uri)?;
        Ok((uri, place))
    }

    /// All files of a version.
    pub(super) async fn list(&self, version: &ModelVersion, limit: usize) -> Answer<Vec<Artifact>> {
        let (uri, place) = self.find(version).await?;
        if let (Place::S3 { bucket, prefix }, Some(s3)) = (&place, &self.s3) {
            match list_s3(s3, bucket, prefix, limit).await {
                Ok(files) if !files.is_empty() => return Ok(files),
                Ok(_) => {}
                Err(error) if error.link() != Link::S3 => return Err(error.into()),
                Err(error) => self.note_fallback(&uri, &error),
            }
        }
        let listing = self.listing(version, &uri, place).await?;
        listing.all(&self.rest, limit).await
    }

    async fn listing(&self, version: &ModelVersion, uri: &str, place: Place) -> Answer<Listing> {
        match place {
            Place::Proxy { path } => Ok(Listing::Proxy { root: path }),
            _ => Listing::of_server(&self.rest, version, uri).await,
        }
    }

    fn note_fallback(&self, uri: &str, error: &SyncError) {
        tracing::debug!(
            uri,
            error = error.in_full(),
            "cannot read the artifacts from the storage; reading them through the server"
        );
    }

    /// Fetches one file.
    pub(super) async fn fetch_file(
        &self,
        version: &ModelVersion,
        path: &str,
        to: &Path,
        limit: u64,
    ) -> Answer<()> {
        let (uri, place) = self.find(version).await?;
        let size = Size { limit, listed: None };
        if let (Place::S3 { bucket, prefix }, Some(s3)) = (&place, &self.s3) {
            let key = join(prefix, path);
            let source = format!("s3://{bucket}/{key}");
            let store = s3.bucket(bucket);
            match begin_s3(store, &source, &key, to).await {
                Ok(Some(begun)) => return Ok(copy_s3(begun, &source, to, size).await?),
                Ok(None) => {}
                Err(error) => self.note_fallback(&uri, &error),
            }
        }
        let url = self.file_url(version, path, &place);
        let listing = self.listing(version, &uri, place).await?;
        let (folder, _) = path.rsplit_once('/').unwrap_or(("", path));
        let found = listing.level(&self.rest, folder).await?;
        let Some(found) = found.into_iter().find(|found| found.path == path && !found.is_dir) else {
            let text = format!("{} version {} has no file {path:?}", version.name, version.version);
            return Err(SyncError::permanent(Link::Mlflow, text).into());
        };
        let what = format!("{path} of {} version {}", version.name, version.version);
        let size = Size { listed: found.file_size, ..size };
        size.check(Link::Mlflow, &what, found.file_size.unwrap_or(0))?;
        download::fetch(&self.rest, &Wanted { what, url, size }, to).await
    }

    fn file_url(&self, version: &ModelVersion, path: &str, place: &Place) -> Url {
        match place {
            Place::Proxy { path: root } => {
                let file = format!("api/2.0/mlflow-artifacts/artifacts/{}", join(root, path));
                self.rest.url(&file, &[])
            }
            _ => {
                let query = [("name", version.name.as_str()), ("version", &version.version), ("path", path)];
                self.rest.url("model-versions/get-artifact", &query)
            }
        }
    }
}

async fn list_s3(s3: &S3Store, bucket: &str, prefix: &str, limit: usize) -> SyncResult<Vec<Artifact>> {
    let store = s3.bucket(bucket)?;
    let begin = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
    let (mut files, mut next) = (Vec::new(), None);
    loop {
        let page = store.list(&begin, next.as_deref()).await?;
        for object in page.objects {
            let path = object.key.strip_prefix(&begin).unwrap_or(&object.key).to_owned();
            check_path(Link::Mlflow, &path)?;
            files.push(Artifact { path, bytes: Some(object.bytes) });
            if files.len() > limit {
                let text = format!("s3://{bucket}/{prefix} has more than {limit} files");
                return Err(SyncError::permanent(Link::Mlflow, text));
            }
        }
        next = page.next;
        if next.is_none() {
            return Ok(files);
        }
    }
}

/// The rest of an object, and the file to which it is appended; no file where it starts from the beginning.
type ResumedObject = (Reading, Option<Partial>);

/// `None` when the object does not exist.
async fn begin_s3(
    store: SyncResult<S3Store>,
    source: &str,
    key: &str,
    to: &Path,
) -> SyncResult<Option<ResumedObject>> {
    let store = store?;
    if let Some(left) = Partial::left(to).await.filter(|left| left.origin.source == source) {
        let found = store.read_from(key, left.bytes, Some(&left.origin.content)).await?;
        if let Found::Body(reading) = found {
            return Ok(Some((reading, Some(Partial::resume(to, &left).await?))));
        }
    }
    match store.read_from(key, 0, None).await? {
        Found::Body(reading) => Ok(Some((reading, None))),
        Found::Nothing | Found::Another => Ok(None),
    }
}

async fn copy_s3((mut reading, file): ResumedObject, source: &str, to: &Path, size: Size) -> SyncResult<()> {
    let size = Size { listed: reading.total, ..size };
    size.check(Link::S3, source, reading.total.unwrap_or(0))?;
    let mut file = match file {
        Some(file) => file,
        None => {
            let content = reading.etag.clone();
            let origin = content.map(|content| Origin { source: source.to_owned(), content });
            Partial::begin(to, origin.as_ref()).await?
        }
    };
    loop {
        let piece = match reading.next().await {
            Ok(Some(piece)) => piece,
            Ok(None) => break,
            Err(error) => {
                file.leave().await;
                return Err(error);
            }
        };
        size.check(Link::S3, source, file.bytes() + piece.len() as u64)?;
        file.write(&piece).await?;
    }
    match reading.total {
        Some(total) if total != file.bytes() => {
            let text = format!("{source} broke off after {} of {total} bytes", file.bytes());
            file.leave().await;
            Err(SyncError::transient(Link::S3, text))
        }
        _ => file.finish().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uri_says_which_way_leads_to_the_files() {
        let s3 = |bucket: &str, prefix: &str| Place::S3 { bucket: bucket.into(), prefix: prefix.into() };
        let proxy = |path: &str| Place::Proxy { path: path.into() };
        for (uri, place) in [
            ("s3://b/a/model", s3("b", "a/model")),
            ("s3://b/a/model/", s3("b", "a/model")),
            ("s3://b", s3("b", "")),
            ("mlflow-artifacts:/1/x/artifacts/model", proxy("1/x/artifacts/model")),
            ("mlflow-artifacts://evil.example:80/1/x", proxy("1/x")),
            ("http://h/api/2.0/mlflow-artifacts/artifacts/1/x", proxy("1/x")),
            ("https://h/p/api/2.0/mlflow-artifacts/artifacts/1/x?a=b", proxy("1/x")),
            ("gs://b/x", Place::Server),
            ("file:///mlruns/1", Place::Server),
        ] {
            assert_eq!(Place::of(uri).unwrap(), place, "{uri}");
        }
        let error = Place::of("mlflow-artifacts:/1/../../2").unwrap_err();
        assert!(error.in_full().contains("1/../../2"), "{}", error.in_full());
    }
}
