//! Which state directory is meant: `--state-dir`, its variable, the installed service's, then the user's
//! (interface.md §1 and §2).

use std::io;
use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, access, geteuid};

use super::{StateDir, StateError};
use crate::load::Environment;
use crate::program::Program;

/// Where to look for a state directory.
pub struct Search<'a> {
    program: Program,
    flag: Option<&'a Path>,
    environment: &'a dyn Environment,
    services: PathBuf,
    root: bool,
}

impl<'a> Search<'a> {
    /// Looks for this program's, `flag` being the value of `--state-dir`.
    pub fn new(program: Program, flag: Option<&'a Path>, environment: &'a dyn Environment) -> Self {
        Self { program, flag, environment, services: PathBuf::from("/var/lib"), root: geteuid().is_root() }
    }

    /// Looks for services' directories in another place than `/var/lib`, as a user that is root or not.
    #[must_use]
    pub fn on_host(mut self, services: impl Into<PathBuf>, root: bool) -> Self {
        self.services = services.into();
        self.root = root;
        self
    }

    /// Opens the directory for `run`, and makes it if it is missing.
    ///
    /// # Errors
    /// [`StateError::NoPlace`] for a user without a home and without a flag; else as [`StateDir::create`].
    pub fn create(&self) -> Result<StateDir, StateError> {
        if let Some(chosen) = self.chosen() {
            return StateDir::create(&chosen);
        }
        // systemd makes it and may give several: the first is the state's (systemd.exec(5), StateDirectory=).
        if let Some(given) = self.environment.var("STATE_DIRECTORY") {
            return StateDir::create(Path::new(given.split(':').next().unwrap_or(&given)));
        }
        let service = self.service();
        if self.root || access(&service, AccessFlags::R_OK | AccessFlags::W_OK | AccessFlags::X_OK).is_ok() {
            return StateDir::create(&service);
        }
        match self.user() {
            Some(home) => StateDir::create(&home),
            None => Err(StateError::NoPlace {
                why: "neither XDG_STATE_HOME nor a usable HOME is set".to_owned(),
                variable: self.variable(),
            }),
        }
    }

