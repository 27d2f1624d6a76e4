//! Listings of a directory store: by page in the byte order of the keys, and complete in no order.

use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, Dir, FileType, Stat, statat};
use rustix::io::Errno;

use super::tree::{self, Tree, below};
use super::{length, modified};
use crate::blob::{BlobInfo, BlobPage};

/// Objects per page, as in S3.
const PAGE: usize = 1000;

/// The page after the key `after`.
pub(super) fn page(tree: &Tree, prefix: &str, after: Option<&str>) -> io::Result<BlobPage> {
    let mut walk = Walk { prefix, after: after.unwrap_or_default(), objects: Vec::new() };
    walk.folder(tree.root()?, "")?;
    let more = walk.objects.len() > PAGE;
    walk.objects.truncate(PAGE);
    let next = walk.objects.last().filter(|_| more).map(|object| object.key.clone());
    Ok(BlobPage { objects: walk.objects, next })
}

struct Walk<'a> {
    prefix: &'a str,
    after: &'a str,
    objects: Vec<BlobInfo>,
}

impl Walk<'_> {
    /// Lists a folder whose keys all begin with `base`.
    fn folder(&mut self, folder: OwnedFd, base: &str) -> io::Result<()> {
        let mut found = entries(&folder, base)?;
        found.retain(|(key, _)| self.wanted(key));
        // A folder sorts by the common prefix of its keys, including the slash: that is the order of the keys.
        found.sort_unstable();
        for (key, name) in found {
            if self.objects.len() > PAGE {
                break;
            }
            if key.ends_with('/') {
                match below(&folder, &name) {
                    Ok(next) => self.folder(next, &key)?,
                    Err(Errno::NOENT) => {}
                    Err(error) => return Err(error.into()),
                }
            } else if let Some(stat) = stat(&folder, &name)? {
                self.objects.push(BlobInfo { key, bytes: length(&stat), modified: modified(&stat) });
            }
        }
        Ok(())
    }

    /// Whether the object with this key, or something in the folder, can be on the page.
    fn wanted(&self, key: &str) -> bool {
        if key.ends_with('/') {
            (key.starts_with(self.prefix) || self.prefix.starts_with(key))
                && (key > self.after || self.after.starts_with(key))
        } else {
            key.starts_with(self.prefix) && key > self.after
        }
    }
}

/// Calls `each` with every object whose key begins with `prefix`, in no order.
pub(super) fn each(tree: &Tree, prefix: &str, each: &mut impl FnMut(BlobInfo)) -> io::Result<()> {
    let mut folders = vec![(tree.root()?, String::new())];
    while let Some((folder, base)) = folders.pop() {
        for (key, name) in entries(&folder, &base)? {
            if key.ends_with('/') && (key.starts_with(prefix) || prefix.starts_with(&key)) {
                match below(&folder, &name) {
                    Ok(next) => folders.push((next, key)),
                    Err(Errno::NOENT) => {}
                    Err(error) => return Err(error.into()),
                }
            } else if key.starts_with(prefix)
                && let Some(stat) = stat(&folder, &name)?
            {
                each(BlobInfo { key, bytes: length(&stat), modified: modified(&stat) });
            }
        }
    }
    Ok(())
}

/// The store's files in a folder whose keys all begin with `base`: keys, which end in a slash for a folder, and
/// names.
fn entries(folder: &OwnedFd, base: &str) -> io::Result<Vec<(String, String)>> {
    let mut found = Vec::new();
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        let Ok(name) = entry.file_name().to_str() else { continue };
        let kind = match entry.file_type() {
            // Some file systems do not report the type.
            FileType::Unknown => match stat(folder, name)? {
                Some(stat) => FileType::from_raw_mode(stat.st_mode),
                None => continue,
            },
            kind => kind,
        };
        let key = match kind {
            FileType::RegularFile => tree::part_of_file(name).map(|part| format!("{base}{part}")),
            FileType::Directory if name != "." && name != ".." => {
                tree::part_of_folder(name).map(|part| format!("{base}{part}/"))
            }
            _ => None,
        };
        found.extend(key.map(|key| (key, name.to_owned())));
    }
    Ok(found)
}

/// Metadata of a file; `None` when it was removed meanwhile.
fn stat(folder: &OwnedFd, name: &str) -> io::Result<Option<Stat>> {
    match statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
