//! What holds for every text and every byte that reaches the model's parsers.

use culvert_model::control::{self, ToConnector, ToRelay};
use culvert_model::gateway::{Credential, GatewaySecret};
use culvert_model::key::{PrivateKey, Psk, PublicKey};
use culvert_model::name::{Grant, ServiceName};
use culvert_model::token::{Endpoint, RelayRef, Token};
use culvert_model::units::{format_duration, parse_duration};
use proptest::prelude::*;

proptest! {
    #[test]
    fn no_text_makes_a_parser_panic(text in ".{0,300}") {
        let _ = text.parse::<Token>();
        let _ = format!("culvert_t1_{text}").parse::<Token>();
        let _ = text.parse::<Endpoint>();
        let _ = text.parse::<PublicKey>();
        let _ = text.parse::<PrivateKey>();
        let _ = text.parse::<Psk>();
        let _ = text.parse::<Credential>();
        let _ = text.parse::<ServiceName>();
        let _ = text.parse::<Grant>();
        let _ = parse_duration(&text);
    }

    #[test]
    fn no_bytes_make_the_control_reader_panic_or_wait_past_its_bound(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let read = control::decode::<ToRelay>(&bytes);
        let _ = control::decode::<ToConnector>(&bytes);
        if let Ok(Some((_, taken))) = read {
            prop_assert!(taken <= bytes.len());
        }
    }

    #[test]
    fn any_token_survives_its_text(
        relays in prop::collection::vec(("[a-z]([a-z0-9-]{0,20}[a-z0-9])?(\\.[a-z]{2,8}){0,3}", 1u16.., any::<[u8; 32]>()), 1..8),
    ) {
        let relays = relays
            .into_iter()
            .map(|(host, port, key)| RelayRef {
                endpoint: format!("{host}:{port}").parse().unwrap(),
                public_key: PublicKey::from_bytes(key),
            })
            .collect();
        let token = Token::generate(relays);
        prop_assert!(token.to_text().parse::<Token>() == Ok(token));
    }

    #[test]
    fn a_token_with_one_character_changed_left_out_doubled_or_swapped_is_refused(
        place in any::<prop::sample::Index>(), character in any::<char>(), close in "[A-Za-z0-9_-]",
    ) {
        let text = token().to_text().to_string();
        // Every place of the token once in a while, and a character that belongs there or any other.
        let at = place.index(text.len());
        let (before, rest) = text.split_at(at);
        let (was, after) = rest.split_at(1);
        for new in [character.to_string(), close.clone(), String::new(), format!("{was}{was}")] {
            let changed = format!("{before}{new}{after}");
            if changed.trim() != text {
                prop_assert!(changed.parse::<Token>().is_err(), "{:?} in place of {:?} at {}", new, was, at);
            }
            let longer = format!("{before}{close}{was}{after}");
            prop_assert!(longer.parse::<Token>().is_err(), "inserted at {}", at);
        }
        if let Some(next) = after.get(..1).filter(|next| *next != was) {
            let swapped = format!("{before}{next}{was}{}", &after[1..]);
            prop_assert!(swapped.parse::<Token>().is_err(), "swapped at {}", at);
        }
    }

    #[test]
    fn any_32_bytes_survive_the_text_of_a_key_and_no_other_text_of_them_is_read(bytes in any::<[u8; 32]>(), close in "[A-Za-z0-9+/]") {
        let text = PublicKey::from_bytes(bytes).to_string();
        prop_assert_eq!(text.len(), 44);
        prop_assert_eq!(text.parse::<PublicKey>().map(|key| *key.as_bytes()), Ok(bytes));
        prop_assert_eq!(text.parse::<PrivateKey>().map(|key| *key.as_bytes()), Ok(bytes));
        prop_assert_eq!(text.parse::<Psk>().map(|key| *key.as_bytes()), Ok(bytes));
        // One key has one text: the bits that no byte needs are zero, and the padding is there.
        let last = format!("{}{close}=", &text[..42]);
        if let Ok(other) = last.parse::<PublicKey>() {
            prop_assert_eq!(other.to_string(), last);
        }
        prop_assert!(text[..43].parse::<PublicKey>().is_err());
        let unpadded = format!("{}{close}", &text[..43]);
        prop_assert!(unpadded.parse::<PublicKey>().is_err());
    }

    #[test]
    fn a_gateways_secret_with_one_character_changed_is_refused(place in any::<prop::sample::Index>(), close in "[A-Za-z0-9_-]") {
        let text = format!("kong:{}", *GatewaySecret::generate().to_text());
        let at = 5 + place.index(text.len() - 5);
        let changed = format!("{}{close}{}", &text[..at], &text[at + 1..]);
        if changed != text {
            prop_assert!(changed.parse::<Credential>().is_err(), "at {}", at);
        }
    }

    #[test]
    fn whole_durations_survive_their_text(seconds in 0u64..3_000_000_000) {
        let duration = std::time::Duration::from_secs(seconds);
        prop_assert_eq!(parse_duration(&format_duration(duration)), Ok(duration));
    }

    #[test]
    fn a_grant_matches_as_a_slow_and_plain_matcher_says(pattern in "[ab*]{1,8}", name in "[ab]{1,10}") {
        fn plain(pattern: &[u8], text: &[u8]) -> bool {
            match pattern.split_first() {
                None => text.is_empty(),
                Some((b'*', rest)) => (0..=text.len()).any(|skip| plain(rest, &text[skip..])),
                Some((first, rest)) => text.split_first().is_some_and(|(t, after)| t == first && plain(rest, after)),
            }
        }
        let (grant, name) = (pattern.parse::<Grant>().unwrap(), name.parse::<ServiceName>().unwrap());
        prop_assert_eq!(grant.matches(&name), plain(pattern.as_bytes(), name.as_str().as_bytes()));
    }
}

fn token() -> Token {
    let relay =
        |endpoint: &str| RelayRef { endpoint: endpoint.parse().unwrap(), public_key: PublicKey::from_bytes([7; 32]) };
    Token::generate(vec![relay("relay.example.com:51820"), relay("[2001:db8::1]:51820")])
}
