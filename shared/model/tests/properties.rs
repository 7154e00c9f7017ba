//! What holds for every text and every byte that reaches the model's parsers.

use culvert_model::control::{self, ToConnector, ToRelay};
use culvert_model::key::PublicKey;
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
