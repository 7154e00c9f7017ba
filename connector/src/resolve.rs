//! A relay's endpoints as addresses: looked up afresh at every attempt.
//!
//! Must never keep a name's address beyond the attempt.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use culvert_model::token::Endpoint;
use tokio::time::timeout;

use crate::link::Problem;

/// How long one look-up may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Every address of every endpoint, of the families that there are sockets for.
///
/// # Errors
/// [`Problem::Dns`] when no endpoint gave any address.
pub async fn resolve(endpoints: &[Endpoint], four: bool, six: bool) -> Result<Vec<SocketAddr>, Problem> {
    let mut addresses = Vec::new();
    let mut error = None;
    for endpoint in endpoints {
        if let Ok(address) = endpoint.host().parse::<IpAddr>() {
            addresses.push(SocketAddr::new(address, endpoint.port()));
            continue;
        }
        match timeout(PATIENCE, tokio::net::lookup_host((endpoint.host(), endpoint.port()))).await {
            Ok(Ok(found)) => addresses.extend(found),
            Ok(Err(failed)) => error = Some(failed.to_string()),
            Err(_) => error = Some("no answer in time".to_owned()),
        }
    }
    match (addresses.is_empty(), error) {
        (true, error) => Err(Problem::Dns(error.unwrap_or_else(|| "no address".to_owned()))),
        (false, _) => {
            addresses.retain(|address| if address.is_ipv4() { four } else { six });
            Ok(addresses)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn names_and_addresses_are_found_and_families_without_sockets_left_out() {
        let of = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<Endpoint>>();
        let both = resolve(&of(&["192.0.2.1:1", "[2001:db8::1]:2"]), true, true).await.unwrap();
        assert_eq!(both.len(), 2);
        let four = resolve(&of(&["192.0.2.1:1", "[2001:db8::1]:2"]), true, false).await.unwrap();
        assert_eq!(four, ["192.0.2.1:1".parse().unwrap()]);
        assert!(!resolve(&of(&["localhost:5"]), true, true).await.unwrap().is_empty());
        assert!(matches!(resolve(&of(&["no-such-host.invalid:5"]), true, true).await, Err(Problem::Dns(_))));
        let one_is_enough = resolve(&of(&["no-such-host.invalid:5", "192.0.2.1:1"]), true, true).await;
        assert_eq!(one_is_enough.unwrap().len(), 1);
    }
}
