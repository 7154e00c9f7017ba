//! Who is let in (wire.md §3): pure rules over one token and what is known of one public key.
//!
//! Must never read a clock or a database: every engine asks these functions inside its transaction.

use std::net::IpAddr;
use std::time::SystemTime;

use culvert_model::control::Refusal;

use super::REPEAT;
use super::rows::{ConnectorRow, SealedPsk, TokenRow, TokenState};

/// What to do with a candidate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Take one use. It becomes a member, or stays one if its key joined the same tunnel with another token before.
    Join,
    /// It is a member already: a new pre-shared key, no use.
    Repeat,
    /// Tell it no.
    Refuse {
        /// Why.
        refusal: Refusal,
        /// Since when.
        at: Option<SystemTime>,
    },
    /// Tell it that its key is revoked, whatever its token is worth.
    Gone {
        /// Since when.
        at: SystemTime,
    },
    /// Say nothing.
    Silence,
}

/// Judges the holder of `token` who asks from `source` and whose public key is that of `known`, if any connector has it.
pub(crate) fn judge(token: &TokenRow, known: Option<&ConnectorRow>, source: IpAddr, now: SystemTime) -> Verdict {
    match by_state(token, known, now) {
        Verdict::Join | Verdict::Repeat if !token.allows(source) => {
            Verdict::Refuse { refusal: Refusal::Source, at: None }
        }
        verdict => verdict,
    }
}

/// The epoch of the next pre-shared key, given those with the same relay, and the one to keep beside it.
///
/// INVARIANT: the two differ by one, so that one bit tells them apart in a session index. The one kept is the newest that
/// is confirmed, so that somebody who repeats another's enrolment cannot cut it off; else the newest.
pub(crate) fn next_epoch(psks: &[SealedPsk], relay: &str) -> (u32, Option<u32>) {
    let ours = || psks.iter().filter(|psk| psk.relay == relay);
    let confirmed = ours().filter(|psk| psk.confirmed).map(|psk| psk.epoch).max();
    match confirmed.or_else(|| ours().map(|psk| psk.epoch).max()) {
        Some(kept) => (kept.saturating_add(1), Some(kept)),
        None => (1, None),
    }
}

