//! The program log: one subscriber on stderr, its filter changeable while it runs.
//!
//! Must never speak for the libraries below us unless asked to: users see our lines. (boringtun, for one, logs an
//! ordinary expiry as an error.)

use std::io::{self, IsTerminal as _};

use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, reload};

use crate::load::Environment;

/// What the libraries below us may say, before the user's own filter.
const QUIET: &str = "boringtun=off,quinn_proto=error,quinn_udp=error,hyper=error,hyper_util=error,\
    h2=error,rustls=error,tokio_rustls=error,tun_rs=error,netlink_packet_route=error,want=off,mio=off,tokio=error,\
    runtime=error";

/// How lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// For a terminal.
    Human,
    /// One JSON object a line.
    Json,
}

/// The log cannot be set up so.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LogError {
    /// The filter is malformed.
    #[error(
        "{0:?} is not a log filter: a level (error, warn, info, debug, trace) or target=level, separated by commas"
    )]
    BadFilter(String),
    /// The format is unknown.
    #[error("{0:?} is not a log format: human or json")]
    BadFormat(String),
}

/// Changes the filter of the running log.
#[derive(Clone)]
pub struct LogHandle {
    filter: reload::Handle<Targets, Registry>,
    /// What `CULVERT_LOG` said: it wins over the configuration.
    fixed: Option<String>,
    default: &'static str,
}

/// Starts the log for the whole process from `CULVERT_LOG` and `CULVERT_LOG_FORMAT` (human on a terminal, else JSON).
/// `default` is the filter when nobody gives one: `info` for `run`, `warn` for commands.
///
/// Later calls change nothing but the filter that their own handle sets.
///
/// # Errors
/// [`LogError`] for a malformed variable.
pub fn init(default: &'static str, environment: &dyn Environment) -> Result<LogHandle, LogError> {
    let format = format(environment, io::stderr().is_terminal())?;
    let (layered, handle) = build(default, format, environment, io::stderr)?;
    // A second call (`dev` runs both programs in one process) keeps the first log.
    let _ = layered.try_init();
    Ok(handle)
}

impl LogHandle {
    /// Applies the configuration's filter (none: the default), unless `CULVERT_LOG` gave one.
    ///
    /// # Errors
    /// [`LogError::BadFilter`]; the old filter stays then.
    pub fn set(&self, filter: Option<&str>) -> Result<(), LogError> {
        let wanted = filter.unwrap_or(self.default);
        let parsed = parse(self.fixed.as_deref().unwrap_or(wanted))?;
        // Checked even where the variable wins, so that a bad file is found by its first reload.
        parse(wanted)?;
        let _ = self.filter.reload(parsed);
        Ok(())
    }
}

/// Checks a filter's text.
///
/// # Errors
/// [`LogError::BadFilter`].
pub fn check_filter(filter: &str) -> Result<(), LogError> {
    parse(filter).map(drop)
}

fn format(environment: &dyn Environment, terminal: bool) -> Result<Format, LogError> {
    match environment.var("CULVERT_LOG_FORMAT").as_deref() {
        Some("human") => Ok(Format::Human),
        Some("json") => Ok(Format::Json),
        None if terminal => Ok(Format::Human),
        None => Ok(Format::Json),
        Some(other) => Err(LogError::BadFormat(other.to_owned())),
    }
}

fn build<W>(
    default: &'static str,
    format: Format,
    environment: &dyn Environment,
    writer: W,
) -> Result<(impl SubscriberInitExt + tracing::Subscriber + Send + Sync, LogHandle), LogError>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let fixed = environment.var("CULVERT_LOG");
    let (filter, handle) = reload::Layer::new(parse(fixed.as_deref().unwrap_or(default))?);
    let layer = tracing_subscriber::fmt::layer().with_writer(writer);
    let lines = match format {
        Format::Human => layer.with_ansi(io::stderr().is_terminal()).with_target(false).boxed(),
        Format::Json => layer.json().flatten_event(true).with_current_span(true).with_span_list(false).boxed(),
    };
    // The filter is its own layer, so that what it refuses costs no formatting.
    let layered = tracing_subscriber::registry().with(filter).with(lines);
    Ok((layered, LogHandle { filter: handle, fixed, default }))
}

