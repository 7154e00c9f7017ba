//! What of the program's code stays in memory: what its start ran and nothing has run since is given back.
//!
//! Must never drop a page that differs from its file.

use std::fs;
use std::path::Path;
use std::time::Duration;

use nix::libc;
use tokio::time::sleep;

/// How long after its start a program has run what only a start runs.
pub const START_LASTS: Duration = Duration::from_secs(5);

/// A part of a file's code in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Mapping {
    start: usize,
    len: usize,
}

/// [`give_back_code`] once the start is over.
pub async fn give_back_start() {
    sleep(START_LASTS).await;
    give_back_code();
}

/// Takes the program's and libc's code out of this process's memory; what still runs comes back as it is touched, from the
/// system's cache or the file. Returns how many bytes of mappings that was; none where the system does not tell them.
pub fn give_back_code() -> usize {
    let listed = fs::read_to_string("/proc/self/smaps").unwrap_or_default();
    let Ok(program) = fs::read_link("/proc/self/exe") else { return 0 };
    unchanged(&listed, &program).filter(|mapping| forget(*mapping)).map(|mapping| mapping.len).sum()
}

/// The mappings in a `/proc/PID/smaps` of the program's and libc's code that are exactly what the file holds and stay so: private,
/// not writable, and without a page of their own (a debugger's breakpoints make some).
fn unchanged(listed: &str, program: &Path) -> impl Iterator<Item = Mapping> {
    let mut current = None;
    listed.lines().filter_map(move |line| {
        if let Some(amount) = line.strip_prefix("Anonymous:") {
            return current.take().filter(|_| amount.trim() == "0 kB");
        }
        if let Some(found) = mapping(line, program) {
            current = found;
        }
        None
    })
}

/// The mapping that a heading tells, if it is of the program's or libc's code, private and not writable. None outside:
/// no heading.
#[expect(clippy::option_option, reason = "a line is a heading or not, and a heading is of interest or not")]
fn mapping(line: &str, program: &Path) -> Option<Option<Mapping>> {
    let mut words = line.split_ascii_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let (start, end) = (usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?);
    let permissions = words.next()?;
    let path = Path::new(line.find('/').and_then(|from| line.get(from..)).unwrap_or_default());
    let is_ours = permissions == "r-xp" && (path == program || path.ends_with("libc.so.6"));
    let mapping = Mapping { start, len: end.checked_sub(start)? };
    Some(is_ours.then_some(mapping))
}

#[expect(unsafe_code, reason = "std knows nothing of mappings")]
fn forget(mapping: Mapping) -> bool {
    // SAFETY: the kernel has just told of this mapping of the program's or libc's code. It is private, cannot be written and holds
    // no page of its own, so each of its pages is the file's and the next access finds the same bytes there. It is still what it
    // was told to be: code of the two is never unloaded. (What reads its own file's names for a backtrace maps it without the
    // right to execute, and unmaps it.)
    unsafe { libc::madvise(std::ptr::without_provenance_mut(mapping.start), mapping.len, libc::MADV_DONTNEED) == 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LISTED: &str = "\
55f44aa00000-55f44ac30000 r--p 00000000 fe:00 71 /opt/culvert relay
Size:               2240 kB
Anonymous:             0 kB
VmFlags: rd mr mw me sd
55f44ac30000-55f44ac31000 r-xp 0022f000 fe:00 71 /opt/culvert relay
Anonymous:             0 kB
55f44b2fb000-55f44b33e000 r--p 008f9000 fe:00 71 /opt/culvert relay
Anonymous:           268 kB
55f44b33e000-55f44b345000 rw-p 0093b000 fe:00 71 /opt/culvert relay
Anonymous:             0 kB
55f44b345000-55f44b346000 r--s 00000000 fe:00 71 /opt/culvert relay
Anonymous:             0 kB
55f44b400000-55f44b401000 r--p 00000000 00:00 0
Anonymous:             0 kB
7f5530000000-7f5530001000 r-xp 00028000 fe:00 80 /usr/lib/libc.so.6
Anonymous:             0 kB
7f5530001000-7f5530002000 r-xp 00028000 fe:00 81 /usr/lib/other.so.6
Anonymous:             0 kB
7ffd0a5f9000-7ffd0a5fb000 r-xp 00000000 00:00 0 [vdso]
Anonymous:             0 kB
";

    #[test]
    fn only_what_is_exactly_its_file_is_given_back() {
        let program = Path::new("/opt/culvert relay");
        let found: Vec<Mapping> = unchanged(LISTED, program).collect();
        let expected =
            [(0x55f4_4ac3_0000, 0x1000), (0x7f55_3000_0000, 0x1000)].map(|(start, len)| Mapping { start, len });
        assert_eq!(found, expected);
        assert_eq!(unchanged("", program).count(), 0);
        assert_eq!(unchanged("Anonymous: 0 kB\nnonsense\n-\nAnonymous: 0 kB\n", program).count(), 0);
    }

    #[test]
    fn the_program_runs_on_without_the_code_of_its_start() {
        let resident = || {
            let status = fs::read_to_string("/proc/self/status").unwrap();
            let line = status.lines().find_map(|line| line.strip_prefix("RssFile:")).unwrap();
            line.trim().trim_end_matches(" kB").parse::<usize>().unwrap()
        };
        let before = resident();
        let given_back = give_back_code();
        let after = resident();
        assert!(given_back > 500_000 && after < before, "{given_back} bytes of mappings: {before} to {after} KiB");
    }
}
