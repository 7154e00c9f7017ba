//! Secrets on their way in: from a variable, a file or a systemd credential, never from the command line.
//!
//! Must never print one: [`Secret`] has no `Display`, its `Debug` is the type's name, and errors name the source alone.

use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use culvert_model::token;
use serde::de::{Deserialize, Deserializer, Error as _};
use zeroize::Zeroizing;

use crate::exit::Quit;
use crate::load::Environment;

/// The longest secret that is read.
const LONGEST: u64 = 1 << 20;

/// A secret text. Wiped on drop.
#[derive(Clone)]
pub struct Secret(Zeroizing<String>);

/// Where one secret comes from.
#[derive(Clone)]
pub enum SecretSource {
    /// A variable.
    Env(String),
    /// A file.
    File(PathBuf),
    /// A systemd credential (systemd.exec(5), LoadCredential=).
    Credential(String),
    /// The configuration itself.
    Literal(Secret),
}

/// What `{ env = "KEY", prefix = "Bearer " }` says: one source, or several during a rotation.
#[derive(Clone)]
pub struct SecretSpec {
    /// The sources: the first is the one in use.
    pub sources: Vec<SecretSource>,
    /// What stands before the secret.
    pub prefix: String,
}

/// Why there is no secret.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The source holds none.
    #[error("{0} is not set, or empty")]
    Empty(String),
    /// The process was given no credentials.
    #[error("no credential {0:?}: the process was started without credentials (LoadCredential= in its unit)")]
    NoCredentials(String),
    /// The file cannot be read.
    #[error("cannot read {name}: {source}")]
    Unreadable {
        /// Which.
        name: String,
        /// The system's answer.
        source: io::Error,
    },
    /// What the source holds is no text.
    #[error("{0} holds something else than a text of at most 1 MiB")]
    NotText(String),
}

/// A token, and where it was found.
#[derive(Debug, Clone)]
pub struct FoundToken {
    /// The token's text, unchecked.
    pub secret: Secret,
    /// As `CULVERT_TOKEN` or `/run/token`.
    pub from: String,
}

impl Secret {
    /// Wraps a secret; white space at its end (a file's newline) goes.
    pub fn new(text: impl Into<String>) -> Self {
        let mut text = Zeroizing::new(text.into());
        let kept = text.trim_end_matches(['\n', '\r']).len();
        text.truncate(kept);
        Self(text)
    }

    /// The secret itself: for the one call that needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Puts a public text before it, as `Bearer `.
    #[must_use]
    pub fn with_prefix(&self, prefix: &str) -> Self {
        let mut text = Zeroizing::new(String::with_capacity(prefix.len() + self.0.len()));
        text.push_str(prefix);
        text.push_str(&self.0);
        Self(text)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

impl fmt::Debug for SecretSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())
    }
}

impl fmt::Debug for SecretSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.sources).finish()
    }
}

impl SecretSource {
    /// Reads it. A file that other users can read is warned about: mounted secrets often are.
    ///
    /// # Errors
    /// [`SecretError`]; never an empty secret.
    pub fn read(&self, environment: &dyn Environment) -> Result<Secret, SecretError> {
        let secret = match self {
            Self::Env(name) => Secret::new(environment.var(name).unwrap_or_default()),
            Self::File(path) => read_file(path, true)?,
            Self::Credential(name) => {
                let directory = environment.path("CREDENTIALS_DIRECTORY");
                let directory = directory.ok_or_else(|| SecretError::NoCredentials(name.clone()))?;
                read_file(&directory.join(name), false)?
            }
            Self::Literal(secret) => secret.clone(),
        };
        if secret.0.trim().is_empty() { Err(SecretError::Empty(self.name())) } else { Ok(secret) }
    }

    /// The file to watch for a new value, if it is one.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::File(path) => Some(path),
            Self::Env(_) | Self::Credential(_) | Self::Literal(_) => None,
        }
    }

    /// The file to watch for a new value: a credential is one too.
    pub fn watched(&self, environment: &dyn Environment) -> Option<PathBuf> {
        match self {
            Self::Credential(name) => Some(environment.path("CREDENTIALS_DIRECTORY")?.join(name)),
            Self::File(_) | Self::Env(_) | Self::Literal(_) => self.path().map(Path::to_path_buf),
        }
    }

    fn name(&self) -> String {
        match self {
            Self::Env(name) => format!("the variable {name}"),
            Self::File(path) => path.display().to_string(),
            Self::Credential(name) => format!("the credential {name:?}"),
            Self::Literal(_) => "the secret".to_owned(),
        }
    }
}

