//! The identity of an outbox: a random id and the place in which it was assigned, stored beside the segments in the
//! file `identity`.
//!
//! Sequences begin at 1 in every outbox. Two boxes of the same name, or one whose data directory was wiped, must not
//! mistake the other's position in the results topic for their own. Nor must a copy of a data directory: the place is
//! a digest of what distinguishes machines and directories, and another one means that this is a copy. A place that
//! changes without a copy (a new main board) costs a new id and nothing else, and a copy that cannot be distinguished
//! from its original is detected by the history beside the bookmark (`pump`).

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use ulid::Ulid;

use super::UplinkError;
use crate::durable;

const FILE: &str = "identity";
const TEMP: &str = "identity.tmp";
/// Identifiers of a machine: of the installation, of a main board, and of an ARM module. In a container the last two
/// are the node's; what is missing or unreadable counts as empty.
const MACHINE: [&str; 3] =
    ["/etc/machine-id", "/sys/class/dmi/id/product_uuid", "/proc/device-tree/serial-number"];

#[derive(Debug)]
pub(super) struct Identity {
    dir: PathBuf,
    id: String,
    place: String,
    copied: bool,
}

impl Identity {
    /// Reads the id of the outbox in `dir`; creates a new one when there is none, or it is unreadable.
    pub(super) fn load_or_create(dir: &Path) -> Result<Self, UplinkError> {
        let path = dir.join(FILE);
        let place = place(dir).map_err(|e| UplinkError::io("look at", dir, e))?;
        let mut identity = Self { dir: dir.to_owned(), id: String::new(), place, copied: false };
        match fs::read(&path) {
            Ok(bytes) => match parse(&bytes) {
                Some((id, Some(place))) => {
                    identity.copied = place != identity.place;
                    identity.id = id;
                    return Ok(identity);
                }
                // From before places were stored.
                Some((id, None)) => identity.id = id,
                None => {
                    let path = path.display();
                    tracing::warn!(%path, "damaged file: the outbox gets a new id, and events may be sent twice");
                }
            },
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(UplinkError::io("read", &path, e)),
        }
        if identity.id.is_empty() {
            identity.id = new_id();
        }
        identity.write().map_err(|e| UplinkError::io("write", &path, e))?;
        Ok(identity)
    }

    pub(super) fn id(&self) -> &str {
        &self.id
    }

    /// Whether the id was assigned to another machine or directory.
    pub(super) fn is_copied(&self) -> bool {
        self.copied
    }

    /// Switches to a new id, bound to this place.
    pub(super) fn renew(&mut self) -> Result<(), UplinkError> {
        let old = std::mem::replace(&mut self.id, new_id());
        if let Err(error) = self.write() {
            self.id = old;
            return Err(UplinkError::io("write", &self.dir.join(FILE), error));
        }
        self.copied = false;
        Ok(())
    }

    /// Durably: if a crash lost the id, what was sent under it would be sent again.
    fn write(&self) -> io::Result<()> {
        let lines = format!("{}\n{}\n", self.id, self.place);
        durable::replace(&self.dir.join(FILE), TEMP, lines.as_bytes())
    }
}

fn new_id() -> String {
    Ulid::generate().to_string().to_lowercase()
}

fn parse(bytes: &[u8]) -> Option<(String, Option<String>)> {
    let mut lines = std::str::from_utf8(bytes).ok()?.lines();
    let id = Ulid::from_string(lines.next()?.trim()).ok()?.to_string().to_lowercase();
    Some((id, lines.next().map(str::to_owned)))
}

/// A digest of the machine and of the directory's inode. (Its device number changes with each boot.)
fn place(dir: &Path) -> io::Result<String> {
    let mut digest = blake3::Hasher::new();
    for path in MACHINE {
        digest.update(&fs::read(path).unwrap_or_default());
        digest.update(b"\0");
    }
    digest.update(&fs::metadata(dir)?.ino().to_le_bytes());
    Ok(digest.finalize().to_hex().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::durable::simulated::{SimulatedDisk, after_each_loss};

    fn id(dir: &Path) -> String {
        Identity::load_or_create(dir).unwrap().id
    }

    #[test]
    fn an_outbox_keeps_its_id_and_no_two_have_the_same() {
        let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let ids = dirs.each_ref().map(|dir| id(dir.path()));
        assert_ne!(ids[0], ids[1]);
        assert_eq!(id(dirs[0].path()), ids[0]);
        fs::write(dirs[0].path().join(FILE), "\0\0\0").unwrap();
        let new = id(dirs[0].path());
        assert!(new != ids[0] && new.len() == 26);
        assert_eq!(id(dirs[0].path()), new);
        let error = Identity::load_or_create(Path::new("/no/such/folder")).unwrap_err();
        assert_eq!(error.to_string(), "cannot look at /no/such/folder");
    }

    #[test]
    fn a_copy_is_known_and_gets_an_id_of_its_own() {
        let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let original = Identity::load_or_create(dirs[0].path()).unwrap();
        assert!(!original.is_copied());
        fs::copy(dirs[0].path().join(FILE), dirs[1].path().join(FILE)).unwrap();
        for _ in 0..2 {
            let copy = Identity::load_or_create(dirs[1].path()).unwrap();
            assert!(copy.is_copied() && copy.id() == original.id());
        }
        let mut copy = Identity::load_or_create(dirs[1].path()).unwrap();
        copy.renew().unwrap();
        let new = Identity::load_or_create(dirs[1].path()).unwrap();
        assert!(!new.is_copied() && new.id() == copy.id() && new.id() != original.id());
        // Written by an older version: accepted as it is, and bound from now on.
        fs::write(dirs[1].path().join(FILE), format!("{}\n", original.id())).unwrap();
        assert!(!Identity::load_or_create(dirs[1].path()).unwrap().is_copied());
        assert_eq!(fs::read_to_string(dirs[1].path().join(FILE)).unwrap().lines().count(), 2);
    }

    #[test]
    fn an_id_outlives_a_loss_of_power() {
        let root = tempfile::tempdir().unwrap();
        let disk = SimulatedDisk::watch(root.path());
        let mut ids = Vec::new();
        let mut identity = Identity::load_or_create(root.path()).unwrap();
        for _ in 0..3 {
            ids.push(identity.id().to_owned());
            disk.acknowledge();
            identity.renew().unwrap();
        }
        ids.push(identity.id().to_owned());
        after_each_loss(&disk.kill_points(), |dir, acknowledged, outcome| {
            let id = Identity::load_or_create(dir).unwrap().id;
            let may_be = &ids[acknowledged.saturating_sub(1)..=acknowledged.min(ids.len() - 1)];
            assert!(acknowledged == 0 || may_be.contains(&id), "{outcome:?}: {id} is none of {may_be:?}");
        });
    }
}
