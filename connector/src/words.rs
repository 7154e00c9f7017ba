//! What is said to the operator when there is no session: each cause in its own line, with what can be done.
//!
//! Must never name a key's or token's text.

use culvert_model::close::CloseCode;
use culvert_model::control::{Refusal, Subject};

use crate::join::Refused;
use crate::link::Problem;

/// Why there is no session with the relay at `endpoint`, and what to do about it.
pub fn problem(problem: &Problem, endpoint: &str) -> String {
    match problem {
        Problem::Dns(error) => {
            format!("the relay's name in {endpoint} does not resolve ({error}): check the name and this host's DNS")
        }
        Problem::NoAddress => {
            format!("the relay {endpoint} has only addresses of a family (IPv4 or IPv6) that this host does not have")
        }
        Problem::NoRoute(at) => format!("this host has no route to the relay at {at}: check its network"),
        Problem::NotPermitted(at) => {
            format!("this host's own firewall forbids UDP to the relay at {at}: permit it outbound")
        }
        Problem::PortClosed(at) => {
            format!("nothing listens on UDP at {at}: is the relay running there, on that port?")
        }
        Problem::Unknown(at) => format!(
            "UDP reaches the host of the relay at {at}, but the relay does not answer this connector: it has another \
             key than the token says (rotated while this connector was away?), or does not know this token or key; make \
             a new token there with `culvert-relay token create`, and start this connector with it"
        ),
        Problem::Silent(at) => format!(
            "no answer at all from the relay at {at}: UDP is blocked on the way, or the address is wrong; permit UDP \
             outbound to that port"
        ),
        Problem::Stuck => format!(
            "the handshake with the relay at {endpoint} passes, larger packets do not: something on the way drops UDP \
             packets of 1308 bytes (1328 over IPv6)"
        ),
        Problem::Lost(cause) => format!("the session with the relay at {endpoint} was lost: {cause}"),
        Problem::Closed(CloseCode::Shutdown) => format!("the relay at {endpoint} is going down"),
        Problem::Closed(code) => format!("the relay at {endpoint} closed the session: {code}"),
        Problem::Replaced => format!(
            "another process uses this connector's key at the relay {endpoint}, and the newest one is served: stop one \
             of them, and give each its own state directory"
        ),
        Problem::Version(versions) => {
            format!(
                "the relay at {endpoint} and this connector have no version in common: {versions}; upgrade the older"
            )
        }
    }
}

/// Why the relay ended a session.
pub fn closed(code: CloseCode) -> String {
    match code {
        CloseCode::Shutdown => "the relay is going down".to_owned(),
        CloseCode::Replaced => "a newer session with this connector's key took its place".to_owned(),
        CloseCode::Revoked => "this connector was revoked".to_owned(),
        CloseCode::Version => "no version in common".to_owned(),
        CloseCode::Silent => "the relay heard nothing from this connector".to_owned(),
        other => format!("the relay closed it ({other})"),
    }
}

/// Why the relay refused to enrol, for good, and what to do about it.
pub fn refusal(refused: &Refused) -> (String, String) {
    let when = refused.at.as_deref().map(|at| format!(" ({at})")).unwrap_or_default();
    let create = "make a new one at the relay: culvert-relay token create TUNNEL".to_owned();
    match refused.refusal {
        Refusal::Expired => (format!("the token has expired{when}"), create),
        Refusal::UsedUp => (
            format!("the token is used up{when}"),
            "make another at the relay: culvert-relay token create TUNNEL (--uses N for several connectors)".to_owned(),
        ),
        Refusal::Revoked => {
            let what = match refused.of {
                Some(Subject::Token) => "the token or its tunnel",
                Some(Subject::Connector) => "this connector's key",
                Some(Subject::Other) | None => "the token, its tunnel or this connector",
            };
            (format!("{what} was revoked{when}"), create)
        }
        Refusal::Malformed => (
            "the relay could not make sense of this connector's request".to_owned(),
            "upgrade the older of the two".to_owned(),
        ),
        Refusal::Version => (
            "the relay and this connector have no version in common".to_owned(),
            "upgrade the older of the two".to_owned(),
        ),
        Refusal::Source => (
            "the token may not be used from this address".to_owned(),
            "join from where it may, or make another at the relay: culvert-relay token create TUNNEL --from CIDR"
                .to_owned(),
        ),
        Refusal::Other => {
            ("the relay refused this token, for a reason that this version does not know".to_owned(), create)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_cause_has_its_own_line() {
        let at = "192.0.2.1:51820".parse().unwrap();
        let problems = [
            Problem::Dns("no such name".to_owned()),
            Problem::NoAddress,
            Problem::NoRoute(at),
            Problem::NotPermitted(at),
            Problem::PortClosed(at),
            Problem::Unknown(at),
            Problem::Silent(at),
            Problem::Stuck,
            Problem::Lost("timed out".to_owned()),
            Problem::Closed(CloseCode::Shutdown),
            Problem::Closed(CloseCode::Overloaded),
            Problem::Replaced,
            Problem::Version("relay 3, connector 1".to_owned()),
        ];
        let refusals = [
            (Refusal::Expired, None),
            (Refusal::UsedUp, None),
            (Refusal::Revoked, None),
            (Refusal::Revoked, Some(Subject::Token)),
            (Refusal::Revoked, Some(Subject::Connector)),
            (Refusal::Malformed, None),
            (Refusal::Version, None),
            (Refusal::Source, None),
            (Refusal::Other, None),
        ];
        let lines: BTreeSet<String> = problems
            .iter()
            .map(|one| problem(one, "relay.example:51820"))
            .chain(refusals.map(|(refusal, of)| self::refusal(&Refused { refusal, at: None, of }).0))
            .collect();
        assert_eq!(lines.len(), problems.len() + refusals.len());
        assert!(lines.iter().all(|line| !line.contains('\n')));
    }
}
