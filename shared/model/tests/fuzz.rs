//! Tokens and control messages made wrong by chance, the same ones for the same seed: nothing panics, nothing reads past its
//! bound, and what is read means one thing.
//!
//! `CULVERT_FUZZ_SECONDS=600 cargo test -p culvert-model --test fuzz` goes on for longer; `CULVERT_FUZZ_SEED=N` draws others.
//! A failure prints its input.

use std::fmt::Debug;
use std::time::{Duration, Instant};

use culvert_model::control::{self, MAX_MESSAGE_BYTES, ToConnector, ToRelay};
use culvert_model::token::{PREFIX, RelayRef, Token};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Every message, as it travels.
const CORPUS: &str = include_str!("corpus/control.jsonl");
/// How many inputs without being told.
const INPUTS: u64 = 40_000;
/// What readers of JSON have tripped over.
const WORDS: [&str; 24] = [
    "null",
    "true",
    "-1",
    "1e999",
    "18446744073709551616",
    "4294967296",
    "\"\"",
    "[]",
    "{}",
    "[[[[[[[[",
    "\\u0000",
    "\\ud800",
    "\u{feff}",
    "\"type\":\"drain\",",
    "\"type\":\"ping\"",
    "\"id\":7,",
    "\"version\":4294967295",
    ",",
    ":",
    "\"",
    "}",
    "]",
    "\n",
    "\0",
];

#[test]
fn whatever_comes_for_a_control_message_is_read_once_and_alike() {
    let lines: Vec<&str> = CORPUS.lines().collect();
    let mut read = 0;
    let inputs = draw(|random| {
        let mut json = lines[random.random_range(0..lines.len())].as_bytes().to_vec();
        for _ in 0..random.random_range(0..=3) {
            let other = lines[random.random_range(0..lines.len())].as_bytes();
            mutate(&mut json, other, random);
        }
        let mut bytes = u32::try_from(json.len()).unwrap().to_be_bytes().to_vec();
        bytes.extend_from_slice(&json);
        match random.random_range(0..8) {
            0 => bytes[random.random_range(0..4)] = random.random(),
            1 => bytes.truncate(random.random_range(0..bytes.len())),
            2 => bytes.extend_from_slice(lines[0].as_bytes()),
            _ => {}
        }
        read += usize::from(reads::<ToRelay>(&bytes)) + usize::from(reads::<ToConnector>(&bytes));
    });
    println!("fuzz of control messages: {inputs} inputs, {read} read");
    assert!(read as u64 > inputs / 10, "only {read} of {inputs} were read: nothing is tested");
}

#[test]
fn whatever_comes_for_a_token_is_refused_or_the_token_itself() {
    let relay = |endpoint: &str, key: u8| RelayRef {
        endpoint: endpoint.parse().unwrap(),
        public_key: culvert_model::key::PublicKey::from_bytes([key; 32]),
    };
    let relays = vec![relay("relay.example.com:51820", 1), relay("[2001:db8::1]:51820", 2)];
    let tokens = [Token::generate(relays.clone()), Token::generate(relays[..1].to_vec())];
    let texts = tokens.each_ref().map(Token::to_text);
    let mut same = 0;
    let inputs = draw(|random| {
        let which = random.random_range(0..texts.len());
        let mut bytes = texts[which].as_bytes().to_vec();
        for _ in 0..random.random_range(0..=2) {
            mutate(&mut bytes, texts[1 - which].as_bytes(), random);
        }
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Ok(token) = text.parse::<Token>() {
            // Less the white space of a copy, it is one of ours and no other.
            let known = texts.iter().position(|known| text.trim() == known.as_str());
            assert!(known.is_some_and(|at| tokens[at] == token), "{text:?} was taken for a token");
            assert_eq!(token.to_text().as_str(), text.trim());
            same += 1;
        }
    });
    println!("fuzz of tokens: {inputs} inputs, {same} unchanged");
    assert!(same as u64 > inputs / 10, "only {same} of {inputs} were tokens: nothing is tested");
}

