//! The one place that reads the environment, behind a trait so that no test needs a real one.
//!
//! Must never interpret a value, and never print one.

use std::collections::BTreeMap;
use std::path::PathBuf;

/// Where variables come from.
pub trait Environment: Send + Sync {
    /// All variables whose name and value are UTF-8, in the order of their names.
    fn all(&self) -> BTreeMap<String, String>;

    /// One variable; an empty one is unset.
    fn var(&self, name: &str) -> Option<String>;

    /// One variable as a path; an empty one is unset.
    fn path(&self, name: &str) -> Option<PathBuf> {
        self.var(name).map(PathBuf::from)
    }
}

/// The process's environment.
#[derive(Debug, Clone, Copy, Default)]
pub struct ProcessEnvironment;

impl Environment for ProcessEnvironment {
    fn all(&self) -> BTreeMap<String, String> {
        std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect()
    }

    fn var(&self, name: &str) -> Option<String> {
        std::env::var(name).ok().filter(|value| !value.is_empty())
    }

    fn path(&self, name: &str) -> Option<PathBuf> {
        std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
    }
}

/// A made-up environment, for tests and for `dev`.
impl Environment for BTreeMap<String, String> {
    fn all(&self) -> BTreeMap<String, String> {
        self.clone()
    }

    fn var(&self, name: &str) -> Option<String> {
        self.get(name).filter(|value| !value.is_empty()).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_variable_is_unset() {
        let made_up = BTreeMap::from([("A".to_owned(), String::new()), ("B".to_owned(), "x".to_owned())]);
        assert_eq!((made_up.var("A"), made_up.var("B").as_deref()), (None, Some("x")));
        assert_eq!(made_up.path("B"), Some(PathBuf::from("x")));
        assert_eq!(ProcessEnvironment.var("CULVERT_TEST_NO_SUCH_VARIABLE"), None);
        assert!(ProcessEnvironment.path("PATH").is_some());
    }
}