fn by_state(token: &TokenRow, known: Option<&ConnectorRow>, now: SystemTime) -> Verdict {
    if token.is_forgotten(now) {
        return Verdict::Silence;
    }
    let refuse = |refusal| Verdict::Refuse { refusal, at: token.ended(now) };
    if let Some(at) = known.and_then(|connector| connector.revoked) {
        return Verdict::Gone { at };
    }
    let state = token.state(now);
    if state == TokenState::Revoked {
        return refuse(Refusal::Revoked);
    }
    if let Some(connector) = known {
        // One key, one member: a token of another tunnel must not carry somebody's key away.
        if connector.tunnel != token.tunnel {
            return Verdict::Refuse { refusal: Refusal::Malformed, at: None };
        }
        if connector.token == token.id && token.ended(now).is_none_or(|ended| now < ended + REPEAT) {
            return Verdict::Repeat;
        }
    }
    match state {
        TokenState::Active => Verdict::Join,
        TokenState::Expired => refuse(Refusal::Expired),
        TokenState::UsedUp => refuse(Refusal::UsedUp),
        TokenState::Revoked => refuse(Refusal::Revoked),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use culvert_model::address::connector_inner;
    use culvert_model::id::{ConnectorId, TokenId, TunnelId};
    use culvert_model::key::PublicKey;

    use super::super::{Sealed, TOMBSTONE};
    use super::*;

    const MADE: SystemTime = SystemTime::UNIX_EPOCH;
    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 9));
    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn a_token_lets_in_until_it_ends_and_then_says_why_for_thirty_days() {
        let expired = TokenRow { expires: Some(MADE + HOUR), ..token() };
        let spent = TokenRow { uses_left: Some(0), last_used: Some(MADE + HOUR), ..token() };
        let revoked = TokenRow { revoked: Some(MADE + HOUR), ..token() };
        let at = Some(MADE + HOUR);
        for (row, refusal) in [(expired, Refusal::Expired), (spent, Refusal::UsedUp), (revoked, Refusal::Revoked)] {
            let refused = Verdict::Refuse { refusal, at };
            assert_eq!(judge(&row, None, HERE, MADE + HOUR), refused);
            assert_eq!(judge(&row, None, HERE, MADE + HOUR + TOMBSTONE - HOUR), refused);
            assert_eq!(judge(&row, None, HERE, MADE + HOUR + TOMBSTONE), Verdict::Silence);
        }
        assert_eq!(judge(&token(), None, HERE, MADE), Verdict::Join);
        let short = TokenRow { expires: Some(MADE + HOUR), ..token() };
        assert_eq!(judge(&short, None, HERE, MADE + HOUR - Duration::from_millis(1)), Verdict::Join);
    }

    #[test]
    fn a_member_repeats_for_a_day_after_the_token_ended() {
        let spent = TokenRow { uses_left: Some(0), last_used: Some(MADE), ..token() };
        let member = connector(&spent);
        assert_eq!(judge(&spent, Some(&member), HERE, MADE + REPEAT - HOUR), Verdict::Repeat);
        let refused = Verdict::Refuse { refusal: Refusal::UsedUp, at: Some(MADE) };
        assert_eq!(judge(&spent, Some(&member), HERE, MADE + REPEAT), refused);
        let unlimited = TokenRow { uses_left: None, ..spent };
        assert_eq!(judge(&unlimited, Some(&member), HERE, MADE + 10 * REPEAT), Verdict::Repeat);
    }

    #[test]
    fn a_revoked_token_or_connector_learns_it_and_never_repeats() {
        let row = token();
        let revoked = TokenRow { revoked: Some(MADE), ..row.clone() };
        let member = connector(&row);
        let refused = Verdict::Refuse { refusal: Refusal::Revoked, at: Some(MADE) };
        assert_eq!(judge(&revoked, Some(&member), HERE, MADE), refused);
        let gone = ConnectorRow { revoked: Some(MADE), ..member };
        for token in [&row, &revoked] {
            assert_eq!(judge(token, Some(&gone), HERE, MADE + TOMBSTONE / 2), Verdict::Gone { at: MADE });
        }
        assert_eq!(judge(&row, Some(&gone), HERE, MADE + 100 * TOMBSTONE), Verdict::Gone { at: MADE });
    }

    #[test]
    fn a_key_that_joined_with_another_token_costs_a_use_and_never_changes_tunnels() {
        let row = token();
        let member = ConnectorRow { token: TokenId::new(), ..connector(&row) };
        assert_eq!(judge(&row, Some(&member), HERE, MADE), Verdict::Join);
        let elsewhere = ConnectorRow { tunnel: TunnelId::new(), ..connector(&row) };
        let refused = Verdict::Refuse { refusal: Refusal::Malformed, at: None };
        assert_eq!(judge(&row, Some(&elsewhere), HERE, MADE), refused);
    }

    #[test]
    fn a_token_works_from_where_it_may_be_used_alone() {
        let sources = vec!["192.0.2.0/24".parse().unwrap(), "2001:db8::/32".parse().unwrap()];
        let row = TokenRow { sources, ..token() };
        let elsewhere = Verdict::Refuse { refusal: Refusal::Source, at: None };
        for (source, verdict) in [
            ("192.0.2.9", Verdict::Join),
            ("::ffff:192.0.2.9", Verdict::Join),
            ("2001:db8::9", Verdict::Join),
            ("192.0.3.9", elsewhere),
            ("::ffff:192.0.3.9", elsewhere),
            ("2001:db9::9", elsewhere),
        ] {
            assert_eq!(judge(&row, None, source.parse().unwrap(), MADE), verdict, "{source}");
        }
        let member = connector(&row);
        assert_eq!(judge(&row, Some(&member), "198.51.100.1".parse().unwrap(), MADE), elsewhere);
        let spent = TokenRow { uses_left: Some(0), ..row };
        let told = judge(&spent, None, "198.51.100.1".parse().unwrap(), MADE);
        assert!(matches!(told, Verdict::Refuse { refusal: Refusal::UsedUp, .. }), "the better reason is told");
    }

    #[test]
    fn a_repeat_replaces_what_was_never_used_and_keeps_what_was() {
        let psk =
            |epoch, confirmed| SealedPsk { relay: "here".to_owned(), epoch, sealed: Sealed(Vec::new()), confirmed };
        assert_eq!(next_epoch(&[], "here"), (1, None));
        assert_eq!(next_epoch(&[psk(1, false)], "here"), (2, Some(1)));
        assert_eq!(next_epoch(&[psk(1, false), psk(2, false)], "here"), (3, Some(2)));
        assert_eq!(next_epoch(&[psk(1, true), psk(2, false)], "here"), (2, Some(1)));
        assert_eq!(next_epoch(&[psk(1, true), psk(2, true)], "here"), (3, Some(2)));
        assert_eq!(next_epoch(&[psk(7, true)], "elsewhere"), (1, None));
    }

    fn token() -> TokenRow {
        TokenRow {
            id: TokenId::new(),
            tunnel: TunnelId::new(),
            bootstrap_key: PublicKey::from_bytes([1; 32]),
            psk: Sealed(Vec::new()),
            services: Vec::new(),
            sources: Vec::new(),
            used: 0,
            uses_left: Some(1),
            expires: None,
            revoked: None,
            created: MADE,
            last_used: None,
        }
    }

    fn connector(token: &TokenRow) -> ConnectorRow {
        let id = ConnectorId::new();
        ConnectorRow {
            inner_address: connector_inner(&id),
            id,
            tunnel: token.tunnel.clone(),
            token: token.id.clone(),
            public_key: PublicKey::from_bytes([2; 32]),
            key_since: MADE,
            safe_since: None,
            next: None,
            name: None,
            services: Vec::new(),
            psks: Vec::new(),
            ephemeral: false,
            drained: false,
            revoked: None,
            enrolled: MADE,
            heard: Vec::new(),
            last_endpoint: None,
            last_local: None,
            last_handshake: None,
            proof_keys: Vec::new(),
            version: None,
        }
    }
}