impl SecretSpec {
    /// Reads the one in use, prefix and all.
    ///
    /// # Errors
    /// As [`SecretSource::read`].
    pub fn read(&self, environment: &dyn Environment) -> Result<Secret, SecretError> {
        let first = self.sources.first().ok_or_else(|| SecretError::Empty("the secret".to_owned()))?;
        Ok(first.read(environment)?.with_prefix(&self.prefix))
    }

    /// Reads all, the one in use first.
    ///
    /// # Errors
    /// As [`SecretSource::read`].
    pub fn read_all(&self, environment: &dyn Environment) -> Result<Vec<Secret>, SecretError> {
        self.sources.iter().map(|source| Ok(source.read(environment)?.with_prefix(&self.prefix))).collect()
    }
}

#[derive(serde::Deserialize)]
#[serde(untagged)]
enum Raw {
    Text(String),
    Table(RawTable),
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTable {
    env: Option<String>,
    file: Option<PathBuf>,
    credential: Option<String>,
    #[serde(default)]
    prefix: String,
    #[serde(default)]
    values: Vec<SecretSource>,
}

impl<'de> Deserialize<'de> for SecretSource {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spec = SecretSpec::deserialize(deserializer)?;
        let single = spec.sources.len() == 1 && spec.prefix.is_empty();
        let source = spec.sources.into_iter().next().filter(|_| single);
        source.ok_or_else(|| D::Error::custom("one secret is expected"))
    }
}

impl<'de> Deserialize<'de> for SecretSpec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let table = match Raw::deserialize(deserializer)? {
            Raw::Text(text) => {
                return Ok(Self { sources: vec![SecretSource::Literal(Secret::new(text))], prefix: String::new() });
            }
            Raw::Table(table) => table,
        };
        let single = [
            table.env.map(SecretSource::Env),
            table.file.map(SecretSource::File),
            table.credential.map(SecretSource::Credential),
        ];
        let single: Vec<_> = single.into_iter().flatten().collect();
        match (single.len(), table.values.len()) {
            (1, 0) => Ok(Self { sources: single, prefix: table.prefix }),
            (0, 1..) => Ok(Self { sources: table.values, prefix: table.prefix }),
            _ => Err(D::Error::custom("exactly one of env, file, credential or values is expected")),
        }
    }
}

/// Finds the token to join with: `--token-file` (`-` is stdin), `CULVERT_TOKEN`, `CULVERT_TOKEN_FILE`, the systemd
/// credential `token`, and `TUNNEL_TOKEN` where that holds one of ours.
///
/// # Errors
/// [`SecretError`] when a source was named and holds nothing.
pub fn find_token(flag: Option<&Path>, environment: &dyn Environment) -> Result<Option<FoundToken>, SecretError> {
    if flag == Some(Path::new("-")) {
        let secret = read_text("stdin", None, io::stdin().lock())?;
        let from = "stdin".to_owned();
        return if secret.0.trim().is_empty() {
            Err(SecretError::Empty(from))
        } else {
            Ok(Some(FoundToken { secret, from }))
        };
    }
    let named = flag.map(|path| SecretSource::File(path.to_path_buf()));
    let variable = || environment.var("CULVERT_TOKEN").map(|_| SecretSource::Env("CULVERT_TOKEN".to_owned()));
    let file = || environment.path("CULVERT_TOKEN_FILE").map(SecretSource::File);
    let credential = || {
        let path = environment.path("CREDENTIALS_DIRECTORY")?.join("token");
        path.is_file().then(|| SecretSource::Credential("token".to_owned()))
    };
    let foreign = || {
        let ours = environment.var("TUNNEL_TOKEN").is_some_and(|text| text.trim_start().starts_with(token::PREFIX));
        ours.then(|| SecretSource::Env("TUNNEL_TOKEN".to_owned()))
    };
    let Some(source) = named.or_else(variable).or_else(file).or_else(credential).or_else(foreign) else {
        return Ok(None);
    };
    Ok(Some(FoundToken { secret: source.read(environment)?, from: source.name() }))
}

