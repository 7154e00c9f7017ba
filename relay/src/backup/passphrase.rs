//! What a backup is opened with: from a file, a variable, a systemd credential, or asked on the terminal.
//!
//! Must never come from the command line, be shown while it is typed, or leave a terminal that shows nothing.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write as _};
use std::path::Path;

use culvert_ops::exit::Quit;
use culvert_ops::load::Environment;
use culvert_ops::process;
use culvert_ops::secret::{Secret, SecretError, SecretSource};
use nix::sys::termios::{LocalFlags, SetArg, SpecialCharacterIndices, Termios, tcgetattr, tcsetattr};
use zeroize::Zeroizing;

const VARIABLE: &str = "CULVERT_BACKUP_PASSPHRASE";
const FILE_VARIABLE: &str = "CULVERT_BACKUP_PASSPHRASE_FILE";
const CREDENTIAL: &str = "backup-passphrase";
/// Fewer characters than this are guessed, whatever a guess costs.
const LEAST: usize = 8;
const WAYS: &str = "give it in a file (--passphrase-file FILE, or - for stdin), as CULVERT_BACKUP_PASSPHRASE, as the systemd \
credential `backup-passphrase`, or type it on a terminal";

/// What it is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum For {
    /// A new backup: asked twice, and refused when it is too short.
    Sealing,
    /// An old one.
    Opening,
}

/// Finds the passphrase: `--passphrase-file` (`-` is stdin), the variable, the variable that names a file, the credential,
/// the terminal.
///
/// # Errors
/// 78 when a source holds none or there is no source; 1 when it was not typed.
pub(super) fn find(flag: Option<&Path>, environment: &dyn Environment, what_for: For) -> Result<Secret, Quit> {
    let secret = match named(flag, environment)? {
        Some(secret) => secret,
        None => typed(what_for)?,
    };
    process::forget_variables(&[c"CULVERT_BACKUP_PASSPHRASE"]);
    if what_for == For::Sealing && secret.expose().chars().count() < LEAST {
        return Err(Quit::config(format!("a passphrase of {LEAST} characters or more is expected")).hint(
            "whoever has the backup and guesses it has the relay's keys; `culvert-relay genpsk` prints one nobody guesses",
        ));
    }
    if secret.expose().is_empty() {
        return Err(Quit::config("the passphrase is empty").hint(WAYS));
    }
    Ok(secret)
}

fn named(flag: Option<&Path>, environment: &dyn Environment) -> Result<Option<Secret>, Quit> {
    let refuse = |error: SecretError| Quit::config(format!("the passphrase: {error}")).hint(WAYS);
    if flag == Some(Path::new("-")) {
        let mut text = Zeroizing::new(String::with_capacity(4096));
        let read = io::stdin().lock().take(4096).read_to_string(&mut text);
        read.map_err(|error| Quit::failed(format!("cannot read the passphrase from stdin: {error}")))?;
        return Ok(Some(Secret::new(text.as_str())));
    }
    let file = |path: std::path::PathBuf| SecretSource::File(path);
    let variable = || environment.var(VARIABLE).map(|_| SecretSource::Env(VARIABLE.to_owned()));
    let credential = || {
        let path = environment.path("CREDENTIALS_DIRECTORY")?.join(CREDENTIAL);
        path.is_file().then(|| SecretSource::Credential(CREDENTIAL.to_owned()))
    };
    let source = flag
        .map(|path| file(path.to_path_buf()))
        .or_else(variable)
        .or_else(|| environment.path(FILE_VARIABLE).map(file))
        .or_else(credential);
    source.map(|source| source.read(environment)).transpose().map_err(refuse)
}

fn typed(what_for: For) -> Result<Secret, Quit> {
    let terminal = OpenOptions::new().read(true).write(true).open("/dev/tty");
    let mut terminal = terminal.map_err(|_| Quit::config("no passphrase, and no terminal to ask on").hint(WAYS))?;
    let first = ask(&mut terminal, "passphrase of the backup: ")?;
    if what_for == For::Sealing && *first != *ask(&mut terminal, "the same again: ")? {
        return Err(Quit::failed("the two are different: nothing was written"));
    }
    Ok(Secret::new(first.as_str()))
}

fn ask(terminal: &mut File, prompt: &str) -> Result<Zeroizing<String>, Quit> {
    let failed = |error: io::Error| Quit::failed(format!("cannot ask on the terminal: {error}"));
    let silent = Silent::new(terminal).map_err(failed)?;
    terminal.write_all(prompt.as_bytes()).map_err(failed)?;
    let line = line(terminal);
    drop(silent);
    let _ = terminal.write_all(b"\n");
    line.map_err(failed)?.ok_or_else(|| Quit::failed("no passphrase was typed"))
}

