//! Which outbox this is: a random id, kept beside its segments in the file `identity`.
//!
//! Sequences begin at 1 in every outbox. Two boxes of the same name, or one whose data directory was wiped,
//! must not take the other's place in the results topic for their own.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use ulid::Ulid;

use super::error::UplinkError;

const FILE: &str = "identity";
const TEMP: &str = "identity.tmp";

/// The id of the outbox in `dir`; a new one when it has none, or one that cannot be read.
pub(super) fn load_or_create(dir: &Path) -> Result<String, UplinkError> {
    let path = dir.join(FILE);
    match fs::read(&path) {
        Ok(bytes) => {
            let known = std::str::from_utf8(&bytes).ok().and_then(|text| Ulid::from_string(text.trim()).ok());
            if let Some(id) = known {
                return Ok(id.to_string().to_lowercase());
            }
            let path = path.display();
            tracing::warn!(%path, "this file is damaged: the outbox gets a new id, and events may be sent twice");
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(UplinkError::io("read", &path, e)),
    }
    let id = Ulid::generate().to_string().to_lowercase();
    write(dir, &id).map_err(|e| UplinkError::io("write", &path, e))?;
    Ok(id)
}

/// Durably: with an id that a crash takes away, what was sent under it would be sent again.
fn write(dir: &Path, id: &str) -> io::Result<()> {
    let temporary = dir.join(TEMP);
    let mut file = File::create(&temporary)?;
    writeln!(file, "{id}")?;
    file.sync_all()?;
    fs::rename(&temporary, dir.join(FILE))?;
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outbox_keeps_its_id_and_no_two_have_the_same() {
        let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let ids = dirs.each_ref().map(|dir| load_or_create(dir.path()).unwrap());
        assert_ne!(ids[0], ids[1]);
        assert_eq!(load_or_create(dirs[0].path()).unwrap(), ids[0]);
        fs::write(dirs[0].path().join(FILE), "\0\0\0").unwrap();
        let new = load_or_create(dirs[0].path()).unwrap();
        assert!(new != ids[0] && new.len() == 26);
        assert_eq!(load_or_create(dirs[0].path()).unwrap(), new);
        let error = load_or_create(Path::new("/no/such/folder")).unwrap_err();
        assert_eq!(error.to_string(), "cannot write /no/such/folder/identity");
    }
}