/// `Targets` and not `EnvFilter`: that one also knows spans and patterns, and brings 300 KiB of regular expressions.
fn parse(filter: &str) -> Result<Targets, LogError> {
    let bad = || LogError::BadFilter(filter.to_owned());
    let words: Vec<&str> = filter.split(',').map(str::trim).filter(|word| !word.is_empty()).collect();
    let is_odd =
        |word: &str| word.contains('[') || !word.starts_with(|c: char| c.is_alphanumeric() || "-:_".contains(c));
    if filter.trim().is_empty() || words.iter().any(|word| is_odd(word)) {
        return Err(bad());
    }
    // What comes later replaces what comes before: the user's own words about a library win.
    format!("{QUIET},{}", words.join(",")).trim_end_matches(',').parse().map_err(|_| bad())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Written {
        fn text(&self) -> String {
            String::from_utf8(std::mem::take(&mut *self.0.lock().unwrap())).unwrap()
        }
    }

    fn env(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn logged(variables: &[(&str, &str)], say: impl FnOnce(&LogHandle)) -> String {
        let written = Written::default();
        let writer = written.clone();
        let env = env(variables);
        let chosen = format(&env, false).unwrap();
        let (layered, handle) = build("info", chosen, &env, move || writer.clone()).unwrap();
        tracing::subscriber::with_default(layered, || say(&handle));
        written.text()
    }

    #[test]
    fn libraries_are_silent_until_the_user_names_them() {
        let say = |_: &LogHandle| {
            tracing::error!(target: "boringtun::noise", "ordinary expiry");
            tracing::warn!(target: "quinn_udp", "no offload");
            tracing::info!("ours");
            tracing::debug!("detail");
        };
        let quiet = logged(&[], say);
        assert!(quiet.contains("ours") && quiet.lines().count() == 1, "{quiet}");
        let debug = logged(&[("CULVERT_LOG", "debug")], say);
        assert!(debug.contains("detail") && debug.lines().count() == 2, "{debug}");
        let asked = logged(&[("CULVERT_LOG", "info,boringtun=debug")], say);
        assert!(asked.contains("ordinary expiry") && asked.lines().count() == 2, "{asked}");
    }

    #[test]
    fn a_line_off_a_terminal_is_one_json_object_with_its_fields() {
        let text = logged(&[], |_| tracing::info!(service = "orders", "it's up\nreally"));
        let line: serde_json::Value = serde_json::from_str(text.trim_end()).unwrap();
        assert_eq!((line["service"].as_str(), line["message"].as_str()), (Some("orders"), Some("it's up\nreally")));
        assert_eq!(line["level"].as_str(), Some("INFO"));
        let human = logged(&[("CULVERT_LOG_FORMAT", "human")], |_| tracing::info!(service = "orders", "up"));
        assert!(human.contains(" INFO up service=\"orders\""), "{human}");
    }

    #[test]
    fn the_filter_changes_while_the_log_runs_unless_the_variable_gave_it() {
        let say = |handle: &LogHandle| {
            handle.set(Some("warn")).unwrap();
            tracing::info!("first");
            handle.set(None).unwrap();
            tracing::info!("second");
            assert!(handle.set(Some("culvert=loud")).is_err());
            tracing::info!("third");
        };
        let text = logged(&[], say);
        assert!(!text.contains("first") && text.contains("second") && text.contains("third"), "{text}");
        assert!(logged(&[("CULVERT_LOG", "info")], say).contains("first"));
    }

    #[test]
    fn nonsense_is_refused_with_what_is_expected() {
        for bad in ["", "culvert=loud", "=", "a=b=c", "[session]=debug", "info,=debug"] {
            assert!(check_filter(bad).is_err(), "{bad:?}");
        }
        for good in ["warn", "WARN", "info, culvert_plane::udp=trace ,", "off,culvert_plane=debug"] {
            assert!(check_filter(good).is_ok(), "{good:?}");
        }
        assert!(format(&env(&[("CULVERT_LOG_FORMAT", "xml")]), true).is_err());
        assert_eq!(format(&env(&[]), true), Ok(Format::Human));
        assert_eq!(format(&env(&[]), false), Ok(Format::Json));
    }
}
