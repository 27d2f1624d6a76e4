//! A version that holds a Weir bundle: its manifest first, then exactly the files that it names.

use std::path::Path;

use inference::bundle::{LABELS, MANIFEST, MANIFEST_LIMIT, Manifest};

use super::download::Download;
use super::{PullError, paths};

/// Files of the bundle's own folder that people may need and no digest is known of.
const FOR_PEOPLE: [&str; 6] = ["license", "licence", "notice", "readme", "copying", "authors"];

/// Fetches the bundle whose manifest lies in the folder `root` (empty, or with a slash behind) and puts it together.
pub(super) async fn assemble(download: &mut Download<'_>, root: &str, stage: &Path) -> Result<(), PullError> {
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
    let more: Vec<String> = beside.filter(|file| for_people(file)).map(str::to_owned).collect();
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

fn for_people(file: &str) -> bool {
    let stem = file.split('.').next().unwrap_or_default().to_lowercase();
    !file.contains('/') && FOR_PEOPLE.contains(&stem.as_str())
}