/// Refuses a command line that holds a secret: every user of the host can read it there.
///
/// # Errors
/// Status 2 and the right ways, for a token, a gateway secret, or a URL with a password.
pub fn refuse_on_command_line(args: impl IntoIterator<Item = OsString>) -> Result<(), Quit> {
    for arg in args {
        let arg = Zeroizing::new(arg.to_string_lossy().into_owned());
        if arg.contains("culvert_t1_") {
            return Err(Quit::usage("a token does not belong on the command line, where every user of this host can read it")
                .hint("give it as CULVERT_TOKEN, in a file (--token-file FILE, or - for stdin), or as the systemd credential `token`"));
        }
        if arg.contains("culvert_g1_") {
            return Err(Quit::usage(
                "a gateway secret does not belong on the command line, where every user of this host can read it",
            )
            .hint("give it to the gateway in its own configuration, from a file or a variable"));
        }
        if *arg == "--passphrase" || arg.starts_with("--passphrase=") {
            return Err(Quit::usage(
                "a passphrase does not belong on the command line, where every user of this host can read it",
            )
            .hint("give it in a file (--passphrase-file FILE, or - for stdin), as CULVERT_BACKUP_PASSPHRASE, as the systemd credential `backup-passphrase`, or type it when asked"));
        }
        if has_password(&arg) {
            return Err(Quit::usage(
                "a URL with a password does not belong on the command line, where every user of this host can read it",
            )
            .hint("leave the password out of the URL and give it by a variable, a file or a credential: password = { env | file | credential }"));
        }
    }
    Ok(())
}

fn has_password(arg: &str) -> bool {
    arg.match_indices("://").any(|(at, mark)| {
        let rest = arg.get(at + mark.len()..).unwrap_or_default();
        let authority = rest.split(['/', '?', '#', ' ']).next().unwrap_or_default();
        let user = authority.rsplit_once('@').map(|(user, _)| user);
        user.and_then(|user| user.split_once(':')).is_some_and(|(_, password)| !password.is_empty())
    })
}

fn read_file(path: &Path, warn: bool) -> Result<Secret, SecretError> {
    let name = path.display().to_string();
    let unreadable = |source| SecretError::Unreadable { name: name.clone(), source };
    let file = File::open(path).map_err(unreadable)?;
    let metadata = file.metadata().map_err(unreadable)?;
    if warn && is_open(metadata.mode()) {
        tracing::warn!(path = %name, mode = format_args!("{:04o}", metadata.mode() & 0o7777), "other users can read this secret's file");
    }
    read_text(&name, Some(metadata.len()), file)
}

fn is_open(mode: u32) -> bool {
    mode & 0o007 != 0
}