/// A terminal that shows nothing, gives each byte at once and sends no signals, so that none can end this process before it
/// is set back.
struct Silent {
    terminal: File,
    before: Termios,
}

impl Silent {
    fn new(terminal: &File) -> io::Result<Self> {
        let terminal = terminal.try_clone()?;
        let before = tcgetattr(&terminal)?;
        let mut silent = before.clone();
        silent.local_flags.remove(LocalFlags::ECHO | LocalFlags::ECHONL | LocalFlags::ICANON | LocalFlags::ISIG);
        silent.control_chars[SpecialCharacterIndices::VMIN as usize] = 1;
        silent.control_chars[SpecialCharacterIndices::VTIME as usize] = 0;
        // What was typed before the question is no answer to it.
        tcsetattr(&terminal, SetArg::TCSAFLUSH, &silent)?;
        Ok(Self { terminal, before })
    }
}

impl Drop for Silent {
    fn drop(&mut self) {
        let _ = tcsetattr(&self.terminal, SetArg::TCSAFLUSH, &self.before);
    }
}

/// One line, typed byte by byte; none when it was given up (^C, ^D, or the terminal went away).
fn line(terminal: &mut impl Read) -> io::Result<Option<Zeroizing<String>>> {
    let mut typed = Zeroizing::new(Vec::with_capacity(1024));
    loop {
        let mut byte = [0];
        let read = terminal.read(&mut byte)?;
        match byte {
            _ if read == 0 => return Ok(None),
            [b'\n' | b'\r'] => break,
            [0x03 | 0x04] => return Ok(None),
            [0x08 | 0x7f] => {
                // A character of UTF-8 as a whole.
                while typed.pop().is_some_and(|last| last & 0xc0 == 0x80) {}
            }
            // ^U: everything.
            [0x15] => typed.clear(),
            [byte] if typed.len() < 1024 => typed.push(byte),
            [_] => return Err(io::Error::other("too long")),
        }
    }
    let text = std::str::from_utf8(&typed).map_err(|_| io::Error::other("not UTF-8"))?;
    Ok(Some(Zeroizing::new(text.to_owned())))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;

    use culvert_ops::exit::Exit;

    use super::*;

    #[test]
    fn it_is_looked_for_in_the_promised_order() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str| {
            let path = directory.path().join(name);
            fs::write(&path, format!("{name} passphrase\n")).unwrap();
            path.display().to_string()
        };
        let (flag, file) = (write("flag"), write("file"));
        write(CREDENTIAL);
        let all = [
            (VARIABLE, "variable passphrase".to_owned()),
            (FILE_VARIABLE, file),
            ("CREDENTIALS_DIRECTORY", directory.path().display().to_string()),
        ];
        let found = |flag: Option<&str>, skip: usize| {
            let environment: BTreeMap<String, String> =
                all[skip..].iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
            find(flag.map(Path::new), &environment, For::Sealing).unwrap().expose().to_owned()
        };
        assert_eq!(found(Some(&flag), 0), "flag passphrase");
        assert_eq!(
            [0, 1, 2].map(|skip| found(None, skip)),
            ["variable passphrase", "file passphrase", "backup-passphrase passphrase"]
        );
    }

    #[test]
    fn a_short_one_seals_nothing_and_opens_what_it_may() {
        let environment = BTreeMap::from([(VARIABLE.to_owned(), "1234567".to_owned())]);
        let quit = find(None, &environment, For::Sealing).unwrap_err();
        assert_eq!(quit.exit, Exit::Config);
        assert!(!quit.message.contains("1234567"));
        assert_eq!(find(None, &environment, For::Opening).unwrap().expose(), "1234567");
        let missing = find(Some(Path::new("/nonexistent")), &environment, For::Opening).unwrap_err();
        assert!(missing.exit == Exit::Config && missing.hint.is_some(), "a source that was named is not passed over");
    }

    #[test]
    fn a_typed_line_can_be_corrected_and_given_up() {
        let typed = |bytes: &[u8]| line(&mut &bytes[..]).unwrap().map(|line| line.to_string());
        assert_eq!(typed(b"secret\nrest").as_deref(), Some("secret"));
        assert_eq!(typed("aä\x7f\x7fbc\r".as_bytes()).as_deref(), Some("bc"));
        assert_eq!(typed(b"\x7fwrong\x15right\n").as_deref(), Some("right"));
        for given_up in [&b"half\x03"[..], b"\x04", b"no end"] {
            assert_eq!(typed(given_up), None);
        }
        assert!(line(&mut [b'a'; 2000].as_slice()).is_err());
        assert!(line(&mut &b"\xff\n"[..]).is_err());
    }
}
