//! A service behind a peer as the registry keeps it, made into one that origins can be reached by.
//!
//! Must never read a file: what is needed stands in the row.

use culvert_origin::origin::Origin;
use culvert_origin::service::{HostPolicy, Service, health_path};
use culvert_origin::tls::{ClientTls, Files};

use super::wishes::Wish;
use crate::registry::PeerServiceRow;

/// What the row says, with what this relay's configuration adds.
///
/// # Errors
/// Why it cannot be reached, in words.
pub(super) fn settle(row: &PeerServiceRow, wish: Option<&Wish>) -> Result<Service, String> {
    let wish = wish.cloned().unwrap_or_default();
    let origin: Origin = row.origin.parse().map_err(|error| format!("{error}"))?;
    let ca = row.ca.as_ref().map(|pem| pem.clone().into_bytes());
    let tls = match origin.is_tls() {
        true => Some(ClientTls::new(Files { ca, ..wish.files }).map_err(|error| error.to_string())?),
        // In clear text nobody would be asked for what is to be proven.
        false if wish.files != Files::default() => return Err("its tls settings are for https origins".to_owned()),
        false => None,
    };
    if origin.is_tcp() && (wish.auth.is_some() || !wish.fields.is_empty()) {
        return Err("its headers and auth are about requests, and a tcp:// origin gets none".to_owned());
    }
    let mut service = Service::new(row.name.clone(), origin, tls);
    (service.fields, service.timeouts, service.auth) = (wish.fields, wish.timeouts, wish.auth);
    if let Some(host) = &row.host {
        service.host = host.parse::<HostPolicy>().map_err(|error| format!("host: {error}"))?;
    }
    if let Some(path) = &row.health_path {
        service.health.path = Some(health_path(path).map_err(|error| format!("health path: {error}"))?);
    }
    Ok(service)
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use culvert_model::id::StockPeerId;

    use super::*;

    fn row(origin: &str) -> PeerServiceRow {
        PeerServiceRow {
            name: "legacy".parse().unwrap(),
            peer: StockPeerId::new(),
            origin: origin.to_owned(),
            host: None,
            health_path: None,
            ca: None,
            since: SystemTime::UNIX_EPOCH,
        }
    }

    #[test]
    fn a_row_is_a_service_and_what_cannot_be_read_is_said() {
        let mut http = row("http://10.20.0.5:8080");
        (http.host, http.health_path) = (Some("shop.example".to_owned()), Some("/up".to_owned()));
        let service = settle(&http, None).unwrap();
        assert_eq!(service.host, HostPolicy::Literal("shop.example".parse().unwrap()));
        assert_eq!(service.health.path.unwrap().as_str(), "/up");
        let mut https = row("https://legacy.branch");
        https.ca = Some("no certificate".to_owned());
        assert_eq!(settle(&https, None).unwrap_err(), "ca holds no PEM certificate");
        assert!(settle(&row("gopher://10.20.0.5"), None).is_err());
    }

    #[test]
    fn what_the_configuration_adds_fits_the_origin_or_is_refused() {
        let mut wish = Wish::default();
        wish.fields.set("x-api-key".parse().unwrap(), "secret".parse().unwrap()).unwrap();
        assert!(!settle(&row("http://10.20.0.5"), Some(&wish)).unwrap().fields.is_empty());
        assert!(settle(&row("tcp://10.20.0.5:1"), Some(&wish)).unwrap_err().contains("tcp://"));
        let tls = Wish { files: Files { tls13_only: true, ..Files::default() }, ..Wish::default() };
        assert!(settle(&row("http://10.20.0.5"), Some(&tls)).unwrap_err().contains("https"));
    }
}
