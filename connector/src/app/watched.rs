//! Files that hold what the configuration names: secrets, certificates, and the configuration itself.
//!
//! Must never miss a change that came after a file was read.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Files, and what they looked like.
pub(super) struct Watched(BTreeMap<PathBuf, Option<Look>>);

type Look = (u64, u64, SystemTime);

impl Watched {
    pub(super) fn new(paths: Vec<PathBuf>) -> Self {
        Self(paths.into_iter().map(|path| (path.clone(), look(&path))).collect())
    }

    /// Watches these and no others. What was looked at before it was read is not looked at now: a change since is another one.
    pub(super) fn follow(&mut self, paths: Vec<PathBuf>) {
        let before = std::mem::take(&mut self.0);
        let seen = |path: &PathBuf| before.get(path).copied().unwrap_or_else(|| look(path));
        self.0 = paths.into_iter().map(|path| (path.clone(), seen(&path))).collect();
    }

    /// Whether any file is another one than before. One that is away for a moment is not looked at.
    pub(super) fn changed(&mut self) -> bool {
        let mut changed = false;
        for (path, last) in &mut self.0 {
            let now = look(path);
            if now.is_some() && now != *last {
                *last = now;
                changed = true;
            }
        }
        changed
    }
}

fn look(path: &Path) -> Option<Look> {
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.ino(), metadata.len(), metadata.modified().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replaced_file_is_noticed_once_and_a_missing_one_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        fs::write(&path, "one").unwrap();
        let mut watched = Watched::new(vec![path.clone()]);
        assert!(!watched.changed());
        let next = directory.path().join("next");
        fs::write(&next, "two").unwrap();
        fs::rename(&next, &path).unwrap();
        assert!(watched.changed());
        assert!(!watched.changed());
        fs::remove_file(&path).unwrap();
        assert!(!watched.changed());
        fs::write(&path, "four").unwrap();
        assert!(watched.changed());
    }

    #[test]
    fn a_file_that_is_replaced_between_its_reading_and_its_watching_is_noticed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        fs::write(&path, "one").unwrap();
        let mut watched = Watched::new(vec![path.clone()]);
        fs::write(&path, "other").unwrap();
        let new = directory.path().join("new");
        watched.follow(vec![path.clone(), new]);
        assert!(watched.changed());
        watched.follow(Vec::new());
        fs::write(&path, "the last").unwrap();
        assert!(!watched.changed());
    }
}
