//! How the parts of a key are called on disk, so that an object `a` and an object `a/b` can both be there.
//!
//! A file system cannot have a file and a folder of one name. A rule that looks at the name alone keeps
//! them apart without looking at the disk: files are expected to have a dot in their name and folders are
//! not, and what is against expectation gets a `$`, which no key holds. `2026-05-01/photo.jpg` stays as it
//! is; the object `a` is the file `a$`, the folder of `a.b/c` is `a.b$`.

/// What marks a name that is against expectation.
const MARK: char = '$';

/// The file of an object whose key ends in `part`.
pub(super) fn of_file(part: &str) -> String {
    if part.contains('.') { part.to_owned() } else { format!("{part}{MARK}") }
}

/// The folder of keys that go on after `part`.
pub(super) fn of_folder(part: &str) -> String {
    if part.contains('.') { format!("{part}{MARK}") } else { part.to_owned() }
}

/// The part that a file stands for; `None` when the store did not make it.
pub(super) fn part_of_file(name: &str) -> Option<&str> {
    let part = name.strip_suffix(MARK).unwrap_or(name);
    (of_file(part) == name).then_some(part)
}

/// The part that a folder stands for; `None` when the store did not make it.
pub(super) fn part_of_folder(name: &str) -> Option<&str> {
    let part = name.strip_suffix(MARK).unwrap_or(name);
    (of_folder(part) == name).then_some(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_and_folders_never_share_a_name_and_lead_back_to_their_part() {
        let parts = ["a", "a.b", "2026-05-01", "photo.jpg", "10.0.0.5", "a=b", ".hidden", "a~"];
        for part in parts {
            assert_eq!(part_of_file(&of_file(part)), Some(part));
            assert_eq!(part_of_folder(&of_folder(part)), Some(part));
            for other in parts {
                assert_ne!(of_file(part), of_folder(other));
            }
        }
        assert_eq!((of_file("photo.jpg").as_str(), of_folder("dock-3").as_str()), ("photo.jpg", "dock-3"));
        assert_eq!((part_of_file("stray"), part_of_file("a.b$"), part_of_folder("a$")), (None, None, None));
    }
}