fn read_text(name: &str, length: Option<u64>, from: impl Read) -> Result<Secret, SecretError> {
    // Whole in one piece: growing would leave copies behind.
    let room = usize::try_from(length.unwrap_or(4096).min(LONGEST)).unwrap_or(0) + 1;
    let mut bytes = Zeroizing::new(Vec::with_capacity(room));
    let unreadable = |source| SecretError::Unreadable { name: name.to_owned(), source };
    from.take(LONGEST + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    match std::str::from_utf8(&bytes) {
        Ok(text) if bytes.len() as u64 <= LONGEST => Ok(Secret::new(text)),
        Ok(_) | Err(_) => Err(SecretError::NotText(name.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;

    use super::*;
    use crate::exit::Exit;

    fn env(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn spec(text: &str) -> Result<SecretSpec, toml::de::Error> {
        #[derive(serde::Deserialize)]
        struct Holder {
            x: SecretSpec,
        }
        toml::from_str::<Holder>(&format!("x = {text}")).map(|holder| holder.x)
    }

    #[test]
    fn a_secret_comes_from_a_variable_a_file_a_credential_or_the_configuration() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("key"), "from-file\n").unwrap();
        let path = directory.path().display().to_string();
        let env = env(&[("KEY", "from-env"), ("CREDENTIALS_DIRECTORY", &path)]);
        for (text, expected) in [
            ("{ env = \"KEY\" }".to_owned(), "from-env"),
            (format!("{{ file = \"{path}/key\" }}"), "from-file"),
            ("{ credential = \"key\", prefix = \"Bearer \" }".to_owned(), "Bearer from-file"),
            ("\"literal\"".to_owned(), "literal"),
            ("{ values = [{ env = \"KEY\" }, \"old\"] }".to_owned(), "from-env"),
        ] {
            assert_eq!(spec(&text).unwrap().read(&env).unwrap().expose(), expected, "{text}");
        }
        let both = spec("{ values = [\"new\", \"old\"], prefix = \"k=\" }").unwrap().read_all(&env).unwrap();
        assert_eq!(both.iter().map(Secret::expose).collect::<Vec<_>>(), ["k=new", "k=old"]);
    }

    #[test]
    fn a_secret_is_never_empty_and_its_source_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("empty");
        fs::write(&path, "\n").unwrap();
        let path = path.display().to_string();
        for (text, named) in [
            ("{ env = \"KEY\" }".to_owned(), "KEY"),
            (format!("{{ file = \"{path}\" }}"), path.as_str()),
            (format!("{{ file = \"{path}-missing\" }}"), "-missing"),
            ("{ credential = \"db\" }".to_owned(), "db"),
            ("\"\"".to_owned(), "secret"),
        ] {
            for blank in ["", " \t"] {
                let error = spec(&text).unwrap().read(&env(&[("KEY", blank)])).unwrap_err();
                assert!(error.to_string().contains(named), "{error}");
            }
        }
    }

    #[test]
    fn a_file_that_is_no_text_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        for content in [vec![0xff, 0xfe], vec![b'a'; (1 << 20) + 1]] {
            fs::write(&path, content).unwrap();
            let error = SecretSource::File(path.clone()).read(&env(&[])).unwrap_err();
            assert!(matches!(error, SecretError::NotText(_)), "{error}");
        }
    }

    #[test]
    fn only_files_that_others_can_read_deserve_a_warning() {
        for (mode, open) in [(0o600, false), (0o640, false), (0o400, false), (0o644, true), (0o604, true)] {
            assert_eq!(is_open(mode), open, "{mode:o}");
        }
    }

    #[test]
    fn nothing_prints_a_secret() {
        let spec = spec("{ values = [\"hunter2\", { env = \"OLD\" }] }").unwrap();
        let shown = format!("{spec:?} {:?}", Secret::new("hunter2"));
        assert!(!shown.contains("hunter2") && shown.contains("OLD") && shown.ends_with(" Secret"), "{shown}");
    }

    #[test]
    fn the_token_is_looked_for_in_the_promised_order() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str| {
            fs::write(directory.path().join(name), format!("{name}\n")).unwrap();
            directory.path().join(name)
        };
        let (flag, file) = (write("flag"), write("file"));
        write("token");
        let all = [
            ("CULVERT_TOKEN", "variable"),
            ("CULVERT_TOKEN_FILE", file.to_str().unwrap()),
            ("CREDENTIALS_DIRECTORY", directory.path().to_str().unwrap()),
            ("TUNNEL_TOKEN", "culvert_t1_x"),
        ];
        let found = |flag: Option<&Path>, skip: usize| {
            let found = find_token(flag, &env(&all[skip..])).unwrap();
            found.map(|found| found.secret.expose().to_owned())
        };
        assert_eq!(found(Some(&flag), 0).as_deref(), Some("flag"));
        for (skip, expected) in
            [Some("variable"), Some("file"), Some("token"), Some("culvert_t1_x"), None].iter().enumerate()
        {
            assert_eq!(found(None, skip).as_deref(), *expected);
        }
        assert!(find_token(None, &env(&[("TUNNEL_TOKEN", "eyJhIjoi")])).unwrap().is_none(), "another product's");
    }

    #[test]
    fn secrets_on_the_command_line_end_2_without_being_repeated() {
        for secret in [
            "culvert_t1_hunter2",
            "--token=culvert_t1_hunter2",
            "kong:culvert_g1_hunter2",
            "postgres://u:hunter2@db/x",
            "orders=http://u:hunter2@x",
            "--passphrase=hunter2",
        ] {
            let quit = refuse_on_command_line(["run".into(), secret.into()]).unwrap_err();
            assert_eq!(quit.exit, Exit::Usage);
            assert!(!format!("{quit:?}").contains("hunter2") && quit.hint.is_some(), "{quit:?}");
        }
        let fine = [
            "run",
            "--service",
            "a=http://u@x:80/?a=b:c@d",
            "--endpoint",
            "[::1]:51820",
            "postgres://u:@db",
            "culvert_t",
        ];
        assert_eq!(refuse_on_command_line(fine.map(OsString::from)), Ok(()));
    }
}