    /// Opens the directory that a command means, and makes none.
    ///
    /// # Errors
    /// [`StateError::Nowhere`] with every place looked at; [`StateError::Denied`] when the only one there is another
    /// user's; else as [`StateDir::open`].
    pub fn find(&self) -> Result<StateDir, StateError> {
        if let Some(chosen) = self.chosen() {
            return match StateDir::open(&chosen) {
                Err(StateError::System { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                    Err(StateError::Nowhere { program: self.program.name(), looked: vec![chosen] })
                }
                other => other,
            };
        }
        let given = self.environment.var("STATE_DIRECTORY");
        let given = given.map(|given| PathBuf::from(given.split(':').next().unwrap_or(&given)));
        let looked: Vec<PathBuf> = [given, Some(self.service()), self.user()].into_iter().flatten().collect();
        let mut denied = None;
        for place in &looked {
            match StateDir::open(place) {
                Ok(state) => return Ok(state),
                Err(StateError::System { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
                // Another user's service: this user may have one of his own.
                Err(error @ StateError::Denied { .. }) => denied = denied.or(Some(error)),
                Err(error) => return Err(error),
            }
        }
        Err(denied.unwrap_or(StateError::Nowhere { program: self.program.name(), looked }))
    }

    fn chosen(&self) -> Option<PathBuf> {
        self.flag.map(Path::to_path_buf).or_else(|| self.environment.path(&self.variable()))
    }

    fn variable(&self) -> String {
        format!("{}STATE_DIR", self.program.env_prefix())
    }

    fn service(&self) -> PathBuf {
        self.services.join(self.program.binary())
    }

    fn user(&self) -> Option<PathBuf> {
        let absolute = |name| self.environment.path(name).filter(|path| path.is_absolute());
        // A service user's HOME is often `/` or `/nonexistent`: no place for state.
        let home = || absolute("HOME").filter(|home| home.parent().is_some() && home.is_dir());
        let base = absolute("XDG_STATE_HOME").or_else(|| home().map(|home| home.join(".local/state")))?;
        Some(base.join("culvert").join(self.program.name()))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;

    use super::*;
    use crate::exit::{Exit, Quit};

    #[test]
    fn the_flag_wins_over_the_variable_and_the_variable_over_the_service() {
        let host = Host::new();
        for name in ["flag", "variable", "services/culvert-relay"] {
            StateDir::create(&host.path(name)).unwrap();
        }
        let env = host.env(&[("CULVERT_RELAY_STATE_DIR", "variable"), ("HOME", "home")]);
        let flag = host.path("flag");
        assert_eq!(host.search(Some(&flag), &env).find().unwrap().path(), flag);
        assert_eq!(host.search(None, &env).find().unwrap().path(), host.path("variable"));
        let env = host.env(&[("HOME", "home")]);
        assert_eq!(host.search(None, &env).find().unwrap().path(), host.path("services/culvert-relay"));
    }

    #[test]
    fn a_command_makes_no_directory_and_names_where_it_looked() {
        let host = Host::new();
        let env = host.env(&[("HOME", "home")]);
        let quit = Quit::from(host.search(None, &env).find().unwrap_err());
        assert_eq!(quit.exit, Exit::Failed);
        for place in ["services/culvert-relay", "home/.local/state/culvert/relay"] {
            assert!(quit.message.contains(host.path(place).to_str().unwrap()), "{}", quit.message);
            assert!(!host.path(place).exists());
        }
        let missing = host.path("missing");
        let quit = Quit::from(host.search(Some(&missing), &env).find().unwrap_err());
        assert!(quit.exit == Exit::Failed && quit.message.contains("missing"), "{quit:?}");
    }

    #[test]
    fn run_as_root_makes_the_services_directory_and_run_as_a_user_his_own() {
        let host = Host::new();
        let env = host.env(&[("HOME", "home")]);
        let user = host.search(None, &env).create().unwrap();
        assert_eq!(user.path(), host.path("home/.local/state/culvert/relay"));
        let root = host.search(None, &env).on_host(host.path("services"), true).create().unwrap();
        assert_eq!(root.path(), host.path("services/culvert-relay"));
    }

    #[test]
    fn the_directory_that_systemd_gives_is_used() {
        let host = Host::new();
        let given = format!("{}:{}", host.path("one").display(), host.path("two").display());
        let env = BTreeMap::from([("STATE_DIRECTORY".to_owned(), given)]);
        assert_eq!(host.search(None, &env).create().unwrap().path(), host.path("one"));
        assert_eq!(host.search(None, &env).find().unwrap().path(), host.path("one"));
    }

    #[test]
    fn a_user_without_a_home_is_told_to_give_a_directory() {
        let host = Host::new();
        for home in [None, Some("/"), Some("/nonexistent"), Some("relative")] {
            let env: BTreeMap<_, _> = home.map(|home| ("HOME".to_owned(), home.to_owned())).into_iter().collect();
            let quit = Quit::from(host.search(None, &env).create().unwrap_err());
            assert_eq!(quit.exit, Exit::Config, "{home:?}");
            assert!(quit.hint.unwrap().contains("CULVERT_RELAY_STATE_DIR"));
        }
    }

    struct Host(tempfile::TempDir);

    impl Host {
        fn new() -> Self {
            let host = Self(tempfile::tempdir().unwrap());
            fs::create_dir(host.path("services")).unwrap();
            fs::create_dir(host.path("home")).unwrap();
            host
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        fn env(&self, pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
            pairs.iter().map(|(k, v)| ((*k).to_owned(), self.path(v).display().to_string())).collect()
        }

        fn search<'a>(&self, flag: Option<&'a Path>, env: &'a dyn Environment) -> Search<'a> {
            Search::new(Program::Relay, flag, env).on_host(self.path("services"), false)
        }
    }
}
