//! `genkey`, `pubkey` and `genpsk` beside the real `wg`: the same input gives the same bytes and the same end.

use std::io::Write as _;
use std::process::{Command, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use proptest::prelude::*;

/// Both programs run for each.
const CASES: u32 = 96;

proptest! {
    #![proptest_config(ProptestConfig { cases: CASES, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_private_key_has_the_public_key_that_wg_gives_it(bytes in any::<[u8; 32]>(), end in "[ \\t\\n\\r\\x0b\\x0c]{0,3}") {
        // Clamped or not: both clamp.
        let input = format!("{}{end}", STANDARD.encode(bytes));
        same_pubkey(input.as_bytes())?;
    }

    #[test]
    fn what_wg_refuses_is_refused(bytes in any::<[u8; 32]>(), change in change()) {
        let text = STANDARD.encode(bytes).into_bytes();
        same_pubkey(&change.of(text))?;
    }
}

#[test]
fn the_edges_of_what_wg_reads() {
    let Some(key) = wg(&["genkey"], b"") else { return skip() };
    let key = key.stdout;
    let key = key.trim_ascii_end();
    let long = [key, &[b' '; 5000]].concat();
    let longer = [long.as_slice(), b"x"].concat();
    let inputs: [&[u8]; 14] = [
        b"",
        b"\n",
        b"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
        b"//////////////////////////////////////////8=",
        b"//////////////////////////////////////////9=",
        b"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
        b"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA==",
        b"____________________________________________",
        &[0; 44],
        &[0xff; 44],
        &[b' '; 44],
        &long,
        &longer,
        &[key, b"\n", key].concat(),
    ];
    for input in inputs {
        same_pubkey(input).unwrap();
    }
}

#[test]
fn new_keys_are_what_wg_makes_and_takes() {
    let Some(theirs) = wg(&["genkey"], b"") else { return skip() };
    let mut unclamped = 0;
    for _ in 0..16 {
        let (key, psk) = (ours(&["genkey"], b""), ours(&["genpsk"], b""));
        for made in [&key, &psk, &theirs] {
            assert_eq!((made.status, made.stdout.len(), made.stdout.last()), (0, 45, Some(&b'\n')));
        }
        let bytes = |made: &Ended| STANDARD.decode(made.stdout.trim_ascii_end()).unwrap();
        let clamped = |bytes: &[u8]| bytes[0] & 7 == 0 && bytes[31] & 0xc0 == 0x40;
        assert!(clamped(&bytes(&key)), "a private key is clamped, as wg's is");
        assert!(clamped(&bytes(&theirs)));
        // All bits of a pre-shared key are random.
        unclamped += usize::from(!clamped(&bytes(&psk)));
        same_pubkey(&key.stdout).unwrap();
        same_pubkey(&psk.stdout).unwrap();
    }
    assert!(unclamped > 8, "{unclamped}");
}

/// What is done to the text of a key.
#[derive(Debug, Clone)]
enum Change {
    Replace(prop::sample::Index, u8),
    Insert(prop::sample::Index, u8),
    Remove(prop::sample::Index),
    Cut(prop::sample::Index),
}

fn change() -> impl Strategy<Value = Change> {
    let byte = || prop_oneof![any::<u8>(), prop::sample::select(b"AZaz09+/=-_ \n\t\x0b\0".to_vec())];
    prop_oneof![
        (any::<prop::sample::Index>(), byte()).prop_map(|(at, byte)| Change::Replace(at, byte)),
        (any::<prop::sample::Index>(), byte()).prop_map(|(at, byte)| Change::Insert(at, byte)),
        any::<prop::sample::Index>().prop_map(Change::Remove),
        any::<prop::sample::Index>().prop_map(Change::Cut),
    ]
}

impl Change {
    fn of(&self, mut text: Vec<u8>) -> Vec<u8> {
        match self {
            Self::Replace(at, byte) => text[at.index(44)] = *byte,
            Self::Insert(at, byte) => text.insert(at.index(45), *byte),
            Self::Remove(at) => drop(text.remove(at.index(44))),
            Self::Cut(at) => text.truncate(at.index(44)),
        }
        text
    }
}

#[derive(Debug)]
struct Ended {
    status: i32,
    stdout: Vec<u8>,
}

fn same_pubkey(input: &[u8]) -> Result<(), TestCaseError> {
    let Some(theirs) = wg(&["pubkey"], input) else {
        skip();
        return Ok(());
    };
    let ours = ours(&["pubkey"], input);
    let shown = String::from_utf8_lossy(input);
    prop_assert_eq!(ours.status, theirs.status, "{:?}", shown);
    prop_assert_eq!(&ours.stdout, &theirs.stdout, "{:?}", shown);
    Ok(())
}

fn wg(args: &[&str], input: &[u8]) -> Option<Ended> {
    run("wg", args, input)
}

fn ours(args: &[&str], input: &[u8]) -> Ended {
    run(env!("CARGO_BIN_EXE_culvert-relay"), args, input).expect("the relay's binary")
}

fn run(program: &str, args: &[&str], input: &[u8]) -> Option<Ended> {
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    // One that refuses at the first byte does not read the rest.
    let _ = child.stdin.take().map(|mut stdin| stdin.write_all(input));
    let output = child.wait_with_output().ok()?;
    Some(Ended { status: output.status.code().unwrap_or(-1), stdout: output.stdout })
}

/// As loud as the lab's skips: a passing test's standard error is swallowed.
fn skip() {
    let line = "SKIPPED: wg: keys are not compared with its: needs Program(\"wg\")";
    assert!(std::env::var_os("CULVERT_TEST_NO_SKIP").is_none(), "{line}");
    eprintln!("{line}");
    if let Ok(path) = std::env::var("CULVERT_TEST_SKIPS")
        && let Ok(mut file) = std::fs::OpenOptions::new().append(true).create(true).open(path)
    {
        let _ = writeln!(file, "{line}");
    }
}
