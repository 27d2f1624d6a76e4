//! Validation of the paths of a registry: which are safe below a folder, on any system.

use std::collections::BTreeMap;

use cloud_sync::registry::Artifact;

use super::PullError;

const MAX_PATH_LEN: usize = 400;
const MAX_COMPONENT_LEN: usize = 200;
const MAX_DEPTH: usize = 8;

/// The files of a version by path, with their bytes where the registry lists them.
pub(super) type Listing = BTreeMap<String, Option<u64>>;

/// Checks every path, also of files that are not fetched: a version with one bad path is not trusted.
pub(super) fn check_all(artifacts: Vec<Artifact>) -> Result<Listing, PullError> {
    let mut folded: BTreeMap<String, String> = BTreeMap::new();
    let mut listing = Listing::new();
    for Artifact { path, bytes } in artifacts {
        check(&path)?;
        if let Some(other) = folded.insert(path.to_lowercase(), path.clone()) {
            let reason = format!("is the same as {other:?}, but for case");
            return Err(PullError::Path { path, reason });
        }
        listing.insert(path, bytes);
    }
    for (fold, path) in &folded {
        let mut above = fold.as_str();
        while let Some((folder, _)) = above.rsplit_once('/') {
            if let Some(file) = folded.get(folder) {
                let reason = format!("is below the file {file:?}");
                return Err(PullError::Path { path: path.clone(), reason });
            }
            above = folder;
        }
    }
    Ok(listing)
}

/// Checks one path.
pub(super) fn check(path: &str) -> Result<(), PullError> {
    match fault(path) {
        Some(reason) => {
            let shown: String = path.chars().take(MAX_PATH_LEN).collect();
            Err(PullError::Path { path: shown, reason: reason.into() })
        }
        None => Ok(()),
    }
}

fn fault(path: &str) -> Option<&'static str> {
    let mut start = path.chars();
    let drive = start.next().is_some_and(|c| c.is_ascii_alphabetic()) && start.next() == Some(':');
    let parts = || path.split('/');
    if path.is_empty() {
        Some("has no name")
    } else if path.len() > MAX_PATH_LEN || parts().any(|part| part.len() > MAX_COMPONENT_LEN) {
        Some("is too long")
    } else if path.chars().any(char::is_control) {
        Some("holds control characters")
    } else if path.contains('\\') {
        Some("holds a backslash")
    } else if path.starts_with('/') || drive {
        Some("is absolute")
    } else if parts().any(|part| part == "..") {
        Some("leads out of its folder")
    } else if parts().any(|part| part.is_empty() || part == ".") {
        Some("has an empty part")
    } else if parts().any(|part| part.ends_with(['.', ' ']) || reserved(part)) {
        Some("is reserved on some systems")
    } else if parts().count() > MAX_DEPTH {
        Some("lies too deep")
    } else {
        None
    }
}

/// Device names of Windows, with any extension.
fn reserved(part: &str) -> bool {
    let stem = part.split('.').next().unwrap_or_default().trim_end().to_ascii_lowercase();
    let numbered = |device: &str| {
        stem.strip_prefix(device).is_some_and(|number| matches!(number.as_bytes(), [b'0'..=b'9']))
    };
    ["con", "prn", "aux", "nul"].contains(&stem.as_str()) || numbered("com") || numbered("lpt")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_lead_elsewhere_are_refused_and_say_why() {
        for (path, reason) in [
            ("../model.onnx", "leads out"),
            ("a/../../b", "leads out"),
            ("/etc/passwd", "absolute"),
            ("C:model", "absolute"),
            ("a\\b", "backslash"),
            ("a\0b", "control"),
            ("", "no name"),
            ("a//b", "empty part"),
            ("./a", "empty part"),
            ("golden/NUL.txt", "reserved"),
            ("lpt1", "reserved"),
            ("a/b ", "reserved"),
            ("1/2/3/4/5/6/7/8/9", "deep"),
        ] {
            let error = check(path).unwrap_err().to_string();
            assert!(error.contains(reason), "{path:?}: {error}");
        }
        assert!(check(&"a".repeat(201)).is_err() && check(&"a/".repeat(250)).is_err());
        for path in ["model.onnx", "golden/a b.jpg", "console.txt", "com", "fisch/münze.png", "a..b"] {
            assert!(check(path).is_ok(), "{path}");
        }
    }

    #[test]
    fn files_that_share_a_name_are_refused() {
        let all = |paths: &[&str]| {
            check_all(paths.iter().map(|&p| Artifact { path: p.into(), bytes: None }).collect())
        };
        assert!(all(&["a", "b/a", "c"]).is_ok());
        assert!(all(&["a", "a"]).unwrap_err().to_string().contains("same as"));
        assert!(all(&["Model.onnx", "model.onnx"]).unwrap_err().to_string().contains("same as"));
        assert!(all(&["a/b", "a.txt", "A"]).unwrap_err().to_string().contains("below the file"));
    }
}
