//! Texts that users see, kept as files beside this one. `CULVERT_GOLDEN=write cargo test` rewrites them: read the diff.

use std::fs;
use std::path::Path;

/// Panics unless `text` is what `tests/golden/NAME` holds.
pub(crate) fn golden(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("CULVERT_GOLDEN").is_some_and(|wanted| wanted == "write") {
        fs::write(&path, text).unwrap();
        return;
    }
    let kept = fs::read_to_string(&path).unwrap_or_default();
    assert!(kept == text, "{name} differs; CULVERT_GOLDEN=write rewrites it\n--- kept\n{kept}\n--- now\n{text}");
}
