//! How a process ends: four exit statuses, and one clear line with a hint on stderr.
//!
//! Must never print a secret: messages name keys, files and variables, not their content.

use std::error::Error;
use std::fmt;
use std::io::{self, Write};
use std::process::ExitCode;

/// The exit statuses that interface.md §1 promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Fine.
    Ok = 0,
    /// Failed; also: `status` or `ready` says not running or not ready.
    Failed = 1,
    /// Wrong usage.
    Usage = 2,
    /// Wrong configuration, or refused for good: a supervisor need not try again.
    Config = 78,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why a command ends, and with which status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quit {
    /// The status.
    pub exit: Exit,
    /// One line: lower case, what was tried, with which value. Empty: everything was said already.
    pub message: String,
    /// What the user can do.
    pub hint: Option<String>,
}

impl Quit {
    /// Ends with a status and a line.
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into(), hint: None }
    }

    /// Ends with 1.
    pub fn failed(message: impl Into<String>) -> Self {
        Self::new(Exit::Failed, message)
    }

    /// Ends with 2.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, message)
    }

    /// Ends with 78.
    pub fn config(message: impl Into<String>) -> Self {
        Self::new(Exit::Config, message)
    }

    /// Ends without a word, because stdout or stderr has it already.
    pub fn silent(exit: Exit) -> Self {
        Self::new(exit, "")
    }

    /// Adds what the user can do.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl fmt::Display for Quit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for Quit {}

/// Turns an error into the end of the process.
pub trait OrQuit<T> {
    /// Ends with 1; the line is `what: error: its sources`.
    ///
    /// # Errors
    /// The one it was, as [`Quit`].
    fn or_failed(self, what: impl fmt::Display) -> Result<T, Quit>;
    /// Ends with 2.
    ///
    /// # Errors
    /// The one it was, as [`Quit`].
    fn or_usage(self, what: impl fmt::Display) -> Result<T, Quit>;
    /// Ends with 78.
    ///
    /// # Errors
    /// The one it was, as [`Quit`].
    fn or_config(self, what: impl fmt::Display) -> Result<T, Quit>;
}

impl<T, E: Error> OrQuit<T> for Result<T, E> {
    fn or_failed(self, what: impl fmt::Display) -> Result<T, Quit> {
        self.map_err(|error| Quit::failed(chain(&what, &error)))
    }

    fn or_usage(self, what: impl fmt::Display) -> Result<T, Quit> {
        self.map_err(|error| Quit::usage(chain(&what, &error)))
    }

    fn or_config(self, what: impl fmt::Display) -> Result<T, Quit> {
        self.map_err(|error| Quit::config(chain(&what, &error)))
    }
}

/// Ends `main`: says why on stderr, as `PROGRAM: message` and `  hint`, and gives the status.
pub fn finish(program: &str, result: Result<Exit, Quit>) -> ExitCode {
    finish_to(program, result, &mut io::stderr()).into()
}

/// Writes data and a newline to stdout. A reader that went away ends the command with success, as `| head` expects.
///
/// # Errors
/// [`Exit::Ok`] without a word when the pipe is broken, else [`Exit::Failed`].
pub fn print(data: impl fmt::Display) -> Result<(), Quit> {
    let mut out = io::stdout().lock();
    written(writeln!(out, "{data}").and_then(|()| out.flush()))
}

/// Writes words to stderr. Nobody reading them is no reason to fail.
pub fn say(words: impl fmt::Display) {
    let _ = writeln!(io::stderr(), "{words}");
}

fn finish_to(program: &str, result: Result<Exit, Quit>, err: &mut impl Write) -> Exit {
    let quit = match result {
        Ok(exit) => return exit,
        Err(quit) => quit,
    };
    if !quit.message.is_empty() {
        let _ = writeln!(err, "{program}: {}", quit.message);
        if let Some(hint) = &quit.hint {
            let _ = writeln!(err, "  {}", hint.replace('\n', "\n  "));
        }
    }
    quit.exit
}

fn written(result: io::Result<()>) -> Result<(), Quit> {
    result.map_err(|error| match error.kind() {
        io::ErrorKind::BrokenPipe => Quit::silent(Exit::Ok),
        _ => Quit::failed(format!("cannot write to stdout: {error}")),
    })
}

fn chain(what: &dyn fmt::Display, error: &dyn Error) -> String {
    let mut text = format!("{what}: {error}");
    let mut next = error.source();
    while let Some(source) = next {
        let said = source.to_string();
        // Many errors print their source too; saying it twice helps nobody.
        if !text.ends_with(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        next = source.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quit_is_one_line_with_its_hint_below() {
        let mut err = Vec::new();
        let quit = Quit::config("unknown key \"x\"").hint("did you mean \"y\"?\nsee `check`");
        assert_eq!(finish_to("culvert-relay", Err(quit), &mut err), Exit::Config);
        assert_eq!(
            String::from_utf8(err).unwrap(),
            "culvert-relay: unknown key \"x\"\n  did you mean \"y\"?\n  see `check`\n"
        );
    }

    #[test]
    fn a_silent_quit_prints_nothing() {
        let mut err = Vec::new();
        assert_eq!(finish_to("culvert-relay", Err(Quit::silent(Exit::Failed)), &mut err), Exit::Failed);
        assert!(err.is_empty());
    }

    #[test]
    fn a_broken_pipe_is_success_and_another_write_error_is_not() {
        let broken = written(Err(io::ErrorKind::BrokenPipe.into())).unwrap_err();
        assert_eq!((broken.exit, broken.message.as_str()), (Exit::Ok, ""));
        assert_eq!(written(Err(io::ErrorKind::StorageFull.into())).unwrap_err().exit, Exit::Failed);
    }

    #[test]
    fn the_statuses_are_those_that_are_promised() {
        let all = [Exit::Ok, Exit::Failed, Exit::Usage, Exit::Config];
        assert_eq!(all.map(|exit| exit as u8), [0, 1, 2, 78]);
    }

    #[test]
    fn an_error_brings_its_sources_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("reading failed")]
        struct Outer(#[source] io::Error);
        let result: Result<(), _> = Err(Outer(io::Error::other("disk on fire")));
        let quit = result.or_failed("cannot start").unwrap_err();
        assert_eq!(quit.message, "cannot start: reading failed: disk on fire");
    }
}
