//! Keys and the patterns that settings name them by, and the nearest key to a mistyped one.

use super::Setting;

/// One part of a pattern: a name or `*`, and whether it is an array of tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Part {
    /// None: any name.
    pub(super) name: Option<&'static str>,
    pub(super) array: bool,
}

/// What a key's names, from the top, lead to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// The setting with this index.
    Setting(usize),
    /// A table with settings below it.
    Table,
    /// An array of tables with settings below it.
    Tables,
    Unknown,
}

pub(super) fn parts(pattern: &'static str) -> Vec<Part> {
    let part = |text: &'static str| {
        let name = text.strip_suffix("[]").unwrap_or(text);
        Part { name: (name != "*").then_some(name), array: name.len() != text.len() }
    };
    pattern.split('.').map(part).collect()
}

pub(super) fn place(settings: &[Setting], names: &[String]) -> Place {
    let mut found = Place::Unknown;
    for (index, setting) in settings.iter().enumerate() {
        let parts = parts(setting.key);
        let fits = parts.len() >= names.len()
            && parts.iter().zip(names).all(|(part, name)| part.name.is_none_or(|expected| expected == name));
        if !fits {
            continue;
        }
        if parts.len() == names.len() {
            return Place::Setting(index);
        }
        let array = names.len().checked_sub(1).and_then(|last| parts.get(last)).is_some_and(|part| part.array);
        found = if array { Place::Tables } else { Place::Table };
    }
    found
}

/// The known key that a mistyped one most likely means.
pub(super) fn nearest_key(settings: &[Setting], wrong: &str) -> Option<String> {
    nearest(
        wrong,
        settings.iter().flat_map(|setting| {
            let plain = setting.key.replace("[]", "");
            // A table's name may be what is mistyped.
            let table = plain.rsplit_once('.').map(|(table, _)| table.to_owned());
            [Some(plain), table].into_iter().flatten()
        }),
    )
}

pub(super) fn nearest(wrong: &str, known: impl IntoIterator<Item = String>) -> Option<String> {
    let distance = |candidate: &str| {
        let whole = strsim::damerau_levenshtein(wrong, candidate);
        // Right name in the wrong table: `listen` for `wireguard.listen`.
        let last = |key: &str| key.rsplit('.').next().unwrap_or_default().to_owned();
        if last(wrong) == last(candidate) { whole.min(3) } else { whole * 2 }
    };
    known.into_iter().min_by_key(|candidate| distance(candidate))
}
