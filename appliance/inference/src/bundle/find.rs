//! Where the default bundle is looked for when none is configured.

use std::path::{Path, PathBuf};

use super::BundleError;

const DEFAULT: &str = "models/fish/1";

/// The configured bundle's folder, or the first of the usual places that holds a bundle.toml: `models/fish/1` in the
/// working directory, beside the executable, and in `../share/weir` from there.
///
/// # Errors
/// [`BundleError::NotFound`] with the places that were tried. A configured folder is taken as it is.
pub fn find_bundle(configured: Option<&Path>) -> Result<PathBuf, BundleError> {
    if let Some(dir) = configured {
        return Ok(dir.to_path_buf());
    }
    let mut places = vec![PathBuf::from(DEFAULT)];
    if let Some(folder) = std::env::current_exe().ok().and_then(|exe| exe.parent().map(Path::to_path_buf)) {
        places.push(folder.join(DEFAULT));
        places.push(folder.join("../share/weir").join(DEFAULT));
    }
    if let Some(found) = places.iter().find(|dir| dir.join("bundle.toml").is_file()) {
        return Ok(found.clone());
    }
    let looked = places.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", ");
    Err(BundleError::NotFound { looked })
}
