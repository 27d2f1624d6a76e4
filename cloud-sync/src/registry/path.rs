//! Which paths of artifacts are taken: those that lead to a file inside the folder that they are put in.

use crate::error::{Link, SyncError, SyncResult};

/// Longest path of an artifact, in bytes.
const MAX_PATH_BYTES: usize = 1000;

/// # Errors
/// Permanent, naming the path, when it could lead elsewhere or cannot be a file's.
pub(super) fn check(link: Link, path: &str) -> SyncResult<()> {
    let reason = if path.is_empty() || path.len() > MAX_PATH_BYTES {
        "it must have 1 to 1000 bytes"
    } else if path.starts_with('/') {
        "it begins with a slash"
    } else if path.contains('\\') {
        "it has a backslash"
    } else if path.chars().any(char::is_control) {
        "it has a control character"
    } else if path.split('/').any(|part| matches!(part, "" | "." | "..")) {
        "a part between slashes is empty, '.' or '..'"
    } else if path.split('/').any(|part| part.len() > 255) {
        "a part between slashes has more than 255 bytes"
    } else {
        return Ok(());
    };
    let path: String = path.chars().take(200).collect();
    Err(SyncError::permanent(link, format!("the artifact path {path:?} is not taken: {reason}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_stays_in_its_folder_or_is_refused_by_name() {
        for good in ["MLmodel", "model/model.onnx", "a b/ü.txt", "..a/b..", "weir~1"] {
            assert!(check(Link::Mlflow, good).is_ok(), "{good}");
        }
        let long = "x/".repeat(600);
        for bad in ["", "/etc/passwd", "../x", "a/../b", "a//b", "a/", "./a", "a\\b", "a\0b", "a\nb", &long] {
            let error = check(Link::Mlflow, bad).unwrap_err();
            assert!(!error.is_transient(), "{bad}");
            let shown: String = bad.chars().take(200).collect();
            assert!(error.in_full().contains(&format!("{shown:?}")), "{}", error.in_full());
        }
    }
}
