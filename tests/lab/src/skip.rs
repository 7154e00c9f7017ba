//! Skips that nobody can overlook: a line that `tests/run` counts.

/// What a machine must offer before a privileged test runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// uid 0, network namespaces.
    Root,
    /// A program on the path.
    Program(&'static str),
    /// A module of Debian's Python.
    Python(&'static str),
    /// A module of the packages that `tests/run` installs from PyPI.
    PyPi(&'static str),
    /// Node, and a package of npm's in [`crate::binary::node_modules`].
    Npm(&'static str),
    /// A Go compiler.
    Go,
    /// Debian's package of the PostgreSQL server.
    Postgres,
}

/// Tells whether everything needed is there; says so loudly when not. `CULVERT_TEST_NO_SKIP=1` turns a skip into a
/// failure.
///
/// # Panics
/// Something is missing and skipping is forbidden.
pub fn unless(test: &str, needs: &[Need]) -> bool {
    let missing: Vec<String> = needs.iter().filter(|need| !is_met(**need)).map(|need| format!("{need:?}")).collect();
    if missing.is_empty() {
        return false;
    }
    let line = format!("SKIPPED: {test}: needs {}", missing.join(", "));
    assert!(std::env::var_os("CULVERT_TEST_NO_SKIP").is_none(), "{line}");
    tell(&line);
    true
}

/// Says as loudly that a part of a test has to wait for what is not built yet. Nothing that a machine could offer.
pub fn later(test: &str, why: &str) {
    tell(&format!("SKIPPED: {test}: {why}"));
}

fn tell(line: &str) {
    // Standard error of a passing test is swallowed; a terminal or log is not.
    eprintln!("{line}");
    if let Ok(path) = std::env::var("CULVERT_TEST_SKIPS") {
        use std::io::Write as _;
        if let Ok(mut file) = std::fs::OpenOptions::new().append(true).create(true).open(path) {
            let _ = writeln!(file, "{line}");
        }
    }
}

fn is_met(need: Need) -> bool {
    match need {
        Need::Root => nix::unistd::geteuid().is_root() && std::path::Path::new("/dev/net/tun").exists(),
        Need::Program(name) => crate::binary::on_path(name).is_some(),
        Need::Postgres => crate::postgres::Postgres::programs().is_some(),
        Need::Npm(package) => {
            crate::binary::on_path("node").is_some() && crate::binary::node_modules().join(package).exists()
        }
        Need::Go => crate::binary::go().is_some(),
        Need::Python(module) => has_module(crate::binary::PYTHON.as_ref(), module),
        Need::PyPi(module) => has_module(&crate::binary::python(), module),
    }
}

fn has_module(python: &std::path::Path, module: &str) -> bool {
    std::process::Command::new(python)
        .args(["-c", &format!("import {module}")])
        .stderr(std::process::Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}
