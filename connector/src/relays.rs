//! The relays of one registry, as any of them tells: which of them are new here, which are gone.
//!
//! Must never drop a relay that the telling one does not share a registry with, or change the one that tells.

use culvert_model::control::RelayPlace;
use culvert_model::token::{Endpoint, MAX_RELAYS};

use crate::identity::{Relay, name_for};

/// What one relay told, and which one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// The name here of the relay that tells.
    pub by: String,
    /// Its tag.
    pub own: String,
    /// All relays of its registry.
    pub relays: Vec<RelayPlace>,
}

/// What follows from it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Learned {
    /// Relays to connect to from now on.
    pub added: Vec<String>,
    /// Known ones that have another key, endpoint or tag than before.
    pub changed: Vec<String>,
    /// Relays that are no more.
    pub gone: Vec<String>,
}

impl Learned {
    /// Whether all is as it was.
    pub fn is_nothing(&self) -> bool {
        *self == Self::default()
    }
}

/// Makes `known` agree with what a relay told. Who is up tells its own key itself, in its own time.
pub fn learn(known: &mut Vec<Relay>, told: &Told, is_up: impl Fn(&str) -> bool) -> Learned {
    let mut learned = Learned::default();
    if !known.iter().any(|relay| relay.name == told.by) {
        return learned;
    }
    let places = told.relays.iter().filter(|place| place.tag != told.own).take(MAX_RELAYS - 1);
    let places: Vec<&RelayPlace> = places.filter(|place| endpoints_of(place).next().is_some()).collect();
    for relay in known.iter_mut().filter(|relay| relay.name == told.by && relay.tag.as_ref() != Some(&told.own)) {
        relay.tag = Some(told.own.clone());
        learned.changed.push(relay.name.clone());
    }
    for place in &places {
        let by_tag = known.iter().position(|relay| relay.tag.as_ref() == Some(&place.tag));
        let by_key = || known.iter().position(|relay| relay.tag.is_none() && relay.public_key == place.public_key);
        let endpoints: Vec<String> = endpoints_of(place).collect();
        match by_tag.or_else(by_key).and_then(|at| known.get_mut(at)) {
            Some(relay) if relay.name == told.by => {}
            Some(relay) => {
                let public_key = if is_up(&relay.name) { relay.public_key } else { place.public_key };
                let now = Relay { tag: Some(place.tag.clone()), public_key, endpoints, ..relay.clone() };
                if now != *relay {
                    *relay = now;
                    learned.changed.push(relay.name.clone());
                }
            }
            None => {
                let name = name_for(&endpoints, known);
                let (tag, public_key) = (Some(place.tag.clone()), place.public_key);
                known.push(Relay { tag, ..Relay::new(name.clone(), public_key, endpoints) });
                learned.added.push(name);
            }
        }
    }
    known.retain(|relay| {
        let Some(tag) = &relay.tag else { return true };
        let stays = relay.name == told.by || places.iter().any(|place| place.tag == *tag);
        if !stays {
            learned.gone.push(relay.name.clone());
        }
        stays
    });
    learned
}

/// Those that can be read: a relay's word becomes a directory's name here.
fn endpoints_of(place: &RelayPlace) -> impl Iterator<Item = String> {
    place.endpoints.iter().filter_map(|text| Some(text.parse::<Endpoint>().ok()?.to_string()))
}

#[cfg(test)]
mod tests {
    use culvert_model::key::{PrivateKey, PublicKey};

    use super::*;

