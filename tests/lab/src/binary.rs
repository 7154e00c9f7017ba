//! Where the programs are: the workspace's own binaries and those on the path.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

/// Debian's own Python, which sees Debian's modules; one on the path may not.
pub const PYTHON: &str = "/usr/bin/python3";

/// The Python that has what `tests/run` installs from PyPI: in `target/python`, or the one that `CULVERT_TEST_PYTHON` names.
pub fn python() -> PathBuf {
    match std::env::var_os("CULVERT_TEST_PYTHON") {
        Some(python) => PathBuf::from(python),
        None => project().join("target/python/bin/python3"),
    }
}

/// One of the workspace's binaries: beside the running test, or in `CULVERT_BIN_DIR`.
///
/// # Errors
/// It was not built.
pub fn own(name: &str) -> Result<PathBuf> {
    let directory = match std::env::var_os("CULVERT_BIN_DIR") {
        Some(directory) => PathBuf::from(directory),
        None => beside_the_test()?,
    };
    let path = directory.join(name);
    ensure!(path.exists(), "{} is missing: cargo build -p culvert-relay -p culvert-connector", path.display());
    Ok(path)
}

/// A program on the path, or in the system's own directories.
pub fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default();
    let extra = ["/usr/sbin", "/sbin", "/usr/bin"];
    path.split(':').chain(extra).map(|directory| Path::new(directory).join(name)).find(|path| path.exists())
}

/// What npm installed for the tests: `tests/run` does, and a registry that is away is no failure.
pub fn node_modules() -> PathBuf {
    project().join("target/test-packages/node_modules")
}

/// Go's compiler, of either kind, and what makes it write a program.
pub fn go() -> Option<(PathBuf, &'static [&'static str])> {
    let own = on_path("go").map(|go| (go, &["build", "-o"][..]));
    own.or_else(|| on_path("gccgo").map(|gccgo| (gccgo, &["-o"][..])))
}

/// The project's top directory.
pub fn project() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).map(Path::to_path_buf).unwrap_or_default()
}

fn beside_the_test() -> Result<PathBuf> {
    let test = std::env::current_exe().context("where is this test?")?;
    let directory = test.parent().context("the test has no directory")?;
    // target/debug/deps/e2e-0123 → target/debug
    let directory = if directory.ends_with("deps") { directory.parent().unwrap_or(directory) } else { directory };
    Ok(directory.to_path_buf())
}