/// With a right checksum behind it, whatever stands in a token is read without a panic and means what it says.
#[test]
fn whatever_a_token_holds_is_refused_or_survives_its_text() {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    use sha2::{Digest as _, Sha256};
    let mut content = vec![1, 1];
    content.extend_from_slice(&[9; 32]);
    content.push(12);
    content.extend_from_slice(b"udp://relay:9");
    content.extend_from_slice(&[5; 31]);
    let mut read = 0;
    let inputs = draw(|random| {
        let mut bytes = content.clone();
        // The length of the endpoint, now and then right.
        bytes[34] = if random.random_range(0..2) == 0 { 13 } else { random.random() };
        if bytes[34] == 13 {
            bytes.push(5);
        }
        for _ in 0..random.random_range(0..=2) {
            mutate(&mut bytes, b"udp://[::1]:1", random);
        }
        let sum = Sha256::digest(&bytes);
        bytes.extend_from_slice(&sum[..4]);
        let text = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(&bytes));
        if let Ok(token) = text.parse::<Token>() {
            assert!(token.to_text().parse::<Token>() == Ok(token.clone()), "{text}");
            assert!(!token.relays().is_empty(), "{text}");
            read += 1;
        }
    });
    println!("fuzz of tokens' content: {inputs} inputs, {read} read");
    assert!(read as u64 > inputs / 20, "only {read} of {inputs} were read: nothing is tested");
}

#[test]
fn every_message_of_the_corpus_is_read_by_one_side_at_least() {
    for line in CORPUS.lines() {
        let mut bytes = u32::try_from(line.len()).unwrap().to_be_bytes().to_vec();
        bytes.extend_from_slice(line.as_bytes());
        let is_known = !line.contains("teleport\",\"to\"");
        let relay = control::decode::<ToRelay>(&bytes);
        let connector = control::decode::<ToConnector>(&bytes);
        let known = matches!(&relay, Ok(Some((message, _))) if *message != ToRelay::Unknown)
            || matches!(&connector, Ok(Some((message, _))) if *message != ToConnector::Unknown);
        assert_eq!(known, is_known, "{line}");
    }
}

/// Reads a message, checks what was read, and tells whether there was one.
fn reads<M: DeserializeOwned + Serialize + PartialEq + Debug>(bytes: &[u8]) -> bool {
    match control::decode::<M>(bytes) {
        Ok(Some((message, taken))) => {
            let said = u32::from_be_bytes(bytes[..4].try_into().unwrap()) as usize;
            assert!(taken == 4 + said && taken <= bytes.len() && said <= MAX_MESSAGE_BYTES, "{bytes:?}");
            let mut again = Vec::new();
            control::encode(&message, &mut again).unwrap();
            // What was not understood is not said again.
            if let Ok(Some((same, _))) = control::decode::<M>(&again) {
                assert_eq!(same, message, "{}", String::from_utf8_lossy(bytes));
            }
            true
        }
        Ok(None) => {
            let said = bytes.first_chunk::<4>().map(|length| u32::from_be_bytes(*length) as usize);
            assert!(said.is_none_or(|said| bytes.len() < 4 + said && said <= MAX_MESSAGE_BYTES), "{bytes:?}");
            false
        }
        Err(_) => false,
    }
}

fn mutate(bytes: &mut Vec<u8>, other: &[u8], random: &mut StdRng) {
    let at = random.random_range(0..=bytes.len());
    let len = random.random_range(1..=12).min(bytes.len() - at);
    match random.random_range(0..8) {
        0 => {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = random.random();
            }
        }
        1 => {
            bytes.drain(at..at + len);
        }
        2 => {
            let copy = bytes[at..at + len].to_vec();
            bytes.splice(at..at, copy);
        }
        3 => {
            bytes.splice(at..at, WORDS[random.random_range(0..WORDS.len())].bytes());
        }
        4 => {
            bytes.splice(at..at + len, WORDS[random.random_range(0..WORDS.len())].bytes());
        }
        5 => {
            // The front of one and the end of another.
            let from = random.random_range(0..=other.len());
            bytes.truncate(at);
            bytes.extend_from_slice(&other[from..]);
        }
        6 => {
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 1 << random.random_range(0..8);
            }
        }
        _ => {
            if at + 1 < bytes.len() {
                bytes.swap(at, at + 1);
            }
        }
    }
}

/// Draws inputs until there were enough; how many.
fn draw(mut one: impl FnMut(&mut StdRng)) -> u64 {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seed = number("CULVERT_FUZZ_SEED").unwrap_or(1);
    let until = number("CULVERT_FUZZ_SECONDS").map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let mut inputs = 0;
    while until.map_or(inputs < INPUTS, |until| Instant::now() < until) {
        one(&mut StdRng::seed_from_u64(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ inputs));
        inputs += 1;
    }
    inputs
}