    #[test]
    fn the_others_of_a_registry_are_found_by_key_first_and_by_tag_from_then_on() {
        let mut known = vec![relay("a", 1, None), relay("b", 2, None)];
        let learned = learn(&mut known, &told("a", "ta", &[("ta", 1, "a:1"), ("tb", 2, "b:1")]), nobody);
        assert_eq!(learned.changed, ["a", "b"]);
        assert_eq!((known[0].tag.as_deref(), known[1].tag.as_deref()), (Some("ta"), Some("tb")));
        let again = learn(&mut known, &told("a", "ta", &[("ta", 1, "a:1"), ("tb", 2, "b:1")]), nobody);
        assert!(again.is_nothing(), "{again:?}");
        // A relay that is up tells its new key itself, before that one is used.
        let learned = learn(&mut known, &told("a", "ta", &[("ta", 1, "a:1"), ("tb", 7, "b:1")]), |name| name == "b");
        assert!(learned.is_nothing(), "{learned:?}");
        // Its key was rotated while nobody here was connected to it.
        let learned = learn(&mut known, &told("a", "ta", &[("ta", 1, "a:1"), ("tb", 7, "b:9")]), nobody);
        assert_eq!((learned.changed.as_slice(), learned.added.len()), (&["b".to_owned()][..], 0));
        assert_eq!((known[1].public_key, known[1].endpoints.as_slice()), (key(7), &["b:9".to_owned()][..]));
        assert_eq!(known[1].psk_epoch, Some(1), "the pre-shared key stays");
    }

    #[test]
    fn a_relay_that_comes_later_is_learned_and_one_that_is_no_more_is_dropped() {
        let mut known = vec![relay("a", 1, Some("ta"))];
        let learned =
            learn(&mut known, &told("a", "ta", &[("ta", 1, "a:1"), ("tc", 3, "a:2"), ("td", 4, "a:2")]), nobody);
        assert_eq!(learned.added, ["a_2", "a_2_"]);
        assert_eq!(known[1].psk_epoch, None);
        let learned = learn(&mut known, &told("a_2", "tc", &[("ta", 1, "a:1"), ("tc", 3, "a:2")]), nobody);
        assert_eq!((learned.gone.as_slice(), known.len()), (&["a_2_".to_owned()][..], 2));
    }

    #[test]
    fn a_relay_of_another_registry_is_left_alone_and_so_is_the_one_that_tells() {
        let mut known = vec![relay("a", 1, Some("ta")), relay("other", 9, None)];
        let learned = learn(&mut known, &told("a", "ta", &[("ta", 5, "elsewhere:1")]), nobody);
        assert!(learned.is_nothing(), "{learned:?}");
        assert_eq!(known, [relay("a", 1, Some("ta")), relay("other", 9, None)]);
        let learned = learn(&mut known, &told("nobody", "tx", &[]), nobody);
        assert!(learned.is_nothing(), "{learned:?}");
    }

    #[test]
    fn a_place_without_an_endpoint_is_no_place_and_their_number_is_bounded() {
        let mut known = vec![relay("a", 1, Some("ta"))];
        let learned = learn(&mut known, &told("a", "ta", &[("tb", 2, "../../etc"), ("tc", 3, "")]), nobody);
        assert!(learned.is_nothing(), "{learned:?}");
        let tags: Vec<String> = (0..100).map(|n| format!("t{n}")).collect();
        let many: Vec<(&str, u8, &str)> = tags.iter().map(|tag| (tag.as_str(), 3, "b:1")).collect();
        learn(&mut known, &told("a", "ta", &many), nobody);
        assert_eq!(known.len(), MAX_RELAYS);
    }

    fn nobody(_: &str) -> bool {
        false
    }

    fn key(byte: u8) -> PublicKey {
        PrivateKey::from_bytes([byte; 32]).public_key()
    }

    fn relay(name: &str, byte: u8, tag: Option<&str>) -> Relay {
        let relay = Relay::new(name.to_owned(), key(byte), vec![format!("{name}:1")]);
        Relay { tag: tag.map(str::to_owned), psk_epoch: Some(1), ..relay }
    }

    fn told(by: &str, own: &str, places: &[(&str, u8, &str)]) -> Told {
        let place = |(tag, byte, endpoint): &(&str, u8, &str)| RelayPlace {
            tag: (*tag).to_owned(),
            public_key: key(*byte),
            endpoints: vec![(*endpoint).to_owned()],
        };
        Told { by: by.to_owned(), own: own.to_owned(), relays: places.iter().map(place).collect() }
    }
}
